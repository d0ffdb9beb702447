"""Language models that write freely, and the items whose titles are nearest to what they wrote."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.baselines.ranking import chunks
from llmrec.evaluation.predictions import Predictions, SystemInfo
from llmrec.recipe.systems import System
from llmrec.runs.batch_files import discard
from llmrec.systems.free import written
from llmrec.systems.language import demonstrated
from llmrec.systems.resources import Resources


@dataclass(frozen=True)
class Fusion:
    """A fitted baseline whose probabilities are fused with the distances, and its weight `gamma`;
    what is kept of how these were chosen. Without a baseline nothing is fused."""

    scorer: Any = None
    gamma: float = 0.0
    described: dict[str, Any] | None = None

    def probabilities(
        self, resources: Resources, histories: Sequence[npt.NDArray[np.int32]]
    ) -> npt.NDArray[np.float64] | None:
        """(U, N) the baseline's probabilities; None where there is no baseline."""
        return None if self.scorer is None else resources.probabilities(self.scorer, histories)


def predictions_of(resources: Resources, system: System) -> Predictions | None:
    """A system's answers for the test split; None in a process that only helps."""
    begun, models = time.monotonic(), resources.language
    splits = ["test", *(["valid"] if _is_chosen(resources) else [])]
    answers = {split: written(resources, system, split)[0] for split in splits}
    if not models.is_main_process:
        return None
    texts = {split: [a["text"] for a in found] for split, found in answers.items()}
    fusion = _fusion(resources, system, texts.get("valid"))
    grounded, test = models.grounded, resources.test
    histories, rankings = test.histories(), []
    for part in chunks(len(test), len(resources.catalog)):
        rankings += grounded.rankings(
            models.engine(system).model,
            texts["test"][part],
            histories[part],
            resources.recipe.decode.top_k,
            fusion.probabilities(resources, histories[part]),
            fusion.gamma,
        )
    info = SystemInfo(
        system.name,
        system.kind,
        False,
        {
            "answers_that_are_titles": float(np.mean([*map(grounded.is_title, texts["test"])])),
            **demonstrated(resources, system, answers["test"]),
            **(fusion.described or {}),
        },
        round(time.monotonic() - begun, 2),
        resources.provenance(system),
    )
    for split in splits:
        discard(resources.batch_files(system, split))
    return Predictions.of(
        info,
        test.user_ids,
        [r.positions for r in rankings],
        [r.scores for r in rankings],
        np.full(len(test), np.nan),
    )


def served_fusion(resources: Resources, system: System) -> Fusion:
    """The fusion that the system's predictions for the test split record, else chosen anew."""
    recorded = resources.recorded(system)
    if not {"fused_with", "gamma"} <= recorded.keys():
        texts = None
        if _is_chosen(resources):
            texts = [a["text"] for a in written(resources, system, "valid")[0]]
            discard(resources.batch_files(system, "valid"))
        return _fusion(resources, system, texts)
    scorer = resources.refitted(recorded["fused_with"], recorded.get("fusion"))
    return Fusion(scorer, float(recorded["gamma"]))


def _is_chosen(resources: Resources) -> bool:
    """Whether the weight of fusion is chosen in validation."""
    settings = resources.recipe.decode.grounding
    return settings.fusion is not None and settings.gamma == "auto"


def _fusion(resources: Resources, system: System, valid_texts: list[str] | None) -> Fusion:
    """The recipe's fusion; `valid_texts`, what was written in validation, where gamma is chosen."""
    settings = resources.recipe.decode.grounding
    if settings.fusion is None:
        return Fusion()
    tuned = resources.fitted(settings.fusion)
    if valid_texts is None:
        gamma, by_gamma = float(settings.gamma), {}
    else:
        by_gamma = _ndcg_by_gamma(resources, system, tuned.fitted, valid_texts)
        gamma = max(by_gamma, key=lambda g: (by_gamma[g], -g))
    described = {
        "fused_with": settings.fusion,
        "fusion": tuned.hyperparameters,
        "gamma": gamma,
        "valid_ndcg": {f"{g:g}": value for g, value in by_gamma.items()},
    }
    return Fusion(tuned.fitted, gamma, described)


def _ndcg_by_gamma(
    resources: Resources, system: System, scorer: Any, texts: list[str]
) -> dict[float, float]:
    """NDCG at top_k in validation for each weight of the grid."""
    models, valid, decode = resources.language, resources.valid, resources.recipe.decode
    model, q = models.engine(system).model, resources.probabilities(scorer, valid.histories())
    found = {}
    for gamma in decode.grounding.grid:
        ranks = models.grounded.ranks(model, texts, valid.histories(), valid.targets, q, gamma)
        hit = ranks < decode.top_k
        found[gamma] = float(np.where(hit, 1 / np.log2(ranks + 2.0), 0.0).mean())
    return found
