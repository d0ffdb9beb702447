"""Similar users for every prompt: found once, stored with where each title comes from.

The states of training users are indexed, one for each of their choices; a prompt is given those
that ended strictly before its own time, and none of its own user. Whoever finds none is shown none,
and counted.
"""

import hashlib
import logging
from functools import cached_property

import numpy as np
import numpy.typing as npt

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples, Interactions
from llmrec.errors import DataError, RecipeError
from llmrec.inference.history_texts import HistoryTexts
from llmrec.inference.pools import Neighbour, Pools
from llmrec.recipe import Recipe
from llmrec.recipe.demonstrations import Demonstrations
from llmrec.retrieval.index import VectorIndex
from llmrec.retrieval.retriever import Neighbours, Retriever, WholeHistories, random_neighbours
from llmrec.retrieval.snapshots import NOTHING, Queries, Snapshots, queries_of, snapshots_of
from llmrec.retrieval.vectors import cooccurrence_factors, window_vectors
from llmrec.runs import made
from llmrec.runs.artifact import Artifact
from llmrec.runs.folder import RunFolder

log = logging.getLogger("llmrec")
UNTOLD = -1  # the source row of what a leaky prompt shows


class SimilarUsers:
    """Finds similar users as the recipe's section `demonstrations` says, in a prepared run."""

    def __init__(self, recipe: Recipe, folder: RunFolder) -> None:
        assert recipe.demonstrations is not None  # noqa: S101  callers ask first
        self.recipe, self.folder, self.wanted = recipe, folder, recipe.demonstrations
        if self.wanted.leaks and not folder.of_study:
            raise RecipeError(
                "demonstrations.by leaky shows what other users of the same split chose next, so "
                "its figures are of no use but to compare with; run it as an arm of `llmrec "
                "study`, or take retrieval"
            )
        self.interactions = Interactions.read(folder.interactions)
        self.snapshots = snapshots_of(
            self.interactions, self.wanted.history, self.wanted.similarity.every
        )
        self._retriever: Retriever | None = None

    def of(self, split: str, examples: Examples) -> Pools:
        """The pools of a split's examples; read where they stand, by these settings, found else."""
        artifact = made.pools(self.recipe, self.folder, split, _hash_of(examples))
        return self._kept(artifact, split, examples, self.wanted.pool)

    def voters(self, split: str, examples: Examples) -> Pools:
        """Those whose votes are counted for a split's examples; kept as `of` keeps its pools."""
        artifact = made.voters(self.recipe, self.folder, split, _hash_of(examples))
        return self._kept(artifact, split, examples, self.wanted.votes.users)

    def _kept(self, artifact: Artifact, split: str, examples: Examples, count: int) -> Pools:
        if artifact.facts_or_none() is not None:
            return Pools.read(artifact.place)
        log.info("retrieve: %d similar users of %d %s examples", count, len(examples), split)
        pools = self.find(examples, count)
        artifact.write(pools.write)
        return pools

    def find(self, examples: Examples, count: int | None = None) -> Pools:
        """The pools of any examples; a user id that training does not know is nobody's own.

        `count` users of each, by default as many as are shown or selected from.
        """
        count = self.wanted.pool if count is None else count
        if self.wanted.leaks:
            return leaky_pools(self, examples, count)
        queries = self.queries(examples)
        if self.wanted.by == "random":
            found = random_neighbours(self.snapshots, queries, count, self.recipe.seed)
        else:
            found = self.retriever.retrieve(queries, count)
        return self._pools(examples, found)

    def queries(self, examples: Examples) -> Queries:
        """The examples as the retriever takes them."""
        return queries_of(
            examples.user_ids,
            examples.histories(),
            examples.timestamps,
            self.interactions,
            self.wanted.history,
        )

    @property
    def vectors(self) -> npt.NDArray[np.float32]:
        """(N, d) the recipe's vectors of the catalog's items."""
        return item_vectors(self.recipe, self.folder, self.wanted.similarity.vectors)

    @property
    def retriever(self) -> Retriever:
        """The retriever over the recipe's vectors, its index read where it stands."""
        if self._retriever is None:
            vectors = self.vectors
            self._retriever = Retriever(
                self.snapshots,
                vectors,
                self.wanted.similarity.weights.model_dump(),
                self.wanted.similarity.coarse,
                self._index(vectors),
                self.whole,
            )
        return self._retriever

    @cached_property
    def texts(self) -> HistoryTexts | None:
        """What reads histories as one text each; None where they are the mean of their items."""
        if self.wanted.similarity.embed == "items":
            return None
        return HistoryTexts(self.recipe, self.folder, self.snapshots)

    @cached_property
    def whole(self) -> WholeHistories | None:
        """What whole histories are searched by; None where that is the mean of their items."""
        return None if self.texts is None else self.texts.whole()

    def _index(self, vectors: npt.NDArray[np.float32]) -> VectorIndex:
        """The index of all states; one of other data or vectors is built anew."""
        artifact = made.index(self.recipe, self.folder)
        place, fingerprint = artifact.place, artifact.fingerprint
        if place.exists():
            try:
                return VectorIndex.read(place, fingerprint)
            except DataError as error:
                log.warning("retrieve: building the index anew (%s)", error)
        whole = self.whole
        searched = (
            window_vectors(self.snapshots.windows, vectors) if whole is None else whole.snapshots
        )
        index = VectorIndex.build(searched)
        index.write(place, fingerprint)
        return index

    def _pools(self, examples: Examples, found: Neighbours) -> Pools:
        names, source = self.interactions.user_ids, self.interactions.source_row
        neighbours = [
            [
                Neighbour(
                    str(names[self.snapshots.user[at]]),
                    self.snapshots.history(at),
                    int(self.snapshots.chosen[at]),
                    source[self.snapshots.rows(at)],
                    float(score),
                )
                for at, score in zip(row.tolist(), scores.tolist(), strict=True)
                if at >= 0
            ]
            for row, scores in zip(found.snapshot, found.score, strict=True)
        ]
        return Pools(examples.user_ids, examples.timestamps, neighbours)


def item_vectors(recipe: Recipe, folder: RunFolder, kind: str) -> npt.NDArray[np.float32]:
    """(N, d) vectors of the catalog's items of a kind that `Similarity.vectors` names.

    Kept in the run folder, as a language model or an encoder takes its time.
    """
    artifact = made.vectors(recipe, folder, kind)
    if artifact.facts_or_none() is not None:
        kept: npt.NDArray[np.float32] = np.load(artifact.place, allow_pickle=False)
        return kept
    catalog = Catalog.read(folder.items)
    log.info("retrieve: %s of %d items", kind, len(catalog))
    if kind == "factors":
        vectors = cooccurrence_factors(Interactions.read(folder.interactions), len(catalog))
    else:
        from llmrec.inference.title_states import sentence_vectors, state_vectors

        wanted = recipe.demonstrations or Demonstrations()
        vectors = (
            state_vectors(recipe, catalog)
            if kind == "states"
            else sentence_vectors(wanted.similarity.encoder, catalog.titles)
        )
    with artifact.staging() as staged:
        with staged.open("wb") as stream:
            np.save(stream, vectors)
        artifact.seal(staged)
    return vectors


def leaky_pools(finder: SimilarUsers, examples: Examples, count: int) -> Pools:
    """Users found among the examples themselves, what they chose next included, whatever the time.

    As the authors of AdaptRec do it, for comparison: a test prompt then shows other users' labels.
    The query's own user is left out. No source rows are told, as targets have none in training.
    """
    asked = finder.queries(examples)
    names = np.unique(examples.user_ids.astype(str), return_inverse=True)[1]
    rows = np.flatnonzero(asked.windows[:, -1] != NOTHING)
    none = np.zeros(len(rows), np.int64)
    snapshots = Snapshots(
        names[rows].astype(np.int32), asked.windows[rows], examples.targets[rows], none, rows
    )
    similarity = finder.wanted.similarity
    retriever = Retriever(
        snapshots,
        finder.vectors,
        similarity.weights.model_dump(),
        similarity.coarse,
        whole=None if finder.texts is None else finder.texts.of(snapshots),
    )
    queries = Queries(names.astype(np.int32), asked.windows, np.ones(len(asked), np.int64))
    found = retriever.retrieve(queries, count)
    neighbours = [
        [
            Neighbour(
                str(examples.user_ids[rows[at]]),
                snapshots.history(at),
                int(snapshots.chosen[at]),
                np.full(len(snapshots.history(at)) + 1, UNTOLD),
                float(score),
            )
            for at, score in zip(row.tolist(), scores.tolist(), strict=True)
            if at >= 0
        ]
        for row, scores in zip(found.snapshot, found.score, strict=True)
    ]
    return Pools(examples.user_ids, examples.timestamps, neighbours)


def shortfalls(pools: Pools, examples: Examples, wanted: int) -> dict[str, int]:
    """How many prompts show fewer similar users than wanted, none at all, or have no history."""
    counts = np.array([len(found) for found in pools.neighbours], np.int64)
    lengths = np.diff(examples.offsets)
    fewer = (counts > 0) & (counts < wanted)
    return {
        "prompts": len(counts),
        "fewer_users": int(fewer.sum()),
        "no_users": int((counts == 0).sum()),
        "empty_history": int((lengths == 0).sum()),
    }


def _hash_of(examples: Examples) -> str:
    """SHA-256 of what is asked."""
    asked = hashlib.sha256()
    for part in (examples.offsets, examples.positions, examples.targets, examples.timestamps):
        asked.update(np.ascontiguousarray(part).tobytes())
    return asked.hexdigest()
