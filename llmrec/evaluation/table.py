"""The MetricTable: systems down, metrics across, in every cell a mean with interval and count.

A column is a metric over a group of test examples: all, or those with a warm or cold, a tied or
untied target. A target is cold if it never occurs in training, tied if it carries the timestamp of
the last history item (its order is then a matter of the tie rule). Knows no files and no tests.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.evaluation.intervals import Clusters, Floats, Interval, mean_intervals
from llmrec.evaluation.layout import Form, as_json, from_json, laid_out, number

NLL, SCALED_NLL = "NLL", "NLL at a temperature"  # fitted in validation
VALID, OF_VALID = "valid answers", "HR@1 of valid answers"  # where there are candidates
AMONG_COLD = "among cold items"  # where targets never occur in training
SNIPS = "SNIPS"  # by propensities of the targets
ALL = "all"
GROUPS = (ALL, "warm", "cold", "tied", "untied")
UNIFORM = "uniform"
LOWER_IS_BETTER = frozenset({NLL, SCALED_NLL})


@dataclass(frozen=True)
class Column:
    """One metric over one group of test examples, `examples` in number."""

    metric: str
    group: str = ALL
    examples: int = 0

    @property
    def label(self) -> str:
        """What stands above the column."""
        unit = ", nats" if self.metric in LOWER_IS_BETTER else ""
        group = "" if self.group == ALL else f", {self.group}"
        return f"{self.metric}{unit}{group}, n = {self.examples}"


@dataclass(frozen=True)
class MetricTable:
    """S systems by C columns; `cells[s][c]` is system s in column c.

    `uniform_nll` is the NLL of a uniform guess over the catalog, log N: the reference for NLL.
    """

    systems: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: tuple[tuple[Interval, ...], ...]
    confidence: float
    uniform_nll: float
    notes: tuple[str, ...] = ()

    def cell(self, system: str, metric: str, group: str = ALL) -> Interval:
        """One cell. Raises KeyError for a system, metric or group that is not in the table."""
        places = [i for i, c in enumerate(self.columns) if (c.metric, c.group) == (metric, group)]
        if system not in self.systems or not places:
            raise KeyError(f"no cell for {system!r}, {metric!r}, {group!r}")
        return self.cells[self.systems.index(system)][places[0]]

    def means(self, metric: str, group: str = ALL) -> dict[str, float]:
        """The column's mean of each system."""
        return {system: self.cell(system, metric, group).mean for system in self.systems}

    def measured(self, metric: str, group: str = ALL) -> bool:
        """Whether the column is there and any system has a value in it."""
        column = any((c.metric, c.group) == (metric, group) for c in self.columns)
        return column and not all(math.isnan(mean) for mean in self.means(metric, group).values())

    def only(self, wanted: Sequence[tuple[str, str]]) -> "MetricTable":
        """The (metric, group) columns wanted, in that order, of those that have any value."""
        keys = [(c.metric, c.group) for c in self.columns]
        kept = [keys.index(pair) for pair in wanted if self.measured(*pair)]
        return replace(
            self,
            columns=tuple(self.columns[i] for i in kept),
            cells=tuple(tuple(row[i] for i in kept) for row in self.cells),
        )

    def render(self, form: Form) -> str:
        """As aligned text, Markdown or LaTeX, the notes below (in LaTeX as comments)."""
        header = ["system", *(column.label for column in self.columns)]
        rows = [
            [system, *(shown(c, k) for c, k in zip(row, self.columns, strict=True))]
            for system, row in zip(self.systems, self.cells, strict=True)
        ]
        if any(column.metric == NLL for column in self.columns):
            reference = [
                number(self.uniform_nll if column.metric in LOWER_IS_BETTER else math.nan)
                for column in self.columns
            ]
            rows.append([f"{UNIFORM} (log N)", *reference])
        table = laid_out(header, rows, form)
        percent = f"{self.confidence * 100:g} %"
        notes = [f"In brackets: {percent} bootstrap intervals over users.", *self.notes]
        if form == "latex":
            return table + "".join(f"% {' '.join(note.split())}\n" for note in notes)
        return table + "\n" + "".join(f"{'- ' * (form == 'markdown')}{note}\n" for note in notes)

    def to_json(self) -> dict[str, Any]:
        """As JSON values: systems -> metric -> group -> mean, low, high, n, excluded."""
        systems: dict[str, dict[str, dict[str, Any]]] = {system: {} for system in self.systems}
        for system, row in zip(self.systems, self.cells, strict=True):
            for column, cell in zip(self.columns, row, strict=True):
                systems[system].setdefault(column.metric, {})[column.group] = as_json(cell)
        examples = {column.group: column.examples for column in self.columns}
        said = {
            "confidence": self.confidence,
            "uniform_nll": self.uniform_nll,
            "examples": examples,
            "systems": systems,
            "notes": self.notes,
        }
        return as_json(said)  # type: ignore[no-any-return]

    @staticmethod
    def from_json(said: Mapping[str, Any]) -> "MetricTable":
        """What `to_json` gave. Raises KeyError or TypeError for something else."""
        systems: Mapping[str, Mapping[str, Mapping[str, Any]]] = said["systems"]
        first: Mapping[str, Any] = next(iter(systems.values()), {})
        columns = [(metric, group) for metric, groups in first.items() for group in groups]
        cells = tuple(
            tuple(_interval(metrics[metric][group]) for metric, group in columns)
            for metrics in systems.values()
        )
        return MetricTable(
            tuple(systems),
            tuple(Column(metric, group, said["examples"][group]) for metric, group in columns),
            cells,
            float(said["confidence"]),
            from_json(said["uniform_nll"]),
            tuple(said["notes"]),
        )


def metric_table(
    per_user: Mapping[str, Mapping[str, Floats]],
    groups: Mapping[str, npt.NDArray[np.bool_]],
    clusters: Clusters,
    catalog_size: int,
    *,
    samples: int,
    confidence: float,
    seed: int,
    notes: Sequence[str] = (),
) -> MetricTable:
    """From per-example values: system -> metric -> (E,); every system has the same metrics.

    `groups`: name -> (E,) which examples; `clusters` (E,) the user of each example.
    """
    systems, metrics = tuple(per_user), tuple(next(iter(per_user.values()), {}))
    values = [per_user[system][metric] for system in systems for metric in metrics]
    matrix = np.stack(values, axis=1) if values else np.zeros((len(clusters), 0))
    found = {
        name: mean_intervals(
            matrix[rows], clusters[rows], samples=samples, confidence=confidence, seed=seed
        )
        for name, rows in groups.items()
    }
    shown = [(m, g) for m, name in enumerate(metrics) for g in groups if _is_of(name, g)]
    columns = tuple(Column(metrics[m], g, int(groups[g].sum())) for m, g in shown)
    cells = tuple(
        tuple(found[g][s * len(metrics) + m] for m, g in shown) for s in range(len(systems))
    )
    return MetricTable(
        systems, columns, cells, confidence, math.log(max(catalog_size, 1)), tuple(notes)
    )


def _is_of(metric: str, group: str) -> bool:
    """Whether a metric is one of a group: a ratio of all users is no mean over some of them."""
    return group == ALL or not metric.endswith(SNIPS)


def main_columns(k: int) -> list[tuple[str, str]]:
    """The columns a reader needs first, at the cut-off k: for `MetricTable.only`."""
    return [(metric, ALL) for metric in (NLL, f"HR@{k}", f"NDCG@{k}", f"MRR@{k}")]


def front_columns(k: int) -> list[tuple[str, str]]:
    """The main columns, NLL at a temperature beside NLL where systems are calibrated, those without
    bias, and how valid answers of candidates are."""
    nll, *others = main_columns(k)
    without_bias = [(f"{name}@{k} {SNIPS}", ALL) for name in ("HR", "NDCG")]
    return [nll, (SCALED_NLL, ALL), *others, *without_bias, (OF_VALID, ALL), (VALID, ALL)]


def group_columns(table: MetricTable, k: int) -> list[tuple[str, str]]:
    """The same for the groups, where they are neither empty nor everything."""
    examples = {column.group: column.examples for column in table.columns}
    parts = [g for g in GROUPS[1:] if 0 < examples.get(g, 0) < examples.get(ALL, 0)]
    grouped = [(metric, group) for metric in (NLL, f"NDCG@{k}") for group in parts]
    return [*grouped, *((f"{name}@{k} {AMONG_COLD}", "cold") for name in ("HR", "NDCG"))]


def cold_columns(k: int) -> list[tuple[str, str]]:
    """Warm beside cold targets, and cold ones among cold items alone: for `MetricTable.only`."""
    both = [(metric, group) for metric in (f"HR@{k}", NLL) for group in ("warm", "cold")]
    return [*both, *((f"{name}@{k} {AMONG_COLD}", "cold") for name in ("HR", "NDCG"))]


def shown(cell: Interval, column: Column) -> str:
    """A cell as text; its count too where some of the column's examples have no value."""
    if not cell.n:
        return number(math.nan)
    text = number(cell.mean)
    if math.isfinite(cell.low):
        text += f" [{number(cell.low)}, {number(cell.high)}]"
    return text if cell.n == column.examples else f"{text} (n = {cell.n})"


def best_of(metric: str, means: Mapping[str, float]) -> str | None:
    """The system with the best mean, the first of equal ones; None if none has a value."""
    defined = {system: mean for system, mean in means.items() if math.isfinite(mean)}
    if not defined:
        return None
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    return max(defined, key=lambda system: sign * defined[system])


def _interval(said: Mapping[str, Any]) -> Interval:
    return Interval(
        from_json(said["mean"]),
        from_json(said["low"]),
        from_json(said["high"]),
        int(said["n"]),
        int(said["excluded"]),
    )
