"""The report: one HTML page that needs no other file, from records that are already computed.

Titles, user ids, system names and recipes are data: the template escapes all of them, and the page
forbids scripts and outside loads besides. Knows no run folder and computes no metric.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from llmrec.evaluation.beyond import BeyondAccuracy
from llmrec.evaluation.comparison import Comparison, Standing, in_words
from llmrec.evaluation.intervals import Interval
from llmrec.evaluation.layout import UNDEFINED, number
from llmrec.evaluation.table import LOWER_IS_BETTER, NLL, MetricTable, front_columns, group_columns

TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class Recommendation:
    """One line of a list: a title, or None for an answer that is no catalog item."""

    title: str | None
    is_target: bool


@dataclass(frozen=True)
class Shelf:
    """What one system recommends to one user; `target_nll` is NaN where it has none."""

    system: str
    recommendations: tuple[Recommendation, ...]
    target_nll: float


@dataclass(frozen=True)
class Visitor:
    """One user of the page: the latest titles of the history, `earlier` more before them."""

    user_id: str
    history: tuple[str, ...]
    earlier: int
    target: str
    shelves: tuple[Shelf, ...]


@dataclass(frozen=True)
class SystemFacts:
    """What the page says of a system besides its metrics."""

    system: str
    is_model: bool
    beyond: BeyondAccuracy
    hyperparameters: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Sheet:
    """A table of text: the header's cells, and those of each row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Trust:
    """What was measured of the systems' probabilities and prediction sets; ECE also of the first k.

    `curves` are (caption, SVG text made by `llmrec.evaluation.calibration_curves`).
    """

    k: int
    figures: Sheet
    coverage: Sheet
    groups: Sheet
    curves: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """Everything on the page. `k` is the main cut-off, `best_baseline` metric -> system.

    `curves` are (caption, SVG text made by `llmrec.evaluation.curve`); `facts` of the run are
    (name, value) lines; `recipe` is the resolved recipe as YAML; `trust` is None where
    calibration was not asked.
    """

    name: str
    data: str
    examples: int
    users: int
    catalog: int
    k: int
    table: MetricTable
    comparisons: tuple[Comparison, ...]
    best_baseline: Mapping[str, str]
    systems: tuple[SystemFacts, ...]
    curves: tuple[tuple[str, str], ...]
    visitors: tuple[Visitor, ...]
    facts: tuple[tuple[str, str], ...]
    recipe: str
    trust: Trust | None = None


def render(report: Report) -> str:
    """The page as HTML text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    main = report.table.only(front_columns(report.k))
    groups = report.table.only(group_columns(report.table, report.k))
    headline, told = verdict(report)
    return environment.get_template(TEMPLATE).render(
        report=report,
        confidence=f"{report.table.confidence * 100:g}",
        headline=headline,
        told=told,
        tuning=_tuning(report),
        main=main,
        groups=groups,
        standings=_standings(report),
        models={s.system for s in report.systems if s.is_model},
        forests=[f for f in (_forest(report, m) for m in report.best_baseline) if f],
        curves=_drawn(report.curves),
        trust_curves=_drawn(report.trust.curves) if report.trust else [],
        settings=[
            (s.system, json.dumps(s.hyperparameters, ensure_ascii=False), s.seconds)
            for s in report.systems
        ],
        finite=math.isfinite,
        nll=NLL,
        percent=lambda share: UNDEFINED if math.isnan(share) else f"{share * 100:.1f} %",
        whole=lambda cell, column: isinstance(cell, Interval) and cell.n == column.examples,
    )


def _drawn(curves: Sequence[tuple[str, str]]) -> list[tuple[str, Markup]]:
    """Captions, to be escaped, and drawings, which are not."""
    return [(caption, Markup(svg)) for caption, svg in curves]  # noqa: S704  our own drawings


def verdict(report: Report) -> tuple[str, list[tuple[str, list[tuple[Standing, str]]]]]:
    """One sentence, then for each metric a heading and (standing, sentence) lines.

    Rows below the best baseline are told like those above it; models come first.
    """
    models = {s.system for s in report.systems if s.is_model}
    told = []
    for metric in dict.fromkeys(c.metric for c in report.comparisons):
        own = [c for c in report.comparisons if c.metric == metric]
        best = report.best_baseline.get(metric)
        lines = [
            (c.standing, in_words(c, report.table.confidence))
            for c in sorted(own, key=lambda c: c.system not in models)
        ]
        better = "lower is better" if metric in LOWER_IS_BETTER else "higher is better"
        heading = f"{metric} ({better})"
        if best is not None:
            mean = number(report.table.cell(best, metric).mean)
            heading += f": the best baseline is {best} at {mean}"
        if metric == NLL:
            heading += f"; a uniform guess has {number(report.table.uniform_nll)}"
        told.append((heading, lines))
    return _headline(report, models), told


def _headline(report: Report, models: set[str]) -> str:
    metric = next(iter(report.best_baseline), None)
    against = [
        c
        for c in report.comparisons
        if c.metric == metric and c.reference == report.best_baseline.get(c.metric)
    ]
    asked = [c for c in against if c.system in models]
    if metric is None or not against or (models and not asked):
        return "No model could be compared with a baseline here."
    best = report.best_baseline[metric]
    named = "the best baseline, " if asked else ""
    phrases = {
        "above": f"stands above {named}{best}",
        "level": f"cannot be told apart from {named}{best}",
        "below": f"stands below {named}{best}",
    }
    parts = [] if asked else [f"{best} is the best of {len(against) + 1} baselines"]
    against = asked or against
    for standing, phrase in phrases.items():
        names = [c.system for c in against if c.standing == standing]
        if len(names) > 1:
            phrase = phrase.replace("stands", "stand")
        if names:
            parts.append(f"{_listed(names)} {phrase}")
    return f"By {metric}, {'; '.join(parts)}."


def _tuning(report: Report) -> list[str]:
    """What tuning brought in the first metric: comparisons with something else than a baseline."""
    first = next((c.metric for c in report.comparisons), None)
    return [
        in_words(c, report.table.confidence)
        for c in report.comparisons
        if c.metric == first and c.reference != report.best_baseline.get(c.metric)
    ]


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _standings(report: Report) -> dict[str, list[tuple[str, str]]]:
    """System -> (metric, standing against the best baseline) for the marks in the table."""
    marks: dict[str, list[tuple[str, str]]] = {system: [] for system in report.table.systems}
    for metric, best in report.best_baseline.items():
        marks[best].append((metric, "best"))
    for c in report.comparisons:
        if c.reference == report.best_baseline.get(c.metric) and c.system in marks:
            marks[c.system].append((c.metric, c.standing))
    return marks


def _forest(report: Report, metric: str) -> dict[str, Any] | None:
    """Differences to the best baseline as places on a line in percent, better to the right."""
    best = report.best_baseline[metric]
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    tested = [c for c in report.comparisons if (c.metric, c.reference) == (metric, best)]
    rows = [c for c in tested if math.isfinite(c.test.low)]
    if not rows:
        return None
    ends = [0.0, *(sign * end for c in rows for end in (c.test.low, c.test.high))]
    start, width = min(ends), (max(ends) - min(ends)) or 1.0

    def place(value: float) -> float:
        return round(3.0 + 94.0 * (value - start) / width, 2)

    return {
        "metric": metric,
        "best": best,
        "zero": place(0.0),
        "rows": [
            {
                "system": c.system,
                "standing": c.standing,
                "left": place(min(sign * c.test.low, sign * c.test.high)),
                "right": round(100 - place(max(sign * c.test.low, sign * c.test.high)), 2),
                "dot": place(sign * c.test.difference),
                "text": number(c.test.difference, sign=True),
            }
            for c in rows
        ],
    }
