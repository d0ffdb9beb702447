"""JSON Lines as Blocks: one object a line.

Arrow parses a block of lines at once, with the types that the first good line shows; a block that
does not fit is parsed again line by line. Knows nothing of what the keys mean.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as arrow_json

from llmrec.data.sources.rows import BadRows, Block, line_blocks, printable
from llmrec.errors import DataError

_LOOKED_AT = 100
_ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}


def keys_of(path: Path) -> tuple[str, ...]:
    """The keys of the first objects of the file; an object may lack one that others have."""
    keys: dict[str, None] = {}
    objects = 0
    for block, _ in line_blocks(path):
        for line in block.splitlines():
            try:
                keys |= dict.fromkeys(_object(line))
            except ValueError:
                continue
            objects += 1
            if objects == _LOOKED_AT:
                return tuple(keys)
    if not objects:
        raise DataError(f"{path}: no line holds a JSON object")
    return tuple(keys)


def jsonl_blocks(
    path: Path, columns: Mapping[str, str], optional: frozenset[str], bad: BadRows
) -> Iterator[Block]:
    """Yield the wanted keys (role -> key) of every block of lines.

    A missing or null value of an `optional` role stays null; of any other role it is a bad row,
    found later with the other bad values.
    """
    for block, line in line_blocks(path):
        parsed = _at_once(block, columns)
        if parsed is not None:
            yield Block(parsed, np.arange(line, line + len(next(iter(parsed.values())))))
        else:
            yield _line_by_line(path.name, block, line, columns, optional, bad)


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
        raise ValueError(f"an object is expected, not {printable(value)}")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _at_once(block: bytes, columns: Mapping[str, str]) -> dict[str, pa.Array] | None:
    """Columns by role, or None where the block has to be looked at line by line."""
    try:
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


def _line_by_line(
    file: str,
    block: bytes,
    line: int,
    columns: Mapping[str, str],
    optional: frozenset[str],
    bad: BadRows,
) -> Block:
    rows: list[list[str | None]] = []
    lines: list[int] = []
    for number, text in enumerate(block.removesuffix(b"\n").split(b"\n"), start=line):
        if not text.strip():
            continue
        try:
            value = _object(text)
        except ValueError as error:
            bad.add(file, number, "line", str(error))
            continue
        row: list[str | None] = []
        for role, key in columns.items():
            try:
                row.append(_text(value.get(key)))
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


def _text(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value.isascii()):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{printable(value)} is neither text nor a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # A lone half of a surrogate pair can be written in JSON and cannot be UTF-8.
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
