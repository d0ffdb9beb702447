"""Weak users to the language model, everybody else the retriever's own list.

Weak is who has chosen little and is served badly by the retriever: the history is no longer than
that of a share of the validation users, and the AUC of the user's validation target under the
retriever no higher than that of a share of them. Both shares are the recipe's, both thresholds are
told. Prompts of others are not read. Source: hybrid allocation (arXiv 2501.04762); its weak users
are those beyond the mean of both.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from llmrec.baselines.ranking import Scorer, chunks
from llmrec.data.batching import Batch
from llmrec.data.candidates import candidate_nll, read_candidates, read_log_q
from llmrec.data.files import write_json
from llmrec.data.records import Bools, Ints
from llmrec.decoding.fusion import fused, ranked
from llmrec.evaluation.predictions import Predictions, SystemInfo
from llmrec.inference.candidate_retriever import CandidateRetriever
from llmrec.inference.engine import Engine
from llmrec.inference.prompting import Prompting
from llmrec.inference.ratings import Selected
from llmrec.recipe.systems import System
from llmrec.runs.batch_files import discard
from llmrec.systems.fusion import chosen_fusion
from llmrec.systems.language import answered
from llmrec.systems.resources import Resources

log = logging.getLogger("llmrec")
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Routing:
    """Who is weak: histories of at most `longest` items, users of an AUC of at most `highest`.

    `known`: the AUC of each validation user. Who is none has an AUC that nobody knows, and is weak
    by the history alone.
    """

    longest: float
    highest: float
    known: dict[str, float]

    def weak(self, histories: Sequence[Ints], users: Sequence[str] | None) -> Bools:
        """(U,) which users are."""
        names = [""] * len(histories) if users is None else users
        found = [
            len(history) <= self.longest and self.known.get(str(name), 0.0) <= self.highest
            for history, name in zip(histories, names, strict=True)
        ]
        return np.array(found, np.bool_)


def routing_of(resources: Resources, retriever: CandidateRetriever) -> Routing:
    """The thresholds of the recipe's shares of the validation users."""
    valid, wanted = resources.valid, resources.recipe.decode.routing
    histories = valid.histories()
    scorer, size, seen_out = retriever.scorer, retriever.size, retriever.filter_seen
    auc = target_auc(scorer, histories, valid.targets, size, seen_out)
    lengths = np.array([len(history) for history in histories])
    known: dict[str, float] = {}
    for user, value in zip(valid.user_ids, auc.tolist(), strict=True):
        known[str(user)] = max(value, known.get(str(user), 0.0))
    return Routing(
        float(np.quantile(lengths, wanted.history)), float(np.quantile(auc, wanted.auc)), known
    )


def target_auc(
    scorer: Scorer, histories: Sequence[Ints], targets: Ints, size: int, filter_seen: bool
) -> Doubles:
    """(U,) the share of other open items that each target is scored above; half for equals.

    0 where the target is not open itself. `size`: items of the catalog.
    """
    found = np.zeros(len(targets))
    for part in chunks(len(histories), size):
        scores = scorer.scores(histories[part], filter_seen)
        own = np.take_along_axis(scores, targets[part][:, None].astype(np.int64), axis=1)
        others = (scores > -np.inf).sum(axis=1) - 1
        below = ((scores < own) & (scores > -np.inf)).sum(axis=1)
        equal = (scores == own).sum(axis=1) - 1
        with np.errstate(divide="ignore", invalid="ignore"):
            auc = (below + equal / 2) / others
        found[part] = np.where((own[:, 0] > -np.inf) & (others > 0), auc, 0.0)
    return found


def predictions_of(resources: Resources, system: System) -> Predictions | None:
    """The rankings for `test`; None in a process that only helps."""
    test, path = resources.test, resources.folder.candidates("test")
    retriever = resources.retriever
    assert retriever is not None  # noqa: S101  a rule of recipes
    routing, fusion = routing_of(resources, retriever), chosen_fusion(resources, system)
    weak = routing.weak(test.histories(), test.user_ids.tolist())
    rows = np.flatnonzero(weak)
    candidates, log_q = read_candidates(path), read_log_q(path)
    scores = log_softmax(log_q, axis=1)

    def reranked(
        engine: Engine, prompting: Prompting, batch: Batch, selected: list[Selected]
    ) -> list[dict[str, Any]]:
        among = candidates[rows[batch]]
        found = engine.choose(prompting.ids(selected), among).rankings
        _, summed = fused(found, among, log_q[rows[batch]], fusion.weight, fusion.scale)
        return [{"scores": row} for row in summed.tolist()]

    answers, seconds = answered(resources, system, "test", reranked, rows)
    if not resources.language.is_main_process:
        return None
    if len(rows):
        scores[rows] = [answer["scores"] for answer in answers]
    share = float(weak.mean())
    log.info("recommend: %s asks the model for %.1f %% of the users", system.name, 100 * share)
    info = SystemInfo(
        system.name,
        system.kind,
        True,
        {
            **fusion.described,
            "longest_history": routing.longest,
            "highest_auc": routing.highest,
            "share_routed": share,
            "model_calls_saved": 1 - share,
        },
        round(seconds, 2),
        resources.provenance(system),
    )
    write_json(resources.folder.routed(system.name), weak.tolist())
    rankings = ranked(candidates, scores)
    discard(resources.batch_files(system, "test"))
    return Predictions.of(
        info,
        test.user_ids,
        [ranking.positions for ranking in rankings],
        [ranking.scores for ranking in rankings],
        candidate_nll(scores, candidates, test.targets),
    )
