"""Grounding: from what somebody wrote to the item that is meant.

An item id or an exact title (said to be the one or the other where it could be both), a title equal
after case, accents and punctuation are taken away, or the nearest title by edit distance if it is
near enough. Knows no model.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rapidfuzz import fuzz, process

from llmrec.data.catalog import Catalog, clean_title, normal_id
from llmrec.data.texts import positions_of

How = Literal["item_id", "exact", "normalised", "fuzzy", "ambiguous", "unknown"]
Entry = str | Mapping[str, str]  # an item id or a title; {"id": ...} or {"title": ...}
NEAR_ENOUGH = 90.0  # of 100; one wrong letter in a title of ten


@dataclass(frozen=True)
class LinkedItem:
    """`position` of the item meant, -1 if unknown; `how` it was found; the `nearest` title.

    `ambiguous`: the entry is the id of the item at `positions[0]` and the title of that at
    `positions[1]`.
    """

    position: int
    how: How
    nearest: str | None = None
    positions: tuple[int, int] | None = None


class Grounder:
    """Looks up entries in one catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def ground(self, entries: Sequence[Entry]) -> list[LinkedItem]:
        """The item meant by each entry."""
        return [self._one(entry) for entry in entries]

    def knows(self, said: Entry) -> bool:
        """Whether an entry is an id or a title to the letter, so that nothing is searched."""
        if isinstance(said, str):
            return self._exactly(said) >= 0 or normal_id(said) in self.catalog.position_of
        return "id" in said or self._exactly(said["title"]) >= 0

    def _one(self, said: Entry) -> LinkedItem:
        if not isinstance(said, str):
            if "title" in said:
                return self._titled(said["title"])
            position = self.catalog.position_of.get(normal_id(said["id"]), -1)
            return LinkedItem(position, "unknown" if position < 0 else "item_id")
        by_id = self.catalog.position_of.get(normal_id(said), -1)
        by_title = self._exactly(said)
        if by_id >= 0 and by_title not in (-1, by_id):
            return LinkedItem(-1, "ambiguous", positions=(by_id, by_title))
        return self._titled(said) if by_id < 0 else LinkedItem(by_id, "item_id")

    def _titled(self, entry: str) -> LinkedItem:
        position = self._exactly(entry)
        if position >= 0:
            return LinkedItem(position, "exact")
        key = normalised(entry)
        if len(self._normalised.get(key, ())) == 1:
            return LinkedItem(self._normalised[key][0], "normalised")
        hit = process.extractOne(key, list(self._normalised), scorer=fuzz.ratio) if key else None
        if hit is None:
            return LinkedItem(-1, "unknown")
        nearest = self._normalised[hit[0]]
        title = self.catalog.titles[nearest[0]]
        if hit[1] >= NEAR_ENOUGH and len(nearest) == 1:
            return LinkedItem(nearest[0], "fuzzy", title)
        return LinkedItem(-1, "unknown", title)

    def _exactly(self, said: str) -> int:
        """The item of a title or a raw title; a raw title of several items is no answer: -1."""
        position = self._titles.get(said, -1)
        return position if position >= 0 else self._raw_titles.get(said, -1)

    @cached_property
    def _titles(self) -> Mapping[str, int]:
        return positions_of(self.catalog.titles)

    @cached_property
    def _raw_titles(self) -> Mapping[str, int]:
        return positions_of(self.catalog.raw_titles, single=True)

    @cached_property
    def _normalised(self) -> dict[str, list[int]]:
        keys: dict[str, list[int]] = {}
        for position, title in enumerate(self.catalog.titles):
            keys.setdefault(normalised(title), []).append(position)
        return keys


def normalised(title: str) -> str:
    """Lower case, no accents, letters and digits only, words one space apart, articles in front."""
    plain = unicodedata.normalize("NFKD", clean_title(title)).casefold()
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return " ".join(re.findall(r"\w+", plain))
