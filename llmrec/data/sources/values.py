"""Turning columns into identifiers, times, numbers and text, and finding the values that are none.

Every function takes an Arrow array of R values and returns the converted values with the reasons
of the bad ones, row -> reason; what stands in a bad row is meaningless. Knows nothing of files.
"""

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.records import Longs
from llmrec.data.sources.rows import printable

Reasons = dict[int, str]

_MISSING = "is missing"
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INT64 = 2**63


def identifiers(values: pa.Array) -> tuple[pa.DictionaryArray, Reasons]:
    """Ids as text, dictionary-encoded; bad are missing, empty ones and ones with control codes."""
    encoded = as_text(values).dictionary_encode()
    reasons = {int(row): _MISSING for row in np.flatnonzero(encoded.is_null().to_numpy(False))}
    entries = encoded.dictionary
    wrong = pc.match_substring_regex(entries, r"^\s*$|[\x00-\x1f\x7f]").to_numpy(False)
    if wrong.any():
        bad = np.flatnonzero(wrong)
        codes = encoded.indices.fill_null(-1).to_numpy(False)
        for row in np.flatnonzero(np.isin(codes, bad)):
            text = entries[int(codes[row])].as_py()
            empty = not text.strip()
            reasons[int(row)] = "is empty" if empty else f"{printable(text)} has a control code"
    return encoded, reasons


def timestamps(values: pa.Array, dates: bool | None) -> tuple[Longs, Reasons, bool | None]:
    """(R,) int64 times; the third value says whether they are dates, None while nothing is known.

    Numbers stay as they are, fractions dropped; dates (ISO 8601, UTC where no zone stands)
    become milliseconds. A file has one kind: `dates` as known from earlier rows of it.
    """
    kind = values.type
    if pa.types.is_temporal(kind):
        values = values.cast(pa.timestamp("ms"), safe=False)
        return _known(values.cast(pa.int64()).fill_null(0).to_numpy(False), values, {}, True)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        numbers, reasons = _floats(values) if pa.types.is_floating(kind) else (None, {})
        if numbers is None:
            whole = values.fill_null(0).to_numpy(False)
            return _known(whole.astype(np.int64), values, reasons, False)
        far = np.abs(numbers) >= _INT64
        reasons |= {int(row): "is out of range" for row in np.flatnonzero(far)}
        return _known(np.where(far, 0, np.floor(numbers)).astype(np.int64), values, reasons, False)
    text = as_text(values)
    fast = _parsed(text, pa.timestamp("ms") if dates else pa.int64())
    if fast is not None:
        return fast.cast(pa.int64()).to_numpy(False), {}, bool(dates)
    if dates is None:
        dates = _mostly_dates(text)
        if dates:
            return timestamps(text, dates)
    whole, reasons = _each(text, np.int64, _milliseconds if dates else _whole)
    return whole, reasons, dates


def ratings(values: pa.Array) -> tuple[npt.NDArray[np.float32], Reasons]:
    """(R,) float32 finite numbers."""
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        numbers, reasons = _floats(values)
        return numbers.astype(np.float32), reasons
    text = as_text(values)
    fast = _parsed(text, pa.float64())
    if fast is not None and np.isfinite(fast.to_numpy(False)).all():
        return fast.to_numpy(False).astype(np.float32), {}
    numbers, reasons = _each(text, np.float64, _finite)
    return numbers.astype(np.float32), reasons


def is_readable(kind: pa.DataType) -> bool:
    """Whether ids, times, numbers or text can be read from values of this type."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        _is_text(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_temporal(kind)
        or pa.types.is_null(kind)
    )


def as_text(values: pa.Array) -> pa.Array:
    """Values as strings; whole floats lose their ".0" (ids that once stood beside a gap)."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = values.dictionary_decode()
        kind = values.type
    if pa.types.is_floating(kind):
        numbers = values.to_numpy(False)
        values = pa.array([_shortest(number) for number in numbers.tolist()], pa.string())
    else:
        values = values.cast(pa.string())
    return values


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _shortest(number: float) -> str | None:
    if math.isnan(number):
        return None
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def _known(
    whole: Longs, values: pa.Array, reasons: Reasons, dates: bool
) -> tuple[Longs, Reasons, bool]:
    missing = np.flatnonzero(values.is_null().to_numpy(False))
    return whole, reasons | {int(row): _MISSING for row in missing}, dates


def _floats(values: pa.Array) -> tuple[npt.NDArray[np.float64], Reasons]:
    reasons: Reasons = {}
    missing = values.is_null().to_numpy(False)
    numbers = values.cast(pa.float64(), safe=False).fill_null(0).to_numpy(False)
    for row in np.flatnonzero(missing | ~np.isfinite(numbers)):
        reasons[int(row)] = _MISSING if missing[row] else f"{numbers[row]} is not a number"
    return np.where(np.isfinite(numbers), numbers, 0), reasons


def _parsed(text: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """All values parsed at once, or None where one cannot be."""
    if text.null_count or pc.any(pc.match_substring(text, "x", ignore_case=True)).as_py():
        return None  # Arrow would read 0x10 as 16
    try:
        return text.cast(kind)
    except pa.ArrowInvalid:
        return None


def _each(
    text: pa.Array, dtype: type[Any], parse: Callable[[str], Any]
) -> tuple[npt.NDArray[Any], Reasons]:
    values = np.zeros(len(text), dtype=dtype)
    reasons: Reasons = {}
    for row, value in enumerate(text.to_pylist()):
        if value is None:
            reasons[row] = _MISSING
            continue
        try:
            values[row] = parse(value.strip())
        except ValueError as error:
            reasons[row] = str(error) if value.strip() else "is empty"
    return values, reasons


def _finite(text: str) -> float:
    if not _NUMBER.fullmatch(text) or math.isinf(float(text)):
        raise ValueError(f"{printable(text)} is not a number")
    return float(text)


def _whole(text: str) -> int:
    whole = int(text) if _INTEGER.fullmatch(text[:30]) else math.floor(_finite(text))
    if abs(whole) >= _INT64:
        raise ValueError(f"{printable(text)} is out of range")
    return whole


def _milliseconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{printable(text)} is not a date") from None
    if _INTEGER.fullmatch(text):
        raise ValueError(f"{printable(text)} is not a date, as the rows before it are")
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return math.floor(moment.timestamp() * 1000)


def _mostly_dates(text: pa.Array) -> bool | None:
    """Whether more of the first values are dates than numbers; None where none is either."""
    votes = {False: 0, True: 0}
    for value in text[:1000].to_pylist():
        for dates, parse in ((False, _whole), (True, _milliseconds)):
            try:
                parse((value or "").strip())
            except ValueError:
                continue
            votes[dates] += 1
            break
    return votes[True] > votes[False] if any(votes.values()) else None
