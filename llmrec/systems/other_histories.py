"""What a language model says of each target when its prompt holds another user's history.

One more pass of the model, written by `recommend` where the recipe has `evaluate.gates`. Only the
prompt is another's: candidates, and the items that may not come out, stay the user's own, so that
the difference is what reading the right history is worth.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.data.batching import Batch
from llmrec.evaluation.gates import another_user
from llmrec.evaluation.predictions import Predictions, SystemInfo
from llmrec.inference.engine import closed_items, plan_of
from llmrec.recipe.systems import System
from llmrec.runs.batch_files import answer_in_parts, collected, discard

if TYPE_CHECKING:
    from llmrec.systems.table_rows import Answering


def write_other_histories(answering: "Answering", name: str) -> bool:
    """Write the targets' NLL under a system's model; False where it stands or there is none.

    So for systems that are no language model, or that answer with something else beside it.
    """
    system = System.parse(name)
    if system.kind != "language_model" or system.way != "ranked":
        return False
    path, settings = answering.folder.other_history(name), answering.settings(name)
    if path.exists() and Predictions.read(path).info.provenance.get("settings") == settings:
        return False
    language, test, decode = answering.language, answering.test, answering.recipe.decode
    own = language.prompting("test", test)
    others = own.take(another_user(test.user_ids, answering.recipe.seed))
    shown = replace(others, candidates=own.candidates)

    def begin() -> Callable[[Batch], list[Any]]:
        engine = language.engine_of(name)

        def answer(batch: Batch) -> list[Any]:
            asked, targets = shown.take(batch), test.targets[batch]
            prompts = asked.ids(asked.selected(engine))
            if asked.candidates is not None:
                nll = engine.choose(prompts, asked.candidates, targets).nll
            else:
                closed = closed_items(test.take(batch).histories(), decode.filter_seen)
                nll = engine.nll(prompts, closed, targets)
            return [float(n) if np.isfinite(n) else None for n in nll]

        return answer

    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    parts = path.parent / ".parts" / f"{name}-{key}"
    plan = plan_of(shown.ids(), decode)
    answer_in_parts(parts, plan, begin, language.state, f"recommend: {name}, other histories")
    if language.is_main_process:
        found, seconds = collected(parts)
        nll = np.array([np.inf if value is None else value for value in found])
        none: list[Any] = [np.zeros(0, np.int32)] * len(test)
        provenance = {"settings": settings}
        info = SystemInfo(name, "language_model", True, seconds=seconds, provenance=provenance)
        Predictions.of(info, test.user_ids, none, none, nll).write(path)
        discard(parts)
    return True
