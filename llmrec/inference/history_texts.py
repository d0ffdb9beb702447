"""Histories as one text each: vectors of what a user had chosen, read as a whole.

The paper's way (AdaptRec, arXiv 2504.08786), beside the mean of the items' vectors. Titles are read
one behind the other, oldest first, by the untuned language model (mean token state) or by a
sentence encoder; the mean over all training states is taken off, as all texts point the same way.
"""

import logging
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.data.catalog import Catalog
from llmrec.data.records import Ints
from llmrec.recipe import Recipe
from llmrec.retrieval.retriever import WholeHistories
from llmrec.retrieval.snapshots import NOTHING, Snapshots
from llmrec.retrieval.vectors import unit
from llmrec.runs import made
from llmrec.runs.folder import RunFolder

log = logging.getLogger("llmrec")
Floats = npt.NDArray[np.float32]
BETWEEN = "; "


class HistoryTexts:
    """Reads the histories of a run; what reads them is loaded when it is first needed."""

    def __init__(self, recipe: Recipe, folder: RunFolder, snapshots: Snapshots) -> None:
        assert recipe.demonstrations is not None  # noqa: S101  callers ask first
        self.recipe, self.folder, self.snapshots = recipe, folder, snapshots
        self.similarity = recipe.demonstrations.similarity
        self._known: dict[bytes, Floats] = {}  # queries are asked about more than once

    def whole(self) -> WholeHistories:
        """The training states and what embeds queries like them."""
        raw = self._kept()
        mean = raw.mean(axis=0)
        return WholeHistories(unit(raw - mean), lambda windows: self._embedded(windows, mean))

    def of(self, snapshots: Snapshots) -> WholeHistories:
        """The same for states that are not those of training."""
        raw = self._read(snapshots.windows)
        mean = raw.mean(axis=0)
        return WholeHistories(unit(raw - mean), lambda windows: self._embedded(windows, mean))

    def _kept(self) -> Floats:
        """(M, d) of the training states, kept in the run."""
        artifact = made.histories(self.recipe, self.folder)
        if artifact.facts_or_none() is None:
            log.info("retrieve: reading %d histories", len(self.snapshots))
            found, staged = self._read(self.snapshots.windows), artifact.staged()
            with staged.open("wb") as stream:
                np.save(stream, found)
            artifact.seal(staged)
        kept: Floats = np.load(artifact.place, allow_pickle=False)
        return kept

    def _embedded(self, windows: Ints, mean: Floats) -> Floats:
        """(Q, d) of length 1; zeros for an empty history."""
        keys = [window.tobytes() for window in windows]
        fresh = [row for row, key in enumerate(keys) if key not in self._known]
        fresh = [row for row in fresh if (windows[row] != NOTHING).any()]
        if fresh:
            found = self._read(windows[fresh])
            self._known |= {keys[row]: raw for row, raw in zip(fresh, found, strict=True)}
        found = np.zeros((len(windows), len(mean)), np.float32)
        for row, key in enumerate(keys):
            if key in self._known:
                found[row] = unit(self._known[key] - mean)
        return found

    def _read(self, windows: Ints) -> Floats:
        """(Q, d) raw vectors of histories, each different one read once."""
        different, at = np.unique(windows, axis=0, return_inverse=True)
        titles = self._catalog.titles
        texts = [
            BETWEEN.join(titles[position] for position in window[window != NOTHING].tolist())
            for window in different
        ]
        found: Floats = self._reader(texts)[at.reshape(-1)]
        return found

    @cached_property
    def _catalog(self) -> Catalog:
        return Catalog.read(self.folder.items)

    @cached_property
    def _reader(self) -> Any:
        from llmrec.inference.title_states import sentence_reader, state_reader

        if self.similarity.vectors == "states":
            return state_reader(self.recipe, self._catalog)
        return sentence_reader(self.similarity.encoder)
