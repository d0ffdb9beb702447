"""What the file beside the interactions says of items, and whether the two join.

Knows nothing of file layouts or of users.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.records import ITEM_ID, TITLE, Bools
from llmrec.data.sources.layouts import BRAND, GENRES, YEAR, Layout, TableFile, available
from llmrec.data.sources.rows import BadRows, printable
from llmrec.data.sources.tables import blocks_of, kept_rows
from llmrec.data.sources.values import as_text, has_text, identifiers
from llmrec.errors import DataError

Texts = npt.NDArray[np.object_]

# MovieLens-100K has a column of 0 or 1 for each genre, in this order; the first is "unknown".
_FLAGGED = (
    "",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
FLAGS = tuple(f"genre_{number}" for number in range(len(_FLAGGED)))

# Shares of the items without a row in the items file from which it is said, and refused.
SAID, REFUSED = 0.01, 0.95
_COMPARED = 1000  # items that a rule is tried on

_RELEASE = re.compile(r"(?:1[89]|20)\d\d(?:\.0+)?")
_VIDEO_MARK = re.compile(r"(\((?:1[89]|20)\d\d\)) \((?:V|TV)\)\s*$")  # IMDb's, behind the year


@dataclass(frozen=True)
class About:
    """What an items file says of I items: `titles`, `brands` and `genres` (I,), "" where nothing;
    how many items have no row, and how many rows repeat an id."""

    titles: Texts
    brands: Texts
    genres: Texts
    untitled: int
    repeated: int


def item_titles(layout: Layout, item_ids: Texts, bad: BadRows) -> About:
    """What is said of the items.

    An item's title is that of its first row that has one. DataError where next to no item has a
    row: the ids of the two files are not written alike.
    """
    file = layout.items
    assert file is not None  # noqa: S101  the caller has looked
    titles = np.full(len(item_ids), "", dtype=object)
    brands, genres = titles.copy(), titles.copy()
    known = np.zeros(len(item_ids), dtype=np.bool_)
    titled = known.copy()
    wanted = pa.array(item_ids, pa.string())
    rows_in_all = 0
    for block in blocks_of(file, bad):
        ids, bad_ids = identifiers(block.columns[ITEM_ID])
        keep = kept_rows(file, block, {ITEM_ID: bad_ids}, bad)
        position = pc.index_in(ids.cast(pa.string()), wanted).fill_null(-1).to_numpy(False)
        rows = np.flatnonzero(keep & (position >= 0))
        rows_in_all += len(rows)
        known[position[rows]] = True
        rows = rows[has_text(block.columns[TITLE].take(pa.array(rows)))]
        _, first = np.unique(position[rows], return_index=True)
        fresh = rows[first]
        fresh = fresh[~titled[position[fresh]]]
        titled[position[fresh]] = True
        chosen = pa.array(fresh)
        texts = {
            role: as_text(block.columns[role].take(chosen)).fill_null("").to_pylist()
            for role in (TITLE, YEAR, BRAND, GENRES, *FLAGS)
            if role in file.columns
        }
        found = texts[TITLE]
        if YEAR in texts:
            found = [_with_year(*pair) for pair in zip(found, texts[YEAR], strict=True)]
        if layout.format in ("movielens", "recbole"):
            found = [_VIDEO_MARK.sub(r"\1", title) for title in found]
        titles[position[fresh]] = found
        if BRAND in texts:
            brands[position[fresh]] = texts[BRAND]
        if GENRES in texts:
            genres[position[fresh]] = texts[GENRES]
        elif set(FLAGS) <= set(texts):
            flags = zip(*(texts[flag] for flag in FLAGS), strict=True)
            genres[position[fresh]] = ["|".join(_flagged(row)) for row in flags]
    missing = int(np.count_nonzero(~known))
    if len(item_ids) and missing > SAID * len(item_ids):
        said = _how_they_differ(file, item_ids, known)
        if missing >= REFUSED * len(item_ids):
            raise DataError(
                f"{said} Write the ids alike in both files, or name the interactions' own file in "
                "data.source to go on without titles."
            )
        bad.notice(f'{said} They are called "Untitled item ...".')
    return About(titles, brands, genres, missing, rows_in_all - (len(item_ids) - missing))


def _how_they_differ(file: TableFile, item_ids: Texts, known: Bools) -> str:
    """How many items have no row, ids of both files, and the rule under which they would match."""
    missing = item_ids[~known].tolist()
    theirs = _ids(file, file.columns[ITEM_ID])
    ours = set(item_ids.tolist())
    others = [text for text in theirs if text not in ours] or list(theirs)
    said = (
        f"{len(missing)} of {len(item_ids)} items ({len(missing) / len(item_ids):.0%}) have no row "
        f"in {file.path.name}: the interactions have {_two(missing)}, {file.path.name} has "
        f"{_two(others)}."
    )
    sample = missing[:: max(len(missing) // _COMPARED, 1)]
    for words, rule in _RULES:
        forms = {form for form in map(rule, theirs) if form}
        if 2 * sum(rule(text) in forms for text in sample) >= len(sample):
            return f"{said} {words} they would match."
    for name in available(file):
        if name != file.columns[ITEM_ID] and name in _holding(file, name, sample):
            return f"{said} Column {name!r} of {file.path.name} has them; name it as item_id."
    return said


_RULES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("Without leading zeros", lambda text: text.lstrip("0") or "0"),
    ("In lower case", str.casefold),
    ("Without quotes and brackets", lambda text: text.strip("\"'[](){}<>` ")),
    ("By their digits alone", lambda text: re.sub(r"[^0-9]", "", text)),
    (
        "By their digits alone and without leading zeros",
        lambda text: re.sub(r"[^0-9]", "", text).lstrip("0"),
    ),
)


def _holding(file: TableFile, name: str, sample: list[str]) -> list[str]:
    """The column's name, if most of the ids are found in it."""
    try:
        found = _ids(file, name)
    except DataError:  # of a type that holds no ids
        return []
    return [name] if 2 * sum(text in found for text in sample) >= len(sample) else []


def _ids(file: TableFile, column: str) -> dict[str, None]:
    """All ids of a column, in its order; the bad ones have been told of before."""
    ids: dict[str, None] = {}
    for block in blocks_of(replace(file, columns={ITEM_ID: column}), BadRows()):
        found, wrong = identifiers(block.columns[ITEM_ID])
        if len(wrong) < len(found):
            ids |= dict.fromkeys(found.dictionary.to_pylist())
    return ids


def _two(ids: list[str]) -> str:
    return " and ".join(printable(text) for text in ids[:2]) or "none"


def _flagged(flags: tuple[str, ...]) -> list[str]:
    return [name for name, flag in zip(_FLAGGED, flags, strict=True) if name and flag == "1"]


def _with_year(title: str, year: str) -> str:
    """Title and release year as GroupLens writes them, "Toy Story (1995)"."""
    if not _RELEASE.fullmatch(year) or title.rstrip().endswith(f"({year[:4]})"):
        return title
    return f"{title} ({year[:4]})"
