"""Turning columns into identifiers, numbers and text, and finding the values that are none.

Every function takes an Arrow array of R values and returns the converted values with the reasons
of the bad ones, row -> reason; what stands in a bad row is meaningless. Times are read by `times`.
Knows nothing of files.
"""

import math
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.sources.rows import printable

Reasons = dict[int, str]

MISSING = "is missing"
INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# What programs write where they have no value; none of it is anybody's id.
_NOBODY = (
    "nan",
    "NaN",
    "NAN",
    "null",
    "NULL",
    "Null",
    "None",
    "none",
    "NA",
    "N/A",
    "n/a",
    "#N/A",
    "<NA>",
    "NaT",
    "\\N",
)
_UNTITLED = ("nan", "NaN", "<NA>", "#N/A", "\\N")  # "None", "Null" and "NA" may be titles
_CONTROL = r"[\x00-\x1f\x7f]"
_WHOLE = r"^([+-]?[0-9]+)\.0+$"
_SPREADSHEET = r"^[+-]?[0-9]\.?[0-9]*[Ee]\+[0-9]{2}$"  # 1.23457E+12: the other digits are gone
_EXACT = 2**53  # a float names every whole number below it, and not every one above


def identifiers(values: pa.Array) -> tuple[pa.DictionaryArray, Reasons]:
    """Ids as text in their one normal form, dictionary-encoded.

    White space around an id is no part of it, and a whole number with a point ("7.0") is that
    number. Bad are missing and empty ones, ones with control codes inside, and numbers of which
    a float or a spreadsheet has lost digits.
    """
    reasons = _inexact(values)
    encoded = as_text(values).dictionary_encode()
    reasons |= {int(row): MISSING for row in np.flatnonzero(encoded.is_null().to_numpy(False))}
    encoded = _normal(encoded)
    entries = encoded.dictionary
    findings = [
        pc.match_substring_regex(entries, _CONTROL),
        pc.is_in(entries, pa.array(("", *_NOBODY), entries.type)),
    ]
    if pc.any(pc.match_substring(entries, "+")).as_py():  # plain search first: a regex is slow
        findings.append(pc.match_substring_regex(entries, _SPREADSHEET))
    wrong = np.logical_or.reduce([finding.to_numpy(False) for finding in findings])
    if wrong.any():
        codes = encoded.indices.fill_null(-1).to_numpy(False)
        for row in np.flatnonzero(np.isin(codes, np.flatnonzero(wrong))):
            reasons.setdefault(int(row), _wrong_id(entries[int(codes[row])].as_py()))
    return encoded, reasons


def ratings(values: pa.Array) -> tuple[npt.NDArray[np.float32], Reasons]:
    """(R,) float32 finite numbers, NaN where a row has none, which is no fault."""
    if _is_number(values.type):
        numbers, reasons = floats(values)
        blank = pc.is_null(values, nan_is_null=True).to_numpy(False)
        numbers[blank] = np.nan
        return numbers.astype(np.float32), {r: why for r, why in reasons.items() if not blank[r]}
    text = as_text(values)
    fast = cast_or_none(text, pa.float64())
    if fast is not None and np.isfinite(fast.to_numpy(False)).all():
        return fast.to_numpy(False).astype(np.float32), {}
    blank = pc.equal(pc.utf8_trim_whitespace(text), "").fill_null(True).to_numpy(False)
    numbers, reasons = _each(text, _finite)
    numbers[blank] = np.nan
    return numbers.astype(np.float32), {r: why for r, why in reasons.items() if not blank[r]}


def is_readable(kind: pa.DataType) -> bool:
    """Whether ids, times, numbers or text can be read from values of this type."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        _is_text(kind)
        or _is_number(kind)
        or pa.types.is_null(kind)
        or pa.types.is_timestamp(kind)
        or pa.types.is_date(kind)
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


def has_text(values: pa.Array) -> npt.NDArray[np.bool_]:
    """(R,) whether a title is more than white space and than a program's word for nothing."""
    text = pc.utf8_trim_whitespace(as_text(values))
    none = pc.is_in(text, pa.array(("", *_UNTITLED), text.type))
    return pc.and_(text.is_valid(), pc.invert(none)).to_numpy(False)  # type: ignore[no-any-return]


def cast_or_none(text: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """All values parsed at once, or None where one cannot be."""
    if text.null_count or pc.any(pc.match_substring(text, "x", ignore_case=True)).as_py():
        return None  # Arrow would read 0x10 as 16
    try:
        return text.cast(kind)
    except pa.ArrowInvalid:
        return None


def floats(values: pa.Array) -> tuple[npt.NDArray[np.float64], Reasons]:
    """(R,) the numbers, 0 where there is none."""
    reasons: Reasons = {}
    missing = values.is_null().to_numpy(False)
    numbers = values.cast(pa.float64(), safe=False).fill_null(0).to_numpy(False)
    for row in np.flatnonzero(missing | ~np.isfinite(numbers)):
        reasons[int(row)] = MISSING if missing[row] else f"{numbers[row]} is not a number"
    return np.where(np.isfinite(numbers), numbers, 0), reasons


def _normal(encoded: pa.DictionaryArray) -> pa.DictionaryArray:
    """With every entry in normal form, once."""
    entries = encoded.dictionary
    trimmed = pc.utf8_trim_whitespace(entries)
    pointed = pc.any(pc.match_substring(entries, ".0")).as_py()
    if not pointed and trimmed.equals(entries):
        return encoded
    entries = pc.replace_substring_regex(trimmed, _WHOLE, r"\1") if pointed else trimmed
    again = entries.dictionary_encode()
    return pa.DictionaryArray.from_arrays(again.indices.take(encoded.indices), again.dictionary)


def _wrong_id(text: str) -> str:
    if not text:
        return "is empty"
    if text in _NOBODY:
        return f"{printable(text)} stands for a missing value"
    if re.fullmatch(_SPREADSHEET, text):
        return (
            f"{printable(text)} is what a spreadsheet leaves of a long number; export the "
            "column as text"
        )
    return f"{printable(text)} has a control code"


def _inexact(values: pa.Array) -> Reasons:
    """Floats so large that two ids may have become one."""
    if not pa.types.is_floating(values.type) or not len(values):
        return {}
    numbers = values.cast(pa.float64(), safe=False).fill_null(0).to_numpy(False)
    limit = {pa.float16(): 2**11, pa.float32(): 2**24}.get(values.type, _EXACT)
    far = np.flatnonzero(np.isfinite(numbers) & (np.abs(numbers) >= limit))
    return {
        int(row): f"{numbers[row]:.0f} is too large for an id kept as a float, which loses its "
        "last digits; write the column as integers or text"
        for row in far
    }


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    )


def _shortest(number: float) -> str | None:
    if math.isnan(number):
        return None
    return str(int(number)) if number.is_integer() and abs(number) < _EXACT else repr(number)


def _each(text: pa.Array, parse: Callable[[str], float]) -> tuple[npt.NDArray[np.float64], Reasons]:
    values = np.zeros(len(text), dtype=np.float64)
    reasons: Reasons = {}
    for row, value in enumerate(text.to_pylist()):
        if value is None:
            reasons[row] = MISSING
            continue
        try:
            values[row] = parse(value.strip())
        except ValueError as error:
            reasons[row] = str(error) if value.strip() else "is empty"
    return values, reasons


def _finite(text: str) -> float:
    if not NUMBER.fullmatch(text) or math.isinf(float(text)):
        raise ValueError(f"{printable(text)} is not a number")
    return float(text)
