"""Two layouts that are no tables: Netflix's ratings under a line for each film, and MIND's
impressions, of which those clicked are interactions. Knows nothing of titles.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.data.records import ITEM_ID, RATING, TIMESTAMP, USER_ID
from llmrec.data.sources.opening import line_blocks
from llmrec.data.sources.rows import BadRows, Block

_FILM = re.compile(r"([0-9]+):")
_MIND_COLUMNS = 5  # impression, user, time, history, impressions


def netflix_blocks(path: Path, bad: BadRows) -> Iterator[Block]:
    """Lines `user,rating,date` below a line `film:`, as in `combined_data_1.txt`."""
    film: str | None = None
    for block, line in line_blocks(path):
        rows: list[tuple[str, ...]] = []
        lines: list[int] = []
        for number, text in _lines(block, line):
            heading = _FILM.fullmatch(text)
            fields = text.split(",")
            if heading is not None:
                film = heading[1]
            elif len(fields) != 3:
                bad.add(path.name, number, "line", f"3 columns expected, {len(fields)} found")
            elif film is None:
                bad.add(path.name, number, "line", "no line with a film's number stands before it")
            else:
                rows.append((fields[0], film, fields[1], fields[2]))
                lines.append(number)
        yield _block((USER_ID, ITEM_ID, RATING, TIMESTAMP), rows, lines)


def mind_blocks(path: Path, bad: BadRows) -> Iterator[Block]:
    """The clicked impressions of `behaviors.tsv`, in their order, at the time of the impression.

    What a user had read before the log began has no time and is left out.
    """
    for block, line in line_blocks(path):
        rows: list[tuple[str, ...]] = []
        lines: list[int] = []
        for number, text in _lines(block, line):
            fields = text.split("\t")
            if len(fields) != _MIND_COLUMNS:
                found = f"{_MIND_COLUMNS} columns expected, {len(fields)} found"
                bad.add(path.name, number, "line", found)
                continue
            _, user, when, _, shown = fields
            for impression in shown.split():
                item, dash, clicked = impression.rpartition("-")
                if not dash or clicked not in ("0", "1"):
                    reason = f"{impression!r} is no impression"
                    bad.add(path.name, number, "impressions", reason)
                elif clicked == "1":
                    rows.append((user, item, when))
                    lines.append(number)
        yield _block((USER_ID, ITEM_ID, TIMESTAMP), rows, lines)


def _lines(block: bytes, line: int) -> Iterator[tuple[int, str]]:
    for number, text in enumerate(block.removesuffix(b"\n").split(b"\n"), start=line):
        decoded = text.decode("utf-8", "replace").removesuffix("\r")
        if decoded.strip():
            yield number, decoded


def _block(roles: tuple[str, ...], rows: list[tuple[str, ...]], lines: list[int]) -> Block:
    columns = {
        role: pa.array([row[at] for row in rows], pa.string()) for at, role in enumerate(roles)
    }
    return Block(columns, np.array(lines, dtype=np.int64))
