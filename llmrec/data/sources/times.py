"""Times of a column as integers that keep every order the file had, fractions included.

A file has one kind of time (numbers or dates) and one scale: a `Clock` goes through its blocks and
knows in the end by how much all of them are multiplied. Knows nothing of files.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.records import Longs
from llmrec.data.sources.rows import BadRows, printable
from llmrec.data.sources.ties import Ties
from llmrec.data.sources.values import (
    INTEGER,
    MISSING,
    NUMBER,
    Reasons,
    as_text,
    cast_or_none,
    floats,
)

Fractions: TypeAlias = npt.NDArray[np.int32]

UNITS = ("s", "ms", "us")
_BILLION = 10**9
_INT64 = 2**63
_DECIMAL = r"^\s*(?P<sign>[+-]?)(?P<whole>[0-9]{1,18})(?:\.(?P<part>[0-9]{0,9})[0-9]*)?\s*$"
_DATE_LIKE = re.compile(r"[0-9][./ :-][0-9]")
_SECOND = re.compile(r"(.*:[0-9]{2})[.,]([0-9]{1,9})[0-9]*(.*)", re.DOTALL)


@dataclass
class Clock:
    """How the times of one file are read, as far as its blocks have shown.

    `dates`: whether they are dates (in milliseconds, UTC where no zone stands) or numbers as they
    are; None while nothing is known. `form`: that of `strptime` which dates have, "" for ISO 8601.
    `digits`: decimal places that some time has. `fine`: whether the block read last was of a kind
    that has fractions, so that some may have been too fine; `ties`: whether that made times equal.
    """

    dates: bool | None = None
    digits: int = 0
    largest: int = 0
    form: str = ""
    fine: bool = False
    ties: Ties = field(default_factory=Ties)

    @staticmethod
    def of(timestamp_format: str) -> "Clock":
        """A clock for `data.timestamp_format`: auto, iso, s, ms, us, or a form of strptime."""
        known: dict[str, bool | None] = {"auto": None, "iso": True} | dict.fromkeys(UNITS, False)
        if timestamp_format in known:
            return Clock(known[timestamp_format])
        return Clock(True, form=timestamp_format)

    @property
    def ticks(self) -> int:
        """What every whole number is multiplied by, so that fractions are whole numbers too."""
        digits = self.digits
        while digits and self.largest * 10**digits >= _INT64:
            digits -= 3
        return int(10**digits)

    def tell(self, file: str, bad: BadRows) -> None:
        """Notice fractions finer than what is read, or an integer holds beside the rest."""
        self.ties.tell(file, bad)
        if 10**self.digits > self.ticks:
            bad.notice(
                f"{file}: the times are so large that fractions finer than 1/{self.ticks} were "
                "cut off; some may be equal now that were not"
            )

    def scaled(self, whole: Longs, part: Fractions | None) -> Longs:
        """(R,) times in ticks, of whole numbers and billionths as `read` gave them."""
        if self.ticks == 1:
            return whole
        ticks = whole * self.ticks
        return ticks if part is None else ticks + part // (_BILLION // self.ticks)

    def read(self, values: pa.Array) -> tuple[Longs, Fractions | None, Reasons]:
        """(R,) whole numbers, rounded down; (R,) billionths above, None where all are 0; the bad.

        Both are meaningless in a bad row.
        """
        self.fine = True
        whole, part, reasons = self._read(values)
        self.fine &= part is not None
        if part is not None and not part.any():
            part = None
        if part is not None:
            self.digits = max(self.digits, _digits(part))
        if len(whole):
            self.largest = max(self.largest, abs(int(whole.max())) + 1, abs(int(whole.min())) + 1)
        return whole, part, reasons

    def _read(self, values: pa.Array) -> tuple[Longs, Fractions | None, Reasons]:
        kind = values.type
        if pa.types.is_temporal(kind):
            self.dates, self.fine = True, False
            return (*_of_moments(values), _missing(values))
        if pa.types.is_integer(kind):
            self.dates = False
            return _of_integers(values)
        if pa.types.is_floating(kind):
            self.dates = False
            return _of_floats(values)
        text = as_text(values)
        if self.form:
            return _by_form(text, self.form)
        fast = self._at_once(text)
        if fast is not None:
            self.fine = not self.dates  # dates read at once are held whole
            return (*fast, {})
        if self.dates is None:
            self.dates = _mostly_dates(text)
            if self.dates:
                return self._read(text)
        return _each(text, _moment if self.dates else _number)

    def _at_once(self, text: pa.Array) -> tuple[Longs, Fractions | None] | None:
        """All values parsed at once, or None where one cannot be."""
        if self.dates:
            moments = cast_or_none(text, pa.timestamp("us"))
            if moments is None:
                moments = cast_or_none(text, pa.timestamp("us", tz="UTC"))
            return None if moments is None else _of_moments(moments)
        whole = cast_or_none(text, pa.int64())
        found = _decimals(text) if whole is None else (whole.to_numpy(False), None)
        if found is not None:
            self.dates = False
        return found


def _digits(part: Fractions) -> int:
    """Decimal places of the billionths, in steps of three."""
    for digits in (3, 6):
        if not (part % 10 ** (9 - digits)).any():
            return digits
    return 9


def _of_moments(values: pa.Array) -> tuple[Longs, Fractions | None]:
    """Milliseconds and billionths of one."""
    fine = pa.types.is_timestamp(values.type) and values.type.unit in ("us", "ns")
    if not fine:
        values = values.cast(pa.timestamp("ms"), safe=False)
        return values.cast(pa.int64()).fill_null(0).to_numpy(False), None
    per_milli = 1000 if values.type.unit == "us" else 1_000_000
    numbers = values.cast(pa.int64()).fill_null(0).to_numpy(False)
    whole = numbers // per_milli
    return whole, ((numbers - whole * per_milli) * (_BILLION // per_milli)).astype(np.int32)


def _of_integers(values: pa.Array) -> tuple[Longs, None, Reasons]:
    reasons = _missing(values)
    if values.type == pa.uint64():
        far = pc.greater_equal(values, pa.scalar(_INT64, pa.uint64())).fill_null(False)
        reasons |= _far(far.to_numpy(False))
        values = pc.if_else(far, pa.scalar(0, pa.uint64()), values)
    return values.fill_null(0).to_numpy(False).astype(np.int64), None, reasons


def _of_floats(values: pa.Array) -> tuple[Longs, Fractions | None, Reasons]:
    numbers, reasons = floats(values)
    far = np.abs(numbers) >= _INT64
    numbers = np.where(far, 0, numbers)
    floor = np.floor(numbers)
    largest = float(np.abs(numbers).max(initial=1.0))
    digits = min(max(-math.ceil(math.log10(float(np.spacing(largest)))), 0), 9)
    part = np.rint((numbers - floor) * 10**digits).astype(np.int64)  # digits that a float carries
    whole = floor.astype(np.int64) + part // 10**digits
    part %= 10**digits
    return whole, (part * 10 ** (9 - digits)).astype(np.int32), reasons | _far(far)


def _decimals(text: pa.Array) -> tuple[Longs, Fractions] | None:
    """Numbers with a point, to the ninth digit behind it."""
    found = pc.extract_regex(text, _DECIMAL)
    if found.null_count:
        return None
    sign, whole, part = found.flatten()
    numbers = whole.cast(pa.int64()).to_numpy(False)
    parts = pc.utf8_rpad(part.fill_null(""), 9, "0").cast(pa.int32()).to_numpy(False)
    below = pc.equal(sign, "-").to_numpy(False)
    borrowed = below & (parts > 0)
    return (
        np.where(below, -numbers, numbers) - borrowed,
        np.where(borrowed, _BILLION - parts, parts).astype(np.int32),
    )


def _far(far: npt.NDArray[np.bool_]) -> Reasons:
    return {int(row): "is out of range" for row in np.flatnonzero(far)}


def _missing(values: pa.Array) -> Reasons:
    if not values.null_count:
        return {}
    return {int(row): MISSING for row in np.flatnonzero(values.is_null().to_numpy(False))}


def _each(
    text: pa.Array, parse: Callable[[str], tuple[int, int]]
) -> tuple[Longs, Fractions, Reasons]:
    whole = np.zeros(len(text), dtype=np.int64)
    part = np.zeros(len(text), dtype=np.int32)
    reasons: Reasons = {}
    for row, value in enumerate(text.to_pylist()):
        if value is None:
            reasons[row] = MISSING
            continue
        try:
            whole[row], part[row] = parse(value.strip())
        except ValueError as error:
            reasons[row] = str(error) if value.strip() else "is empty"
    return whole, part, reasons


def _by_form(text: pa.Array, form: str) -> tuple[Longs, Fractions | None, Reasons]:
    """Dates in a form of `strptime`; each that is there several times is read once."""

    def parse(value: str) -> tuple[int, int]:
        try:
            moment = datetime.strptime(value, form)
        except ValueError:
            raise ValueError(
                f"{printable(value)} is not a date like {form!r} (data.timestamp_format)"
            ) from None
        return _since_1970(moment, moment.microsecond * 1000)

    encoded = text.dictionary_encode()
    whole, part, reasons = _each(encoded.dictionary, parse)
    missing = _missing(encoded)
    codes = encoded.indices.fill_null(0).to_numpy(False)
    if not len(whole):
        return np.zeros(len(text), np.int64), None, missing
    wrong = np.flatnonzero(np.isin(codes, list(reasons)))
    return whole[codes], part[codes], {int(r): reasons[int(codes[r])] for r in wrong} | missing


def _since_1970(moment: datetime, nanoseconds: int) -> tuple[int, int]:
    """Milliseconds, and billionths of one; UTC where no zone stands."""
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    seconds = (moment.replace(microsecond=0) - _EPOCH) // timedelta(seconds=1)
    return seconds * 1000 + nanoseconds // 1_000_000, nanoseconds % 1_000_000 * 1000


def _number(text: str) -> tuple[int, int]:
    """A number, rounded down, and the billionths above."""
    if not NUMBER.fullmatch(text):
        date = _DATE_LIKE.search(text) is not None
        form = "; dates other than ISO 8601 need data.timestamp_format" * date
        raise ValueError(f"{printable(text)} is not a number{form}")
    if math.isinf(float(text)):
        raise ValueError(f"{printable(text)} is not a number")
    number = Decimal(text[:60])
    if abs(number) >= _INT64:
        raise ValueError(f"{printable(text)} is out of range")
    whole = math.floor(number)
    return whole, int((number - whole) * _BILLION)


def _moment(text: str) -> tuple[int, int]:
    """Milliseconds since 1970 of an ISO date, and billionths of one."""
    split = _SECOND.fullmatch(text)
    try:
        moment = datetime.fromisoformat(text if split is None else split[1] + split[3])
    except ValueError:
        raise ValueError(f"{printable(text)} is not a date") from None
    if INTEGER.fullmatch(text):
        raise ValueError(f"{printable(text)} is not a date, as the rows before it are")
    return _since_1970(moment, int(split[2].ljust(9, "0")) if split is not None else 0)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _mostly_dates(text: pa.Array) -> bool | None:
    """Whether more of the first values are dates than numbers; None where none is either."""
    votes = {False: 0, True: 0}
    kinds: tuple[tuple[bool, Callable[[str], Any]], ...] = ((False, _number), (True, _moment))
    for value in text[:1000].to_pylist():
        for dates, parse in kinds:
            try:
                parse((value or "").strip())
            except ValueError:
                continue
            votes[dates] += 1
            break
    return votes[True] > votes[False] if any(votes.values()) else None
