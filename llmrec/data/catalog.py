"""The Catalog: all recommendable items in a fixed order, each with one title of its own.

Cleans titles (`clean_title`) and makes equal ones unique by a recorded rule (`build_catalog`).
Knows nothing of users or of tokens.
"""

import html
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data.files import replacing, sha256_of
from llmrec.data.mapped import Arrays, MappedArrays
from llmrec.data.records import ITEM_ID, TITLE, Ints, Longs
from llmrec.data.texts import Texts, positions_of

RAW_TITLE, TITLE_RULE, GENRES = "raw_title", "title_rule", "genres"
MAX_TITLE_CHARS = 200
LARGE = 50_000  # items whose texts processes had better share
_COLUMNS = (ITEM_ID, TITLE, RAW_TITLE, TITLE_RULE, GENRES)
_ORDERED = (ITEM_ID, TITLE, RAW_TITLE)  # those that are looked for
_FILES = MappedArrays(
    "catalog",
    {f"{name}-content": np.uint8 for name in _COLUMNS}
    | {f"{name}-offsets": np.int64 for name in _COLUMNS}
    | {f"{name}-order": np.int32 for name in _ORDERED},
)

# How a title came to be; the last three are suffixes that keep two equal titles apart.
AS_GIVEN, CLEANED, UNTITLED = "as_given", "cleaned", "untitled"
YEAR_SUFFIX, BRAND_SUFFIX, NUMBER_SUFFIX = "year_suffix", "brand_suffix", "number_suffix"

_MAX_BRAND_CHARS = 40
_ARTICLES = "The|A|An|Le|La|Les|L'|Un|Une|Il|Der|Die|Das|Det|El|Los|Las"
_TRAILING_ARTICLE = re.compile(rf"(\S.*), ({_ARTICLES})")
_BRACKETS = re.compile(r"\(([^()]*)\)")
_YEAR = re.compile(r"(.*\S) \((1[89]\d\d|20\d\d)\)")
_ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,31}|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});")
_JOINERS = "\u200c\u200d"  # letters of Persian and Indic scripts and emoji need them inside
_DROPPED = ("Cc", "Cf", "Co", "Cs")  # control, format (bidi, tags, BOM), private use, surrogate
_POINTED = re.compile(r"[+-]?[0-9]+\.0+")
_INTEGER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class Catalog:
    """N items: `item_ids`, `titles` (clean, unique) and `raw_titles` (as the data had them).

    `title_rules` says how each title came to be, or is empty where nobody recorded it; `genres`
    what the data say of each item, or is empty where they say nothing of any. Read from a file they
    are tuples, or where there are LARGE or more `Texts` that all processes have mapped.
    """

    item_ids: Sequence[str]
    titles: Sequence[str]
    raw_titles: Sequence[str]
    title_rules: Sequence[str] = ()
    genres: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def position_of(self) -> Mapping[str, int]:
        """item_id -> position."""
        return positions_of(self.item_ids)

    def titles_at(self, positions: Sequence[int] | Ints) -> list[str]:
        """Titles of the given positions, in their order."""
        return [self.titles[p] for p in positions]

    def write(self, path: Path) -> None:
        """Write as Parquet: item_id, title, raw_title, title_rule, genres; a row is a position."""
        columns = {ITEM_ID: self.item_ids, TITLE: self.titles, RAW_TITLE: self.raw_titles}
        if self.title_rules:
            columns[TITLE_RULE] = self.title_rules
        if self.genres:
            columns[GENRES] = self.genres
        table = pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns]))
        with replacing(path) as temporary:
            pq.write_table(table, temporary)

    @staticmethod
    def read(path: Path) -> "Catalog":
        """Read what `write` wrote; texts that are shared lie in a folder beside, `items`."""
        if pq.read_metadata(path).num_rows >= LARGE:
            folder = path.with_suffix("")
            return _of_arrays(_FILES.shared(folder, sha256_of(path), lambda: _arrays_of(path)))
        table = pq.read_table(path)
        there = table.column_names
        return Catalog(*(tuple(table[n].to_pylist()) if n in there else () for n in _COLUMNS))


def build_catalog(
    item_ids: Sequence[str],
    raw_titles: Sequence[str],
    brands: Sequence[str] | None = None,
    *,
    year_in_title: bool = True,
    max_title_chars: int = MAX_TITLE_CHARS,
    genres: Sequence[str] | None = None,
) -> Catalog:
    """The Catalog of N items in the given order, titles cleaned and made unique.

    With `year_in_title` false a trailing "(1999)" is dropped, and comes back only where two titles
    would be equal without it. Titles still equal take the brand where brands differ; then every
    one after the first takes a number. An item without a title is "Untitled item <item_id>".
    """
    titles, rules, years = [], [], []
    for item_id, raw in zip(item_ids, raw_titles, strict=True):
        cleaned = clean_title(raw, max_title_chars)
        body, year = split_year(cleaned)
        title = cleaned if year_in_title else body
        rules.append(UNTITLED if not title else AS_GIVEN if title == raw else CLEANED)
        titles.append(title or clean_title(f"Untitled item {item_id}", max_title_chars))
        years.append("" if year_in_title or year is None else str(year))
    _tell_apart(titles, rules, years, YEAR_SUFFIX, max_title_chars)
    if brands is not None:
        brand_chars = min(_MAX_BRAND_CHARS, max_title_chars // 2)
        cleaned_brands = [clean_title(brand, brand_chars) for brand in brands]
        _tell_apart(titles, rules, cleaned_brands, BRAND_SUFFIX, max_title_chars)
    _number(titles, rules, max_title_chars)
    told = tuple(genres) if genres is not None and any(genres) else ()
    return Catalog(tuple(item_ids), tuple(titles), tuple(raw_titles), tuple(rules), told)


def clean_title(raw: str, max_chars: int = MAX_TITLE_CHARS) -> str:
    """A title fit to stand in a prompt, on one line; "" where nothing readable is left.

    NFC; control, format and private-use characters gone; white space collapsed; HTML entities,
    which shops leave in titles, resolved; "Matrix, The (1999)" -> "The Matrix (1999)"; at
    most `max_chars` characters, cut between words, a trailing year kept. Cleaning twice changes
    nothing.
    """
    title = raw
    while (cleaned := _cleaned_once(title, max_chars)) != title:
        title = cleaned
    return title


def split_year(title: str) -> tuple[str, int | None]:
    """("Toy Story", 1995) of "Toy Story (1995)"; (title, None) where no year stands at the end."""
    match = _YEAR.fullmatch(title)
    return (match[1], int(match[2])) if match else (title, None)


def duplicate_titles(catalog: Catalog) -> int:
    """How many items carry a suffix because their title was not theirs alone."""
    suffixes = (YEAR_SUFFIX, BRAND_SUFFIX, NUMBER_SUFFIX)
    return sum(rule in suffixes for rule in catalog.title_rules)


def normal_id(text: str) -> str:
    """An id in the form that readers give it: stripped, a whole number without its point."""
    text = text.strip()
    return text.partition(".")[0] if _POINTED.fullmatch(text) else text


def id_order(ids: npt.NDArray[np.object_]) -> Longs:
    """The order of ids that no shuffling of the input can change.

    By value where every id is an integer, else by the characters' code points.
    """
    if all(_INTEGER.fullmatch(text) for text in ids):
        values = np.array([int(text) for text in ids], dtype=np.int64)
        return np.lexsort([_text_rank(ids), values])  # "1" and "01" are two ids
    return np.argsort(_text_rank(ids))


def _arrays_of(path: Path) -> Arrays:
    """The columns of a catalog's file, one that is not there without a text."""
    table, arrays = pq.read_table(path), Arrays()
    none = pa.chunked_array([], pa.string())
    for name in _COLUMNS:
        texts = Texts.of(table[name] if name in table.column_names else none)
        arrays |= {f"{name}-content": texts.content, f"{name}-offsets": texts.offsets}
        if name in _ORDERED:
            arrays[f"{name}-order"] = texts.order
    return arrays


def _of_arrays(arrays: Arrays) -> Catalog:
    return Catalog(
        *(
            Texts(arrays[f"{name}-content"], arrays[f"{name}-offsets"], arrays.get(f"{name}-order"))
            for name in _COLUMNS
        )
    )


def _text_rank(ids: npt.NDArray[np.object_]) -> Longs:
    rank = np.empty(len(ids), dtype=np.int64)
    rank[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return rank


def _cleaned_once(title: str, max_chars: int) -> str:
    title = _ENTITY.sub(lambda match: html.unescape(match[0]), title)
    if not title.isprintable():  # False for every dropped category and for odd white space
        title = "".join(map(_kept, title))
    if not title.isascii():
        title = unicodedata.normalize("NFC", title)
    title = " ".join(title.split()).strip(f" {_JOINERS}")
    body, year = split_year(title)
    suffix = "" if year is None else f" ({year})"
    return _capped(_article_first(body), suffix, max_chars)


def _kept(character: str) -> str:
    if character.isspace():
        return " "
    if unicodedata.category(character) in _DROPPED and character not in _JOINERS:
        return ""
    return character


def _article_first(body: str) -> str:
    """Move a trailing article to the front, in the title and in each bracket behind it."""
    main, bracket, rest = body.partition(" (")
    main = _move(main)
    if not bracket:
        return main
    return main + " " + _BRACKETS.sub(lambda match: f"({_move(match[1].strip())})", "(" + rest)


def _move(text: str) -> str:
    match = _TRAILING_ARTICLE.fullmatch(text)
    if match is None:
        return text
    return match[2] + ("" if match[2].endswith("'") else " ") + match[1]


def _capped(body: str, suffix: str, max_chars: int) -> str:
    """`body + suffix` in at most `max_chars`, the body cut after a whole word if there is one."""
    limit = max(max_chars - len(suffix), 1)
    if len(body) > limit:
        words = body[: limit + 1].rpartition(" ")[0].rstrip(f" ,;:-({_JOINERS}")
        body = words or body[:limit].strip(f" {_JOINERS}")
    return body + suffix


def _groups(titles: Sequence[str]) -> list[list[int]]:
    counts = Counter(titles)
    groups: dict[str, list[int]] = defaultdict(list)
    for position, title in enumerate(titles):
        if counts[title] > 1:
            groups[title].append(position)
    return list(groups.values())


def _tell_apart(
    titles: list[str], rules: list[str], marks: Sequence[str], rule: str, max_chars: int
) -> None:
    """Append " (mark)" within each group of equal titles whose marks differ; "" adds nothing."""
    for group in _groups(titles):
        if len({marks[position] for position in group}) == 1:
            continue
        for position in group:
            if marks[position]:
                titles[position] = _capped(titles[position], f" ({marks[position]})", max_chars)
                rules[position] = rule


def _number(titles: list[str], rules: list[str], max_chars: int) -> None:
    """Append " (2)", " (3)", ... to every title after the first of a group of equal ones."""
    taken = set(titles)
    for group in _groups(titles):
        number = 1
        for position in group[1:]:
            title = titles[position]
            while title in taken:
                number += 1
                title = _capped(titles[position], f" ({number})", max_chars)
            taken.add(title)
            titles[position], rules[position] = title, NUMBER_SUFFIX
