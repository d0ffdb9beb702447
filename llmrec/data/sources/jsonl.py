"""JSON as Blocks: one object a line, or one array of objects; also Python's own way to write them.

Arrow parses a block of lines at once, with the types that the first good line shows; a block that
does not fit is parsed again line by line. Knows nothing of what the keys mean.
"""

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as arrow_json

from llmrec.data.records import RATING
from llmrec.data.sources.opening import AUTO, HEAD_BYTES, line_blocks
from llmrec.data.sources.rows import BadRows, Block, printable
from llmrec.errors import DataError

_LOOKED_AT = 100
_OF_AN_ARRAY = 1 << 16  # elements in a block
_ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}
_ARRAY = re.compile(rb"\s*\[\s*(\{|\Z)")
_PYTHON = re.compile(rb"\s*\{\s*u?'")
LINES, ARRAY, PYTHON = "JSON lines", "JSON array", "Python literals"

Objects = Iterable[tuple[int, dict[str, Any] | ValueError]]


def written_as(path: Path, encoding: str = AUTO) -> str:
    """LINES, ARRAY or PYTHON, as the beginning of the file shows."""
    start, _ = next(line_blocks(path, encoding, size=HEAD_BYTES), (b"", 1))
    if _PYTHON.match(start):
        return PYTHON
    if _ARRAY.match(start):
        try:  # a line that is an array of its own, among objects
            first = json.loads(start.partition(b"\n")[0])
        except ValueError:
            return ARRAY
        if first and isinstance(first[0], dict):
            return ARRAY
    return LINES


def keys_of(path: Path, encoding: str = AUTO) -> tuple[str, ...]:
    """The keys of the first objects of the file; an object may lack one that others have."""
    found = (value for _, value in _objects(path, encoding) if isinstance(value, dict))
    objects = list(islice(found, _LOOKED_AT))
    if not objects:
        raise DataError(f"{path}: no line holds a JSON object")
    return tuple(dict.fromkeys(key for value in objects for key in value))


def jsonl_blocks(
    path: Path,
    columns: Mapping[str, str],
    optional: frozenset[str],
    bad: BadRows,
    encoding: str = AUTO,
) -> Iterator[Block]:
    """Yield the wanted keys (role -> key) of every block of lines.

    A missing or null value of an `optional` role stays null; of any other role it is a bad row,
    found later with the other bad values.
    """
    kind = written_as(path, encoding)
    if kind == ARRAY:
        elements = _elements(path, encoding, bad)
        while some := list(islice(elements, _OF_AN_ARRAY)):
            yield _one_by_one(path.name, some, columns, optional, bad)
        return
    parse = _literal if kind == PYTHON else _object
    for block, line in line_blocks(path, encoding, bad):
        parsed = _at_once(block, columns) if kind == LINES else None
        if parsed is not None:
            yield Block(parsed, np.arange(line, line + len(next(iter(parsed.values())))))
        else:
            some_lines = _parsed(block, line, parse)
            yield _one_by_one(path.name, some_lines, columns, optional, bad)


def _objects(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    kind = written_as(path, encoding)
    if kind == ARRAY:
        yield from _elements(path, encoding, None, HEAD_BYTES)
        return
    for block, line in line_blocks(path, encoding, size=HEAD_BYTES):
        yield from _parsed(block, line, _literal if kind == PYTHON else _object)


def _parsed(
    block: bytes, line: int, parse: Callable[[bytes], dict[str, Any]]
) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """(line, its object or what is wrong with it); blank lines are none."""
    for number, text in enumerate(block.removesuffix(b"\n").split(b"\n"), start=line):
        if not text.strip():
            continue
        try:
            yield number, parse(text)
        except ValueError as error:
            yield number, error


def _elements(
    path: Path, encoding: str, bad: BadRows | None, size: int | None = None
) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """(number from 1, object) of an array; DataError where it is no JSON any more."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    between = re.compile(r"[\s,]*")
    text, number = "", 0
    blocks = line_blocks(path, encoding, bad, size)
    opened = ended = False
    while not ended:
        block, _ = next(blocks, (None, 0))
        ended = block is None
        text += "" if block is None else block.decode("utf-8", "replace")
        at = 0
        if not opened:
            opened, at = True, text.index("[") + 1
        while True:
            start = between.match(text, at).end()  # type: ignore[union-attr]
            if text.startswith("]", start):
                return
            try:
                value, at = decoder.raw_decode(text, start)
            except (ValueError, RecursionError) as error:
                if ended:
                    raise DataError(
                        f"{path.name}: the array is not JSON from its element {number + 1} on "
                        f"({error}); mend it, or write one object a line"
                    ) from None
                at = start
                break
            number += 1
            yield number, value if isinstance(value, dict) else _no_object(value)
        text = text[at:]


def _object(line: bytes) -> dict[str, Any]:
    """The object on a line; ValueError says why there is none."""
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {line[error.start]:#04x} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    if not isinstance(value, dict):
        raise _no_object(value)
    return value


def _literal(line: bytes) -> dict[str, Any]:
    """The dict that a line writes as Python does; nothing of it is run."""
    try:
        value = ast.literal_eval(line.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {line[error.start]:#04x} is not UTF-8") from None
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise ValueError(f"no Python literal: {printable(line.decode('utf-8'))}") from None
    if not isinstance(value, dict):
        raise _no_object(value)
    return value


def _no_object(value: Any) -> ValueError:
    return ValueError(f"an object is expected, not {printable(value)}")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _at_once(block: bytes, columns: Mapping[str, str]) -> dict[str, pa.Array] | None:
    """Columns by role, or None where the block has to be looked at line by line."""
    try:
        if not block.isascii():
            block.decode("utf-8")
        first = _object(block.partition(b"\n")[0])
    except ValueError:
        return None
    types = [_ARROW_TYPES.get(type(first.get(key))) for key in columns.values()]
    if None in types:
        return None
    schema = pa.schema(list(zip(columns.values(), types, strict=True)))
    try:
        table = arrow_json.read_json(
            pa.BufferReader(block),
            arrow_json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != block.count(b"\n") + (not block.endswith(b"\n")):
        return None
    table = table.combine_chunks()
    return {role: table[key].combine_chunks() for role, key in columns.items()}


def _one_by_one(
    file: str, objects: Objects, columns: Mapping[str, str], optional: frozenset[str], bad: BadRows
) -> Block:
    rows: list[list[str | None]] = []
    lines: list[int] = []
    for number, value in objects:
        if isinstance(value, ValueError):
            bad.add(file, number, "line", str(value))
            continue
        row: list[str | None] = []
        for role, key in columns.items():
            try:
                row.append(_text(value.get(key), role == RATING))
            except ValueError as error:
                if role in optional:
                    row.append(None)
                    continue
                bad.add(file, number, key, str(error))
                break
        else:
            rows.append(row)
            lines.append(number)
    arrays = {
        role: pa.array([row[at] for row in rows], pa.string()) for at, role in enumerate(columns)
    }
    return Block(arrays, np.array(lines, dtype=np.int64))


def _text(value: Any, is_rating: bool) -> str | None:
    if is_rating and isinstance(value, bool):
        return str(int(value))
    if value is None or (isinstance(value, str) and value.isascii()):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{printable(value)} is neither text nor a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # A lone half of a surrogate pair can be written in JSON and cannot be UTF-8.
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
