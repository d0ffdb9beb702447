"""Candidates by the sum of two log-probabilities, a language model's and their retriever's."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from llmrec.decoding.beam import Ranking
from llmrec.decoding.candidates import candidate_ranking

Doubles = npt.NDArray[np.float64]
Items = npt.NDArray[np.int32]


def fused(
    rankings: Sequence[Ranking],
    candidates: Items,
    log_q: Doubles,
    weight: float,
    scale: float = 1.0,
) -> tuple[list[Ranking], Doubles]:
    """The candidates (U, C) by log p + `weight` * log q, of which a model gave the rankings.

    Also (U, C) `scale` (above 0) times those sums as log-probabilities, over each user's
    candidates.
    """
    summed = log_softmax(scale * (scores_of(rankings, candidates) + weight * log_q), axis=1)
    return ranked(candidates, summed), summed


def ranked(candidates: Items, scores: Doubles) -> list[Ranking]:
    """The candidates (U, C) by their scores (U, C)."""
    return [candidate_ranking(*row) for row in zip(candidates, scores, strict=True)]


def scores_of(rankings: Sequence[Ranking], candidates: Items) -> Doubles:
    """(U, C) the scores of rankings in the order of the candidates."""
    scores = np.empty(candidates.shape)
    for row, (ranking, among) in enumerate(zip(rankings, candidates, strict=True)):
        order = np.argsort(ranking.positions)
        scores[row] = ranking.scores[order][np.searchsorted(ranking.positions[order], among)]
    return scores
