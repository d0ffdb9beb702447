"""The test examples of all cells of a study side by side: a value for every row, user and seed.

Reads what `evaluate` left in the run folders; knows no page and computes no test.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from llmrec.data.records import COLD, TARGET, USER_ID
from llmrec.errors import DataError
from llmrec.evaluation.gates import SENSITIVITY
from llmrec.evaluation.intervals import Floats
from llmrec.evaluation.table import NLL, SCALED_NLL
from llmrec.runs.evaluated import read_metrics
from llmrec.studies.cells import Cell, Plan, Side

SYSTEM = "system"


@dataclass(frozen=True)
class Row:
    """One row of the tables: a line's system, or a baseline that all lines answer alike."""

    side: Side
    title: str
    is_baseline: bool


@dataclass(frozen=True)
class Pooled:
    """E test examples of S seeds end to end; `values[side][metric]` (E,) is NaN where a cell does
    not stand. `same` names, for a baseline's side, the row that stands for it."""

    rows: tuple[Row, ...]
    users: npt.NDArray[np.object_]
    seeds: npt.NDArray[np.int64]
    cold: npt.NDArray[np.bool_]
    values: Mapping[Side, Mapping[str, Floats]]
    metrics: Mapping[str, Mapping[str, Any]]

    @property
    def clusters(self) -> npt.NDArray[np.int64]:
        """(E,) the user of each example, the same one in every seed."""
        return np.unique(self.users.astype(str), return_inverse=True)[1].ravel().astype(np.int64)

    def group(self, name: str) -> npt.NDArray[np.bool_]:
        """(E,) which examples are in a group of targets."""
        return {"all": np.ones(len(self.cold), np.bool_), "warm": ~self.cold, "cold": self.cold}[
            name
        ]


@dataclass(frozen=True)
class _Evaluated:
    """What one cell's `evaluate` left: per system and metric (E,)."""

    cell: Cell
    users: npt.NDArray[np.object_]
    targets: npt.NDArray[np.int32]
    cold: npt.NDArray[np.bool_]
    values: dict[str, dict[str, Floats]]
    metrics: dict[str, Any]


def pooled(plan: Plan, cells: Sequence[Cell]) -> Pooled:
    """The examples of the cells that stand. Raises DataError where two of a seed differ in them."""
    wanted = [*plan.study.metrics, NLL, SCALED_NLL, SENSITIVITY]
    found = [_read(cell, wanted) for cell in cells]
    parts: dict[int, list[_Evaluated]] = {}
    for one in found:
        of_seed = parts.setdefault(one.cell.seed, [])
        if of_seed and not _alike(of_seed[0], one):
            raise DataError(
                f"{of_seed[0].cell.name} and {one.cell.name} have other test examples, so they "
                "cannot be compared; give all arms the same data"
            )
        of_seed.append(one)
    sides = [Side(one.cell.line.name, system) for one in found for system in one.values]
    values: dict[Side, dict[str, Floats]] = {}
    for side in dict.fromkeys(sides):
        own = {
            m: [_of(side, m, of_seed) for of_seed in parts.values()] for m in dict.fromkeys(wanted)
        }
        values[side] = {metric: np.concatenate(arrays) for metric, arrays in own.items()}
    firsts = [of_seed[0] for of_seed in parts.values()]
    seeds = [np.full(len(one.users), one.cell.seed) for one in firsts]
    return Pooled(
        tuple(_rows(plan, found, values)),
        np.concatenate([one.users for one in firsts]),
        np.concatenate(seeds).astype(np.int64),
        np.concatenate([one.cold for one in firsts]),
        values,
        {one.cell.name: one.metrics for one in found},
    )


def _read(cell: Cell, wanted: Sequence[str]) -> _Evaluated:
    table = pq.read_table(cell.folder.per_user)
    systems = np.array(table[SYSTEM].to_pylist(), object)
    known = [metric for metric in dict.fromkeys(wanted) if metric in table.column_names]
    columns = {metric: table[metric].to_numpy().astype(np.float64) for metric in known}
    values = {}
    for system in dict.fromkeys(systems.tolist()):
        own = systems == system
        values[str(system)] = {metric: column[own] for metric, column in columns.items()}
    first = systems == systems[0]
    return _Evaluated(
        cell,
        np.array(table[USER_ID].to_pylist(), object)[first],
        table[TARGET].to_numpy()[first],
        table[COLD].to_numpy(zero_copy_only=False)[first],
        values,
        read_metrics(cell.folder.metrics),
    )


def _alike(a: _Evaluated, b: _Evaluated) -> bool:
    return np.array_equal(a.users, b.users) and np.array_equal(a.targets, b.targets)


def _of(side: Side, metric: str, of_seed: Sequence[_Evaluated]) -> Floats:
    for one in of_seed:
        known = one.values.get(side.system, {}) if one.cell.line.name == side.line else {}
        if metric in known:
            return known[metric]
    return np.full(len(of_seed[0].users), np.nan)


def _rows(
    plan: Plan, found: Sequence[_Evaluated], values: Mapping[Side, Mapping[str, Floats]]
) -> list[Row]:
    """Baselines first, each once where its values are the same in all lines; then line by line."""
    kinds = {
        (one.cell.line.name, system): said["kind"]
        for one in found
        for system, said in one.metrics["systems"].items()
    }
    baselines: dict[str, list[Side]] = {}
    rest = []
    for side in values:
        if kinds.get((side.line, side.system)) == "baseline":
            baselines.setdefault(side.system, []).append(side)
        else:
            rest.append(side)
    rows = []
    for system, sides in baselines.items():
        one = all(_equal(values[sides[0]], values[side]) for side in sides[1:])
        for side in sides[:1] if one else sides:
            title = system if one else f"{plan.lines[side.line].title}, {system}"
            rows.append(Row(side, title, True))
    order = list(plan.lines)
    for side in sorted(rest, key=lambda side: order.index(side.line)):
        line = plan.lines[side.line]
        own = side.system == line.system
        rows.append(Row(side, line.title if own else f"{line.title}, {side.system}", False))
    return rows


def _equal(a: Mapping[str, Floats], b: Mapping[str, Floats]) -> bool:
    """Whether two sides agree wherever both have a value."""
    for metric in a:
        both = np.isfinite(a[metric]) & np.isfinite(b[metric])
        if not np.array_equal(a[metric][both], b[metric][both]):
            return False
    return True


def as_text(value: Any) -> str:
    """A setting as the tables show it."""
    return value if isinstance(value, str) else json.dumps(value)
