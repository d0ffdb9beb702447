"""The retriever of a run: a baseline whose best items are the candidates that a model reranks.

It is fitted on the training interactions, its hyperparameters chosen in validation when the data
are prepared and written beside them. A training example is proposed for as if its user's sequence
had ended before it, where the baseline can tell; one that cannot has seen the target, which then
stands at a place drawn uniformly. Knows no language model.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.baselines.distribution import Distribution, Histories, seen
from llmrec.baselines.ranking import WithoutItems, chunks, top_k
from llmrec.baselines.tuning import choose, refitted
from llmrec.data.candidates import as_trained, generator_of, shuffled, write_candidates
from llmrec.data.catalog import Catalog
from llmrec.data.files import write_json
from llmrec.data.records import Bools, Examples, Interactions, Ints
from llmrec.errors import DataError
from llmrec.inference.baseline_search import search_of
from llmrec.recipe import Recipe
from llmrec.runs.folder import RunFolder

log = logging.getLogger("llmrec")
Doubles = npt.NDArray[np.float64]
TRAIN = 0  # the purpose of draws for training examples, as the number of their part is


@dataclass(frozen=True)
class Fold:
    """Some `users` (U,) of a log, and a baseline that was fitted to all others."""

    users: Bools
    scorer: Distribution


@dataclass(frozen=True)
class CandidateRetriever:
    """A fitted baseline under its name that proposes `count` of the N = `size` items."""

    name: str
    scorer: Distribution
    size: int
    count: int
    filter_seen: bool

    @staticmethod
    def chosen(
        recipe: Recipe, train: Interactions, valid: Examples, catalog: Catalog
    ) -> tuple["CandidateRetriever", dict[str, Any]]:
        """The recipe's retriever, and how it was chosen in validation.

        Raises RecipeError where the recipe has none, which callers ask first.
        """
        name, seen_too = _name_of(recipe), recipe.decode.filter_seen
        tuned = choose(
            name, train, valid, catalog, seen_too, recipe.seed, search_of(recipe, catalog)
        )
        described = {"retriever": name, "chosen": tuned.hyperparameters}
        return _retriever(recipe, tuned.fitted, catalog), described

    @staticmethod
    def folds_of(recipe: Recipe, folder: RunFolder) -> list[Fold]:
        """As many as `data.candidates.folds`: users of a run, and the retriever of all others."""
        asked = recipe.data.candidates
        if asked is None or asked.folds < 2:
            return []
        train, valid = (
            Interactions.read(folder.interactions),
            Examples.read(folder.examples("valid")),
        )
        number = np.random.default_rng(recipe.seed).permutation(len(train.user_ids)) % asked.folds
        of_name = dict(zip(train.user_ids.tolist(), number.tolist(), strict=True))
        folds = []
        for fold in range(asked.folds):
            log.info("train: fitting %s to all but fold %d", _name_of(recipe), fold + 1)
            others = train.take(np.flatnonzero(number[train.user] != fold))
            judges = np.array([of_name.get(name, -1) != fold for name in valid.user_ids], bool)
            scorer = _refitted(recipe, folder, others, valid.take(judges))
            folds.append(Fold(number == fold, scorer))
        return folds

    @staticmethod
    def of(recipe: Recipe, folder: RunFolder) -> "CandidateRetriever":
        """The retriever of a prepared run, as its data say that it was chosen."""
        train, valid = (
            Interactions.read(folder.interactions),
            Examples.read(folder.examples("valid")),
        )
        scorer = _refitted(recipe, folder, train, valid)
        return _retriever(recipe, scorer, Catalog.read(folder.items))

    def propose(self, histories: Histories, closed: Ints | None = None) -> tuple[Ints, Doubles]:
        """(U, C) the best items after each history, best first, and their log-probabilities.

        `closed` (M,): items that are none of them, for nobody. Raises DataError where a user has
        fewer items left.
        """
        found = np.empty((len(histories), self.count), np.int32)
        log_q = np.empty((len(histories), self.count))
        scorer = self.scorer if closed is None else WithoutItems(self.scorer, closed)
        for part in chunks(len(histories), self.size):
            scores = scorer.scores(histories[part], self.filter_seen)
            found[part], log_q[part] = self._best(scores)
        return found, log_q

    def log_q(self, histories: Histories, candidates: Ints) -> Doubles:
        """(U, C) log-probabilities of given candidates, up to a constant of each user."""
        found = np.empty(candidates.shape)
        for part in chunks(len(histories), self.size):
            scores = self.scorer.scores(histories[part], filter_seen=False)
            found[part] = np.take_along_axis(scores, candidates[part].astype(np.int64), axis=1)
        return found

    def for_training(
        self, examples: Examples, train: Interactions, seed: int, folds: Sequence[Fold] = ()
    ) -> tuple[Ints, Doubles, Bools]:
        """(E, C) candidates of training `examples`, the target among them, shuffled.

        Also (E, C) their log-probabilities, NaN from a retriever that has seen the targets, and
        (E,) whether the target was proposed, as it always is by such a one.
        `train`: the interactions that it was fitted to, of which the examples are rows. None of
        theirs from the target on is counted, if the baseline can tell; with `folds` nothing at all
        of an example's user is.
        """
        if examples.rows_before is None:
            raise DataError("the training examples name no rows; run `llmrec prepare` again")
        rows = examples.rows_before + 1
        begins = np.searchsorted(train.user, train.user[rows], side="left")
        ends = np.searchsorted(train.user, train.user[rows], side="right")
        shape = (len(examples), self.count)
        drawn, log_q = np.empty(shape, np.int32), np.full(shape, np.nan)
        hit = np.ones(len(examples), np.bool_)
        for part in chunks(len(examples), self.size):
            some = examples.take(np.arange(part.start, part.stop))
            sequences = [
                train.position[begin:end]
                for begin, end in zip(begins[part], ends[part], strict=True)
            ]
            scores = self._without(some, train.user[rows[part]], folds)
            weights = None
            if scores is None:
                weights = self.scorer.weights_before(sequences, (rows - begins)[part].tolist())
            if scores is None and weights is None:
                proposed, _ = self._best(self.scorer.scores(some.histories(), self.filter_seen))
                places = [generator_of(e, seed, TRAIN).integers(self.count) for e in some]
                drawn[part] = as_trained(proposed, some, seed, TRAIN, np.array(places, np.int32))
                continue
            if weights is not None:
                if self.filter_seen:
                    weights[seen(some.histories())] = 0.0
                with np.errstate(divide="ignore"):
                    scores = np.log(weights / weights.sum(axis=1, keepdims=True))
            proposed, _ = self._best(scores)
            hit[part] = (proposed == some.targets[:, None]).any(axis=1)
            drawn[part] = as_trained(proposed, some, seed, TRAIN)
            log_q[part] = np.take_along_axis(scores, drawn[part].astype(np.int64), axis=1)
        return drawn, log_q, hit

    def _without(self, examples: Examples, users: Ints, folds: Sequence[Fold]) -> Doubles | None:
        """(E, N) scores by the retriever of all users but those of an example's fold."""
        if not folds:
            return None
        scores = np.empty((len(examples), self.size))
        for fold in folds:
            mine = np.flatnonzero(fold.users[users])
            if len(mine):
                histories = examples.take(mine).histories()
                scores[mine] = fold.scorer.scores(histories, self.filter_seen)
        return scores

    def write(self, path: Path, examples: Examples, seed: int, purpose: int) -> float:
        """Write the candidates of a split's examples, shuffled; the share that has the target."""
        proposed, log_q = self.propose(examples.histories())
        proposed, log_q = shuffled(proposed, log_q, examples, seed, purpose)
        write_candidates(path, proposed, log_q)
        return float((proposed == examples.targets[:, None]).any(axis=1).mean())

    def _best(self, scores: Doubles) -> tuple[Ints, npt.NDArray[np.float32]]:
        found, values = top_k(scores, self.count)
        if (found < 0).any():
            left = int((found >= 0).sum(axis=1).min())
            raise DataError(
                f"a user has {left} items left that {self.name} can propose, of {self.size} in "
                f"the catalog; {self.count} candidates are asked for. Lower data.candidates.count"
            )
        return found, values


def prepare_candidates(
    recipe: Recipe,
    folder: RunFolder,
    staging: Path,
    train: Interactions,
    catalog: Catalog,
    parts: dict[str, tuple[int, Examples]],
) -> dict[str, Any]:
    """Choose the recipe's retriever and write it and what it proposes into `staging`.

    `parts`: by name the splits that are proposed for, each with its purpose; one is `valid`.
    Returns how it was chosen and its recall in each split, the most that any reranker can hit.
    """
    retriever, described = CandidateRetriever.chosen(recipe, train, parts["valid"][1], catalog)
    write_json(staging / folder.retriever.name, described)
    recall = {
        part: retriever.write(staging / folder.candidates(part).name, examples, recipe.seed, number)
        for part, (number, examples) in parts.items()
    }
    told = ", ".join(f"{part} {share:.3f}" for part, share in recall.items())
    log.info(
        "prepare: candidates of %s, recall@%d (the ceiling): %s",
        retriever.name,
        retriever.count,
        told,
    )
    return {**described, f"recall@{retriever.count}": recall}


def _name_of(recipe: Recipe) -> str:
    candidates = recipe.data.candidates
    assert candidates is not None  # noqa: S101  callers ask first
    assert candidates.retriever is not None  # noqa: S101
    return candidates.retriever


def _refitted(recipe: Recipe, folder: RunFolder, train: Interactions, valid: Examples) -> Any:
    """The retriever of a prepared run, with its hyperparameters, fitted to `train`."""
    chosen = json.loads(folder.retriever.read_text("utf-8"))["chosen"]
    catalog, seen_out = Catalog.read(folder.items), recipe.decode.filter_seen
    search = search_of(recipe, catalog)
    name = _name_of(recipe)
    return refitted(name, chosen, train, valid, catalog, seen_out, recipe.seed, search)


def _retriever(recipe: Recipe, scorer: Any, catalog: Catalog) -> CandidateRetriever:
    assert recipe.data.candidates is not None  # noqa: S101  callers ask first
    count, filter_seen = recipe.data.candidates.count, recipe.decode.filter_seen
    return CandidateRetriever(_name_of(recipe), scorer, len(catalog), count, filter_seen)
