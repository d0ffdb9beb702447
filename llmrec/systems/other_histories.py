"""What a language model says of each target when its prompt holds another user's history.

One more pass of the model, written by `recommend` where the recipe has `evaluate.gates`. Only the
prompt is another's: candidates, and the items that may not come out, stay the user's own, so that
the difference is what reading the right history is worth.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.data.candidates import candidate_nll
from llmrec.decoding.candidates import candidate_scores
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.evaluation.gates import another_user
from llmrec.evaluation.predictions import Predictions, SystemInfo
from llmrec.inference.engine import scored_paths
from llmrec.model.loading import adapter_off
from llmrec.recipe.systems import System
from llmrec.runs.batch_files import Batch, answer_in_parts, batches, collected, discard

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
        model = language.model_of(name)

        def answer(batch: Batch) -> list[Any]:
            asked = shown.take(batch)
            with nullcontext() if system.has_adapter else adapter_off(model):
                prompts = asked.ids(asked.selected(model))
                examples = test.take(batch)
                if asked.candidates is not None:
                    scores = candidate_scores(
                        SharedPrompt(model, prompts),
                        language.encoder.completions,
                        asked.candidates,
                        decode.renormalise,
                    )
                    nll = candidate_nll(scores, asked.candidates, examples.targets)
                else:
                    nll = np.empty(len(examples))
                    for part, paths in scored_paths(
                        model,
                        language.encoder,
                        examples,
                        filter_seen=decode.filter_seen,
                        batch_size=len(examples),
                        prompts=prompts,
                    ):
                        nll[part] = paths.nll()
            return [float(n) if np.isfinite(n) else None for n in nll]

        return answer

    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    parts = path.parent / ".parts" / f"{name}-{key}"
    plan = batches(list(map(len, shown.ids())), decode.batch_size, decode.batch_tokens)
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
