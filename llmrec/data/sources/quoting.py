"""The one grammar of quotes in delimited text, for whole blocks and for single records.

A field is quoted where it begins with a quote whose end stands before a delimiter or the end of
the record; inside, a doubled quote is one, and lines may end. Any other field is the text as it
stands, quotes and all, as long as their number is even or the field does not begin with one.
A quote that is opened and never closed costs its own line. Knows nothing of files.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from llmrec.data.records import Bools, Longs
from llmrec.data.sources.rows import printable

_QUOTE, _LINE, _RETURN = (ord(c) for c in '"\n\r')
_MAX_LINES, _MAX_CHARACTERS = 1000, 1 << 20  # of one record
_OPEN = "a quote is opened and not closed on this line"


@dataclass(frozen=True)
class Record:
    """The fields of one record, unquoted."""

    fields: list[str]


def field_quotes(block: bytes, delimiter: bytes) -> Longs | None:
    """Where in a block the quotes stand that open or close a field or are one of a doubled pair.

    None where there are others than these and than those of lines in which no field begins with
    one; else all that reads CSV agrees about the block. `delimiter` is one byte.
    """
    text = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(text == _QUOTE)
    if _all_plain(text, quotes, delimiter[0]):
        return quotes
    lines = np.flatnonzero(text == _LINE)
    line_of = np.searchsorted(lines, quotes)
    begun = np.bincount(line_of[_begins(text, quotes, delimiter[0])], minlength=len(lines) + 1) > 0
    quotes = quotes[begun[line_of]]
    on_one_line = not (np.bincount(np.searchsorted(lines, quotes)) % 2).any()
    return quotes if on_one_line and _all_plain(text, quotes, delimiter[0]) else None


def ends_of_records(block: bytes, quotes: Longs) -> Longs | None:
    """Line ends (from 1) behind which a record ends; None where every line is a record."""
    text = np.frombuffer(block, np.uint8)
    lines = np.flatnonzero(text == _LINE)
    if not len(lines) or lines[-1] != len(text) - 1:
        lines = np.append(lines, len(text))
    outside = np.searchsorted(quotes, lines) % 2 == 0
    return None if outside.all() else np.flatnonzero(outside) + 1


def whole_records(block: bytes) -> int:
    """How many bytes of a block with a quote left open lie before the record it stands in."""
    text = np.frombuffer(block, np.uint8)
    lines = np.flatnonzero(text == _LINE)
    outside = np.searchsorted(np.flatnonzero(text == _QUOTE), lines) % 2 == 0
    end = int(lines[outside][-1]) + 1 if outside.any() else 0
    return end if len(block) - end < _MAX_CHARACTERS else len(block)


def _begins(text: npt.NDArray[np.uint8], quotes: Longs, delimiter: int) -> Bools:
    before = text[np.maximum(quotes - 1, 0)]
    begins: Bools = (before == delimiter) | (before == _LINE) | (quotes == 0)
    return begins


def _all_plain(text: npt.NDArray[np.uint8], quotes: Longs, delimiter: int) -> bool:
    if len(quotes) % 2:
        return False
    opening, closing = quotes[0::2], quotes[1::2]
    opens = _begins(text, opening, delimiter)
    opens[1:] |= opening[1:] == closing[:-1] + 1
    if not opens.all():
        return False
    last = len(text) - 1
    after = text[np.minimum(closing + 1, last)]
    closes = (after == delimiter) | (after == _LINE) | (closing == last)
    returns = np.flatnonzero(~closes & (after == _RETURN))
    closes[returns] = (text[np.minimum(closing[returns] + 2, last)] == _LINE) | (
        closing[returns] + 1 == last
    )
    closes[:-1] |= opening[1:] == closing[:-1] + 1
    return bool(closes.all())


def fields_of(line: str, delimiter: str, quoted: bool) -> list[str]:
    """The fields of one line that is a record; ValueError where a quote stays open."""
    if not quoted or '"' not in line:
        return line.split(delimiter)
    fields, is_open = _parsed(line, delimiter)
    if is_open:
        raise ValueError(_OPEN)
    return fields


class Records:
    """Iterates over decoded `lines`: (line from 0, Record or why there is none), blank lines out.

    A line that is a ValueError could not be decoded. Where the end of a quote may lie in lines to
    come (not `last`), iteration ends and `open_at` is the line where that record begins.
    """

    def __init__(
        self,
        lines: Sequence[str | ValueError],
        delimiter: str,
        quoted: bool,
        width: int,
        last: bool,
    ) -> None:
        self.lines, self.delimiter, self.quoted, self.width = lines, delimiter, quoted, width
        self.last = last
        self.open_at: int | None = None

    def __iter__(self) -> Iterator[tuple[int, Record | str]]:
        at = 0
        while at < len(self.lines):
            line = self.lines[at]
            if isinstance(line, ValueError):
                yield at, str(line)
            elif text := line.removesuffix("\r"):
                try:
                    yield at, Record(fields_of(text, self.delimiter, self.quoted))
                except ValueError:
                    found = self._over_lines(at)
                    if found is None:
                        self.open_at = at
                        return
                    record, end = found
                    yield at, record
                    at = end
                    continue
            at += 1

    def _over_lines(self, at: int) -> tuple[Record | str, int] | None:
        """A record whose quote is open at the end of line `at`, and the line behind its last.

        None where only lines to come can tell.
        """
        first = self.lines[at]
        assert isinstance(first, str)  # noqa: S101  the caller has parsed it
        before = len(_parsed(first, self.delimiter)[0])
        joined, unbalanced = first, None
        for end in range(at + 1, min(at + _MAX_LINES, len(self.lines))):
            line = self.lines[end]
            if isinstance(line, ValueError) or len(joined) + len(line) > _MAX_CHARACTERS:
                return unbalanced or (_OPEN, at + 1)
            joined = f"{joined}\n{line}"
            line = line.removesuffix("\r")
            quote = line.find('"')
            if quote < 0:
                continue
            if self._opens(line, quote):
                break  # another record begins here
            fields, is_open = _parsed(joined.removesuffix("\r"), self.delimiter)
            if not is_open and len(fields) >= self.width:
                return Record(fields), end + 1
            tail = re.search(rf'"({re.escape(self.delimiter)}.*)?\Z', line)
            width = before + 1 + (tail[1] or "").count(self.delimiter) if tail else 0
            if unbalanced is None and width == self.width:
                unbalanced = f"quotes are not balanced in {printable(joined)}", end + 1
        else:
            if not self.last and len(self.lines) - at < _MAX_LINES:
                return None
        return unbalanced or (_OPEN, at + 1)

    def _opens(self, line: str, quote: int) -> bool:
        """Whether the first quotes of a line, at `quote`, begin a field of a record of its own."""
        fields, is_open = _parsed(line, self.delimiter)
        if not is_open and len(fields) != self.width:
            return False
        if quote and not line.endswith(self.delimiter, 0, quote):
            return False
        behind = line[quote:].lstrip('"')
        odd = (len(line) - quote - len(behind)) % 2 == 1
        return odd and bool(behind) and not behind.startswith(self.delimiter)


def _parsed(text: str, delimiter: str) -> tuple[list[str], bool]:
    """The fields as far as they are whole, and whether a quote is open behind them."""
    quoted, plain = _patterns(delimiter)
    fields: list[str] = []
    at = 0
    while True:
        match = quoted.match(text, at)
        if match is not None:
            fields.append(match[1].replace('""', '"'))
        else:
            match = plain.match(text, at)
            assert match is not None  # noqa: S101  it takes any text, and none
            field = match[0]
            if "\n" in field or (field.startswith('"') and field.count('"') % 2):
                return fields, True
            fields.append(field)
        at = match.end()
        if at == len(text):
            return fields, False
        at += len(delimiter)


@lru_cache
def _patterns(delimiter: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A quoted field, and a field as it stands."""
    mark = re.escape(delimiter)
    plain = rf"[^{mark}]*" if len(delimiter) == 1 else rf"(?:(?!{mark})[\s\S])*+"
    return re.compile(rf'"((?:[^"]|"")*+)"(?={mark}|\Z)'), re.compile(plain)
