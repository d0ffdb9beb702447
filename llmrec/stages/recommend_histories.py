"""Recommend for histories from outside, or for everybody of the run's own log, nothing withheld.

Answers as they come, batch by batch, as rows or into a file. The test split is `recommend`'s.
"""

import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from llmrec import stopping
from llmrec.errors import DataError, RecipeError
from llmrec.recipe import Recipe
from llmrec.recipe.data import Data
from llmrec.runs.folder import RunFolder
from llmrec.runs.identity import combined
from llmrec.stages import prepare
from llmrec.systems.kept_answers import require_form, write_answers
from llmrec.systems.linking import Unknown
from llmrec.systems.raw_histories import (
    RawRequest,
    as_they_come,
    in_batches,
    read_file,
    read_histories,
    read_items,
)

if TYPE_CHECKING:
    from llmrec.systems.recommender import Recommender

log = logging.getLogger("llmrec")
Batches = Iterable[list[RawRequest]]


@dataclass(frozen=True)
class Wanted:
    """What is asked of each history: see `Recommender.recommend`; `candidates` and `exclude` are
    files that `raw_histories.read_items` reads."""

    top_k: int = 10
    coverage: float | None = None
    system: str | None = None
    candidates: Path | None = None
    exclude: Path | None = None
    unknown: Unknown = "raise"


def of_lines(recipe: Recipe, lines: Iterable[str] | Path) -> Batches:
    """Histories of a file, Parquet or JSON lines, or of lines of JSON from a pipe.

    A line is a list of item ids or titles, or {"user": ..., "history": [...]}, with "candidates"
    where the answer is to be one of some.
    """
    if isinstance(lines, Path):
        return in_batches(read_file(lines), recipe.decode.batch_size)
    return as_they_come(read_histories(lines), recipe.decode.batch_size)


def of_everybody(recipe: Recipe, folder: RunFolder) -> Batches:
    """Everybody's whole history in the log that the run was prepared from, targets included.

    The log is read from its source again, as not every split keeps all of it. Raises DataError
    where that is gone or was changed, and for a run that is not prepared.
    """
    manifest = prepare.verified_manifest(folder.data)
    if manifest is None:
        raise DataError(f"{folder.data} holds no prepared data; run `llmrec prepare` first")
    said = manifest["settings"]
    data = Data.model_validate(said["data"])
    rows, catalog = prepare.ordered_log(data, said["seed"], manifest["sources"])
    bounds = np.flatnonzero(np.diff(rows.user, prepend=-1, append=-1))
    ids = catalog.item_ids

    def requests() -> Iterator[RawRequest]:
        for first, end in pairwise(bounds.tolist()):
            history = [{"id": ids[position]} for position in rows.position[first:end]]
            yield RawRequest(rows.user_ids[rows.user[first]], history, [])

    return in_batches(requests(), recipe.decode.batch_size)


def tables(
    recipe: Recipe, folder: RunFolder, batches: Batches, wanted: Wanted
) -> Iterator[pa.Table]:
    """Recommendations for each batch of histories; what stands before a bad line is answered."""
    with Answers(recipe, folder, wanted) as answers:
        for batch in batches:
            stopping.check()
            yield answers.to(batch)


def write(
    recipe: Recipe, folder: RunFolder, batches: Batches, wanted: Wanted, out: Path
) -> dict[str, Any]:
    """Write recommendations for all histories into one file, Parquet or CSV by its name, and put
    it in place as a whole; interrupted, the same call goes on behind the last user answered.

    Raises RecipeError for another name, DataError where there is no history.
    """
    require_form(out)
    begun = time.monotonic()
    with Answers(recipe, folder, wanted) as answers:
        users, before, rows = write_answers(batches, answers.to, out, lambda: answers.key)
    seconds = round(time.monotonic() - begun, 1)
    said = {"file": str(out), "users": users, "rows": rows, "seconds": seconds}
    return {**said, "answered_before": before} if before else said


class Answers:
    """A run's answers to batches of histories, and at the end what is told of their entries."""

    def __init__(self, recipe: Recipe, folder: RunFolder, wanted: Wanted) -> None:
        self.recipe, self.folder, self.wanted = recipe, folder, wanted
        self.candidates, self.exclude = (
            None if path is None else read_items(path, flag)
            for path, flag in ((wanted.candidates, "--candidates"), (wanted.exclude, "--exclude"))
        )
        self._made: Recommender | None = None

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._made is not None:
            _tell(self._made)

    @property
    def recommender(self) -> "Recommender":
        """Made once there is a request: a file that is not there is told before torch is loaded."""
        if self._made is None:
            from llmrec.systems.recommender import Recommender

            self._made = Recommender(self.recipe, self.folder, self.wanted.system)
        return self._made

    @property
    def key(self) -> str:
        """SHA-256 of all that the answers rest on."""
        told = {"top_k": self.wanted.top_k, "coverage": self.wanted.coverage}
        told |= {"unknown": self.wanted.unknown, "system": self.recommender.system.name}
        told |= {"candidates": self.candidates, "exclude": self.exclude}
        return combined([json.dumps([told, self.recommender.rests_on], sort_keys=True)])

    def to(self, batch: list[RawRequest]) -> pa.Table:
        """The rows of some users, one user after the other."""
        own = [request.candidates for request in batch] if batch[0].candidates else None
        if own is not None and self.candidates is not None:
            raise RecipeError(
                "--candidates is for histories without candidates; these have their own"
            )
        return self.recommender.recommend(
            [request.history for request in batch],
            self.wanted.top_k,
            [request.user for request in batch],
            self.wanted.coverage,
            own or self.candidates,
            exclude=self.exclude,
            unknown=self.wanted.unknown,
        )


def _tell(recommender: "Recommender") -> None:
    counts = recommender.linker.counts
    if counts["unknown"] or counts["fuzzy"]:
        log.warning(
            "recommend: of %d entries %d are unknown and were left out, %d were taken for the "
            "title most like them",
            counts.total(),
            counts["unknown"],
            counts["fuzzy"],
        )
