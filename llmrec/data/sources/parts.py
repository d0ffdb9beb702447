"""A table that is written as several files: a pattern, or a folder of part-* files.

Knows names alone, no layout.
"""

import glob
import re
from pathlib import Path

from llmrec.errors import DataError

_DIGITS = re.compile(r"([0-9]+)")


def is_pattern(path: Path) -> bool:
    """Whether a path that is not there is a pattern such as clicks/2024-*.csv."""
    return glob.has_magic(str(path)) and not path.exists()


def matching(pattern: Path) -> tuple[Path, ...]:
    """The files that a pattern names, in the order of `in_order`; DataError where there is none."""
    found = [Path(name) for name in glob.glob(str(pattern), recursive=True)]
    files = in_order([path for path in found if path.is_file()])
    if not files:
        raise DataError(f"data.source {pattern}: no file is called so")
    return files


def parts_in(folder: Path) -> tuple[Path, ...]:
    """The part-* files of a folder, as Spark and others leave them."""
    return in_order([path for path in folder.glob("part-*") if path.is_file()])


def in_order(paths: list[Path]) -> tuple[Path, ...]:
    """By name, numbers in it by value: part-2 before part-10."""
    return tuple(sorted(paths, key=_by_value))


def _by_value(path: Path) -> list[tuple[int, int, str]]:
    pieces = enumerate(_DIGITS.split(str(path)))
    return [(1, int(text), "") if at % 2 else (0, 0, text) for at, text in pieces]
