"""Language models that rank items of the catalog, alone or guided, for a split of a run."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.data import sealed
from llmrec.data.batching import Batch
from llmrec.data.candidates import candidate_nll, read_log_q
from llmrec.data.files import write_json
from llmrec.decoding.fusion import fused
from llmrec.evaluation.predictions import LEAKY, Predictions, SystemInfo
from llmrec.inference.engine import Engine, Ranked, closed_items, plan_of
from llmrec.inference.prompting import Prompting
from llmrec.inference.ratings import Selected
from llmrec.inference.similar_users import shortfalls
from llmrec.model.in_flight import by_turns
from llmrec.recipe.systems import System
from llmrec.runs.batch_files import answer_in_parts, collected, discard
from llmrec.systems.cold_items import asked_among, asks, cold_items, places_said
from llmrec.systems.fusion import chosen_fusion, fused_with_alone, served_fusion
from llmrec.systems.guidance import chosen_guidance, served_guidance
from llmrec.systems.language_models import adapter_of_system
from llmrec.systems.resources import Resources

AnswerBatch = Callable[[Engine, Prompting, Batch, list[Selected]], list[dict[str, Any]]]


def predictions_of(resources: Resources, system: System, split: str) -> Predictions | None:
    """A system's rankings for `valid` or `test`; None in a process that only helps."""
    examples = resources.test if split == "test" else resources.valid
    histories, decode = examples.histories(), resources.recipe.decode
    hyperparameters: dict[str, Any] = {}
    guidance = None
    if system.way == "guided":
        guidance = (chosen_guidance if split == "test" else served_guidance)(resources, system)
        hyperparameters |= guidance.described
    fusion, log_q = None, np.zeros((len(examples), 0))
    if system.way == "fused":
        fusion = (chosen_fusion if split == "test" else served_fusion)(resources, system)
        hyperparameters |= fusion.described
        log_q = read_log_q(resources.folder.candidates(split))
    weight = 1.0 if guidance is None else guidance.weight
    q = None if guidance is None else guidance.rows(resources, histories)

    cold = None
    if split == "test" and asks(resources.recipe, examples):
        cold = cold_items(resources.interactions, len(resources.catalog))

    def ranked(
        engine: Engine, prompting: Prompting, batch: Batch, selected: list[Selected]
    ) -> list[dict[str, Any]]:
        prompts, targets = prompting.ids(selected), examples.targets[batch]
        mine, places = None if q is None else q[batch], [None] * len(batch)
        if prompting.candidates is not None:
            found = engine.choose(prompts, prompting.candidates, targets)
            if fusion is not None:
                among = prompting.candidates
                rankings, summed = fused(
                    found.rankings, among, log_q[batch], fusion.weight, fusion.scale
                )
                found = Ranked(rankings, candidate_nll(summed, among, targets))
        else:
            found = engine.rank(
                prompts,
                closed_items(prompting.histories, decode.filter_seen),
                targets=targets,
                probabilities=mine,
                weight=weight,
            )
        if cold is not None:
            size = len(resources.catalog)
            places = asked_among(engine, prompts, targets, cold, size, mine, weight)
        return [
            {**said, **({} if cold is None else {"cold_place": place})}
            for said, place in zip(_said(found), places, strict=True)
        ]

    known = None
    if fusion is not None and split == "test":
        known = fused_with_alone(resources, system, fusion, log_q)
    if known is None:
        answers, seconds = answered(resources, system, split, ranked)
    else:
        answers, seconds = _said(known[0]), known[1]
    if not resources.language.is_main_process:
        return None
    if resources.candidates is None:
        hyperparameters["search"] = decode.kind
        hyperparameters["proven"] = float(np.mean([a["proven"] for a in answers]))
    if split == "test":
        hyperparameters |= demonstrated(resources, system, answers)
        hyperparameters |= _kept(resources, system)
    info = SystemInfo(
        system.name,
        system.kind,
        True,
        hyperparameters,
        round(seconds, 2),
        resources.provenance(system),
    )
    predictions = Predictions.of(
        info,
        examples.user_ids,
        [np.array(a["items"], np.int32) for a in answers],
        [np.array(a["scores"], np.float32) for a in answers],
        np.array([np.inf if a["nll"] is None else a["nll"] for a in answers]),
        places_said(answers),
    )
    discard(resources.batch_files(system, split))
    return predictions


def _said(found: Ranked) -> list[dict[str, Any]]:
    """What answers say of their rankings."""
    return [
        {
            "items": ranking.positions.tolist(),
            "scores": ranking.scores.tolist(),
            "proven": ranking.certified,
            "nll": float(nll) if np.isfinite(nll) else None,
        }
        for ranking, nll in zip(found.rankings, found.nll, strict=True)
    ]


def _kept(resources: Resources, system: System) -> dict[str, Any]:
    """What training chose in validation, where it chose: SOFT's alpha, or its teacher's weights."""
    if not system.has_adapter:
        return {}
    place = adapter_of_system(resources.recipe, resources.folder, system)
    facts = sealed.facts(place) if sealed.manifest_of(place).is_file() else {}
    return {name: facts[name] for name in ("alpha", "kept") if name in facts}


def answered(
    resources: Resources,
    system: System,
    split: str,
    answer: AnswerBatch,
    rows: npt.NDArray[np.int64] | None = None,
) -> tuple[list[dict[str, Any]], float]:
    """What `answer` gives for each example of a split, and the seconds that it took.

    `rows`: of some of the examples alone, which are then numbered anew. Kept as they come, shared
    among processes; batches that were answered before are not answered again.
    Returns when all processes are done, and in a process that only helps with nothing.
    """
    models = resources.language
    prompting = models.prompting(split, resources.test if split == "test" else resources.valid)
    if rows is not None:
        prompting = prompting.take(rows)

    def begin() -> Callable[[Batch], list[Any]]:
        engine = models.engine(system)
        if prompting.selecting is None:  # else prompts are known only when the model has selected
            engine = engine.behind(prompting.ids())
        return partial(_answers, engine, prompting, answer)

    files = resources.batch_files(system, split)
    plan = plan_of(prompting.ids(), resources.recipe.decode)
    over = partial(by_turns, resources.recipe.decode.batches_in_flight)
    answer_in_parts(files, plan, begin, f"recommend: {system.name}", over)
    return collected(files) if models.is_main_process else ([], 0.0)


def demonstrated(
    resources: Resources, system: System, answers: list[dict[str, Any]]
) -> dict[str, Any]:
    """What was shown of similar users; keeps which ones, for `check leakage`."""
    test = resources.test
    prompting = resources.language.prompting("test", test)
    said: dict[str, Any] = {}
    if prompting.votes is not None:
        shows = [t in v for t, v in zip(test.targets.tolist(), prompting.votes, strict=True)]
        said["votes_shown"] = float(np.mean([len(v) for v in prompting.votes]))
        said["targets_among_votes"] = float(np.mean(shows))
    wanted = resources.recipe.demonstrations
    if wanted is not None and wanted.leaks:
        said[LEAKY] = True
    if prompting.pools is None:
        return said
    shown = [answer.get("shown", []) for answer in answers]
    write_json(resources.folder.shown(system.name), shown)
    others = [len(set(s) - set(range(len(s)))) / len(s) for s in shown if s]
    return {
        **said,
        **shortfalls(prompting.pools, test, prompting.shown),
        "other_users_than_retrieved": float(np.mean(others)) if others else 0.0,
        "selection_failed": sum(bool(answer.get("failed")) for answer in answers),
    }


def _answers(
    engine: Engine, prompting: Prompting, answer: AnswerBatch, batch: Batch
) -> list[dict[str, Any]]:
    """The answers of a batch, each with the similar users that its prompt showed."""
    part = prompting.take(batch)
    selected = part.selected(engine)
    found = answer(engine, part, batch, selected)
    return [{**a, **_selection(s)} for a, s in zip(found, selected, strict=True)]


def _selection(selected: Selected) -> dict[str, Any]:
    """What is kept of a selection beside an answer; nothing where no users were to be shown."""
    if not selected.shown and not selected.failed:
        return {}
    return {"shown": list(selected.shown), "failed": selected.failed}
