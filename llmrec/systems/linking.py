"""From the entries of raw histories to positions in the catalog, and what was noticed on the way.

An entry that is neither an item's id nor a title is an error, or is left out and counted. Knows no
model and no file.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from llmrec.data.catalog import Catalog
from llmrec.decoding.grounding import Entry, Grounder, How, LinkedItem
from llmrec.errors import DataError, LlmrecError

Items = npt.NDArray[np.int32]
Unknown = Literal["raise", "skip"]
LOOSE: tuple[How, ...] = ("fuzzy", "unknown")  # what somebody should be told of


@dataclass(frozen=True)
class Notice:
    """An entry of `user` that was taken for the item of `title`, or left out: then `title` is that
    of the nearest item, if there is one."""

    user: str
    entry: Entry
    how: How
    title: str | None

    def __str__(self) -> str:
        if self.how == "fuzzy":
            return f"{self.user}: {self.entry!r} is taken for {self.title!r}"
        near = f"; the nearest title is {self.title!r}" if self.title else ""
        return f"{self.user}: {self.entry!r} is unknown and left out{near}"


@dataclass
class Linker:
    """Looks up what histories hold; `counts` says how often which way was taken."""

    catalog: Catalog
    counts: Counter[How] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.grounder = Grounder(self.catalog)

    def positions(
        self, user: str, entries: Sequence[Entry], unknown: Unknown = "raise"
    ) -> tuple[Items, list[Notice]]:
        """(H,) positions of a history's entries in their order, and what was noticed.

        Raises DataError for a text in place of a list, an entry that could be two items, and, where
        `unknown` is "raise", one that is none, naming the nearest title.
        """
        if unknown not in get_args(Unknown):
            raise LlmrecError(f"unknown={unknown!r}: one of {', '.join(get_args(Unknown))}")
        if isinstance(entries, (str, bytes, Mapping)):  # else its letters would be the entries
            raise DataError(
                f"{user}: {entries!r} is no list of item ids or titles; write [{entries!r}]"
            )
        said = [entry if isinstance(entry, Mapping) else str(entry) for entry in entries]
        found = self.grounder.ground(said)
        for entry, hit in zip(said, found, strict=True):
            if hit.positions is not None:
                raise DataError(f"{user}: {self._ambiguous(entry, hit.positions)}")
        missing = [pair for pair in zip(said, found, strict=True) if pair[1].position < 0]
        if missing and unknown == "raise":
            raise DataError(f"{user}: {_no_item(*missing[0], len(missing))}")
        self.counts.update(hit.how for hit in found)
        notices = [
            Notice(user, entry, hit.how, hit.nearest)
            for entry, hit in zip(said, found, strict=True)
            if hit.how in LOOSE
        ]
        return np.array([h.position for h in found if h.position >= 0], np.int32), notices

    def _ambiguous(self, entry: Entry, positions: tuple[int, int]) -> str:
        by_id, by_title = positions
        return (
            f"{entry!r} is the id of one item ({self.catalog.titles[by_id]!r}) and the title of "
            f"another (item {self.catalog.item_ids[by_title]!r}); write "
            f"{json.dumps({'id': entry})} for the one, {json.dumps({'title': entry})} for the other"
        )


def _no_item(entry: Entry, hit: LinkedItem, count: int) -> str:
    near = f"; the nearest title is {hit.nearest!r}" if hit.nearest else ""
    several = f" ({count} unknown entries in all)" if count > 1 else ""
    return f"{entry!r} is neither an item id nor a title of the catalog{near}{several}"
