"""What a language model says of each target when its prompt holds another user's history.

One more pass of the model, written by `recommend` where the recipe has `evaluate.gates`. Only the
prompt is another's: candidates, and the items that may not come out, stay the user's own, so that
the difference is what reading the right history is worth.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from llmrec.data.batching import Batch
from llmrec.evaluation.gates import another_user
from llmrec.evaluation.predictions import Predictions, SystemInfo
from llmrec.inference.engine import closed_items, plan_of
from llmrec.model.in_flight import by_turns
from llmrec.recipe.systems import System
from llmrec.runs.batch_files import answer_in_parts, collected, discard
from llmrec.runs.processes import main_only
from llmrec.systems.resources import Resources


def write_other_histories(resources: Resources, system: System) -> bool:
    """Write the targets' NLL under a system's model; False where it stands or there is none.

    So for systems that are no language model, or that answer with something else beside it.
    """
    if system.kind != "language_model" or system.way != "ranked":
        return False
    place = resources.folder.other_history(system.name)
    artifact = replace(resources.artifact(system), place=place)
    if main_only(lambda: artifact.facts_or_none() is not None):
        return False
    language, test, decode = resources.language, resources.test, resources.recipe.decode
    own = language.prompting("test", test)
    others = own.take(another_user(test.user_ids, resources.recipe.seed))
    shown = replace(others, candidates=own.candidates)

    def begin() -> Callable[[Batch], list[Any]]:
        engine = language.engine(system)

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

    parts = resources.batch_files(system, "other-history")
    plan = plan_of(shown.ids(), decode)
    what = f"recommend: {system.name}, other histories"
    answer_in_parts(parts, plan, begin, what, partial(by_turns, decode.batches_in_flight))
    if language.is_main_process:
        found, seconds = collected(parts)
        nll = np.array([np.inf if value is None else value for value in found])
        none: list[Any] = [np.zeros(0, np.int32)] * len(test)
        provenance = {"settings": artifact.key}
        info = SystemInfo(system.name, system.kind, True, seconds=seconds, provenance=provenance)
        artifact.write(Predictions.of(info, test.user_ids, none, none, nll).write)
        discard(parts)
    return True
