"""A language model and the retriever of its candidates: s * (log p + w * log q), from validation.

Weights are compared by the likelihood of the validation targets among their candidates, each at the
scale s that suits it best: the scale says nothing of an order, and all of how sure it is. Targets
that the retriever missed say nothing. Weight 0 is the language model alone, and may win.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.data.candidates import candidate_nll, proposed, read_candidates, read_log_q
from llmrec.decoding.beam import Ranking
from llmrec.decoding.fusion import fused, ranked, scores_of
from llmrec.errors import LlmrecError
from llmrec.evaluation.metrics import ndcg
from llmrec.evaluation.predictions import Predictions
from llmrec.inference.engine import Ranked
from llmrec.recipe.systems import System
from llmrec.systems.resources import Resources

log = logging.getLogger("llmrec")
Doubles = npt.NDArray[np.float64]
Items = npt.NDArray[np.int32]
# By which scores are multiplied before their likelihood is told.
SCALES = np.geomspace(1 / 50, 50, 60)
CHOSEN_AT = 10  # cut-off of the NDCG that is told beside the likelihood
FEW = 30  # validation targets among their candidates: fewer choose by chance, which is told


@dataclass(frozen=True)
class Fusion:
    """`weight` of the retriever's log-probabilities beside the model's, `scale` of the sum, and how
    they were chosen."""

    weight: float
    scale: float = 1.0
    described: dict[str, Any] = field(default_factory=dict)


def chosen_fusion(resources: Resources, system: System) -> Fusion:
    """The recipe's weight at scale 1, or the one of its grid that does best in validation.

    Raises LlmrecError where the retriever proposes no validation target.
    """
    wanted, valid = resources.recipe.decode.fusion, resources.valid
    if wanted.weight != "auto":
        return Fusion(float(wanted.weight), described={"weight": float(wanted.weight)})
    log.info("recommend: choosing the weight of %s in validation", system.name)
    models, path = resources.language, resources.folder.candidates("valid")
    engine, prompting = models.engine(system), models.prompting("valid", valid)
    candidates = read_candidates(path)
    rows = np.flatnonzero(
        proposed(candidates, valid.targets)
    )  # the others are misses at any weight
    if not len(rows):
        raise LlmrecError(
            "the retriever proposes no validation target, so no weight can be chosen; raise "
            "data.candidates.count or set decode.fusion.weight to a number"
        )
    asked, among = prompting.take(rows), candidates[rows]
    prompts = asked.ids(asked.selected(engine))
    scores = scores_of(engine.choose(prompts, among).rankings, among)
    nll, scales, gain = compared(
        scores, read_log_q(path)[rows], among, valid.targets[rows], wanted.grid
    )
    weight, held = min(nll, key=lambda w: (nll[w], w)), len(rows)
    if held < FEW:
        log.warning(
            "recommend: the weight of %s is chosen on %d validation targets, those of %d that the "
            "retriever proposes; data.subset.valid or data.candidates.count give it more",
            system.name,
            held,
            len(valid),
        )
    return Fusion(
        weight,
        scales[weight],
        {
            "weight": weight,
            "scale": scales[weight],
            "valid_targets": held,
            "valid_nll": {f"{w:g}": value for w, value in nll.items()},
            f"valid_ndcg@{CHOSEN_AT}": {f"{w:g}": v * held / len(valid) for w, v in gain.items()},
        },
    )


def compared(
    scores: Doubles, log_q: Doubles, candidates: Items, targets: Items, grid: Sequence[float]
) -> tuple[dict[float, float], dict[float, float], dict[float, float]]:
    """For each weight the mean NLL at the scale that suits it best, that scale, and the mean NDCG.

    scores, log_q, candidates (U, C); targets (U,), each among its candidates.
    """
    nll, best, gain = {}, {}, {}
    for weight in grid:
        summed = scores + weight * log_q
        costs = [candidate_nll(scale * summed, candidates, targets).mean() for scale in SCALES]
        nll[weight], best[weight] = float(min(costs)), float(SCALES[np.argmin(costs)])
        lists = [ranking.positions for ranking in ranked(candidates, summed)]
        gain[weight] = float(ndcg(lists, targets, CHOSEN_AT).mean())
    return nll, best, gain


def fused_with_alone(
    resources: Resources, system: System, fusion: Fusion, log_q: Doubles
) -> tuple[Ranked, float] | None:
    """A fused system's answers for the test split, from those that the same model gave alone.

    Those hold all candidates with their scores, so nothing is read again; also the seconds that
    they took. None where they do not stand. Every process calls this.
    """
    from llmrec.runs.processes import main_only  # brings torch

    alone, among = resources.artifact(System(system.weights)), resources.candidates

    def found() -> tuple[Ranked, float] | None:
        selects = resources.recipe.demonstrations is not None  # and keeps whom, as it answers
        if selects or among is None or alone.facts_or_none() is None:
            return None
        said = Predictions.read(alone.place)
        items, scores = said.items.reshape(among.shape), said.scores.reshape(among.shape)
        rankings = list(map(Ranking, items, scores, repeat(True)))
        lists, summed = fused(rankings, among, log_q, fusion.weight, fusion.scale)
        nll = candidate_nll(summed, among, resources.test.targets)
        return Ranked(lists, nll), said.info.seconds

    return main_only(found)


def served_fusion(resources: Resources, system: System) -> Fusion:
    """The fusion that the system's predictions for the test split record, else chosen anew."""
    recorded = resources.recorded(system)
    if "weight" not in recorded:
        return chosen_fusion(resources, system)
    return Fusion(float(recorded["weight"]), float(recorded.get("scale", 1.0)))
