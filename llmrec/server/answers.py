"""A run that stays loaded: what its systems answer, its items by words, how an answer came about.

Systems share what they load; each but the first is loaded when it is first asked. Knows no HTTP.
"""

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from rapidfuzz import fuzz, process

from llmrec.decoding.grounding import normalised
from llmrec.recipe import Recipe
from llmrec.runs.folder import RunFolder
from llmrec.systems.recommender import Recommender, served
from llmrec.systems.serving import Requests

Items = npt.NDArray[np.int32]
LIKE = 200_000  # titles, at most, that are searched for words of like letters


@dataclass(frozen=True)
class Ask:
    """What requests that are answered together have in common; `closed`: the bytes of the int32
    positions that nobody is given. `explain`: not a list is wanted but how it comes about."""

    system: str
    top_k: int
    closed: bytes = b""
    explain: bool = False


class Answers:
    """The systems of a run, ready to answer."""

    def __init__(self, recipe: Recipe, folder: RunFolder, systems: Sequence[str] = ()) -> None:
        """`systems`: those to serve, the first by default; else the one trained furthest and those
        of the recipe that the run can answer with. Raises LlmrecError for one that it cannot."""
        self.first = Recommender(recipe, folder, systems[0] if systems else None)
        there = set(served(recipe, folder))
        names = list(systems) or [
            self.first.system.name,
            *(s for s in recipe.systems if s in there),
        ]
        self.systems = list(dict.fromkeys(names))
        self._loaded = {self.first.system.name: self.first}
        for name in systems[1:]:
            self._of(name)
        self.recipe, self.folder, self.catalog = recipe, folder, self.first.catalog
        self.linker = self.first.linker
        self.linker.grounder.ground([""])  # what lookups need is made now, not in a request
        self.search("a", 1)

    def answer(self, ask: Hashable, histories: Sequence[Items]) -> list[dict[str, Any]]:
        """For each history `items` and the seconds that all took (`computed`), or what explains."""
        assert isinstance(ask, Ask)  # noqa: S101
        begun = time.perf_counter()
        recommender = self._of(ask.system)
        closed = np.frombuffer(ask.closed, np.int32) if ask.closed else None
        if ask.explain:
            return [
                {"explained": recommender.explain(Requests([one], closed=closed), ask.top_k)}
                for one in histories
            ]
        rankings = recommender.rank(Requests(list(histories), closed=closed), ask.top_k)
        computed = time.perf_counter() - begun
        return [
            {
                "computed": computed,
                "items": [
                    {"rank": rank, "score": float(score), **self.item(int(position))}
                    for rank, (position, score) in enumerate(
                        zip(r.positions, r.scores, strict=True), 1
                    )
                ],
            }
            for r in rankings
        ]

    def scored_by(self, system: str) -> str:
        """What the scores of a system are."""
        return self._of(system).system.scored_by

    def item(self, position: int) -> dict[str, str]:
        """An item's id and title."""
        return {"item_id": self.catalog.item_ids[position], "title": self.catalog.titles[position]}

    def search(self, words: str, limit: int) -> list[dict[str, str]]:
        """Items by their id, or by words of their titles, those that begin so first; where there is
        none, of a catalog that is not large, those of like letters."""
        key = normalised(words)
        own = self.catalog.position_of.get(words.strip())
        found = [] if own is None else [own]
        if key:
            found += self._within(key, limit)
        if key and not found and len(self._titles) <= LIKE:
            like = process.extract(
                key, self._titles, scorer=fuzz.partial_ratio, limit=limit, score_cutoff=75
            )
            found += [place for _, _, place in like]
        return [self.item(p) for p in dict.fromkeys(found)][:limit]

    def _within(self, key: str, limit: int) -> list[int]:
        """Items whose titles are some words, begin so, or hold them, at a word or anywhere."""
        whole, begins, word, anywhere = [], [], [], []
        for place, title in enumerate(self._titles):
            if key not in title:
                continue
            if title == key:
                kind = whole
            elif title.startswith(key):
                kind = begins
            else:
                kind = word if f" {key}" in title else anywhere
            if len(kind) < limit:
                kind.append(place)
        return [*whole, *begins, *word, *anywhere][:limit]

    @cached_property
    def _titles(self) -> list[str]:
        return [normalised(title) for title in self.catalog.titles]

    def _of(self, system: str) -> Recommender:
        if system not in self._loaded:
            self._loaded[system] = self.first.with_system(system)
        return self._loaded[system]
