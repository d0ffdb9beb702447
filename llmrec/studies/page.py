"""The page of a study in words: tables, tests, drawings, hours, and whether it says anything.

Everything on it is computed in `llmrec.studies.findings`.
"""

import math
from collections.abc import Mapping, Sequence

from llmrec.data import sealed
from llmrec.evaluation.gates import ASKED, LEAST_DISTINCT, LEAST_SENSITIVITY, Gates
from llmrec.evaluation.intervals import Interval
from llmrec.evaluation.layout import UNDEFINED, number
from llmrec.evaluation.page import Sheet
from llmrec.evaluation.study_curves import swept_curve, training_curves
from llmrec.evaluation.study_page import Drawing, Part, StudyPage
from llmrec.evaluation.table import NLL
from llmrec.studies.cells import Cell, Line, Plan, Side
from llmrec.studies.confidence import confidence_parts
from llmrec.studies.findings import CONFIDENCE, Group, at_temperature, by_seed, trainings
from llmrec.studies.pooled import Pooled
from llmrec.studies.running import Record

METHOD = (
    "Means over all users and seeds, in brackets {level} % intervals of a bootstrap that draws "
    "users and seeds independently of each other; p-values by sign flips of users, all seeds of a "
    "user together, after Holm over the comparisons of one metric. A difference stands only where "
    "both say so; with few seeds the intervals hold only part of what other seeds would change."
)


def page_of(
    plan: Plan,
    record: Record,
    pooled: Pooled | None,
    groups: Sequence[Group],
    gates: Mapping[Side, Gates],
) -> StudyPage:
    """The page; where no cell was evaluated `pooled` is None and there are no groups and gates."""
    void, verdict = _verdict(plan, gates, pooled is not None)
    parts = []
    if gates:
        parts.append(_gates_part(plan, gates))
    for group in groups:
        assert pooled is not None  # noqa: S101  there are groups
        parts += [_means_part(plan, pooled, group), *_tests_part(plan, group)]
        parts += _swept_parts(plan, group)
    if pooled is not None:
        parts += confidence_parts(plan, pooled)
    if plan.study.ends_with == "train":
        parts.append(_validation_part(plan, record))
    parts += [*_training_parts(plan, pooled), _hours_part(plan, record)]
    return StudyPage(
        plan.study.title or plan.study.name,
        plan.study.about,
        void,
        verdict,
        tuple(_facts(plan, record)),
        tuple(parts),
    )


def _verdict(plan: Plan, gates: Mapping[Side, Gates], evaluated: bool) -> tuple[bool, str]:
    """Whether the study is void, and one sentence on it."""
    if plan.study.ends_with == "train":
        return False, "Cells end with training, so what validation says is all there is."
    if not plan.starts:
        return False, "No method that starts from a language model is judged here."
    if not evaluated:
        return False, "No cell stands yet, so nothing can be said."
    failed = []
    for side in plan.starts:
        if side not in gates:
            return False, f"{_title(plan, side)}, the start, has not been evaluated yet."
        if gates[side].failed:
            failed.append(f"{_title(plan, side)}: {'; '.join(gates[side].failed)}")
    if failed:
        return True, (
            "What the methods start from has not learned to read histories, so the differences "
            f"below say nothing for or against them. {'. '.join(failed)}."
        )
    return False, "What the methods start from passes the three gates."


def _facts(plan: Plan, record: Record) -> list[str]:
    standing = [cell for cell in plan.cells if record.stands(cell)]
    facts = [
        f"{len(standing)} of {len(plan.cells)} cells stand ({len(plan.lines)} lines, seeds "
        f"{', '.join(map(str, plan.study.seeds))}); {record.hours():.2f} hours"
        + (f" of a budget of {plan.study.budget:g}." if plan.study.budget is not None else ".")
    ]
    if standing:
        known = standing[0].folder.provenance(standing[0].recipe)
        packages = ", ".join(f"{name} {version}" for name, version in known["packages"].items())
        facts.append(f"llmrec {known['llmrec']}, Python {known['python']}, {packages}.")
    facts += _chosen(standing)
    again = [name for name, said in record.cells.items() if said["made"] > 1]
    if again:
        facts.append(f"Made more than once, as their run folders were lost: {', '.join(again)}.")
    return [*facts, *(f"Failed: {name}: {why}" for name, why in record.failed().items())]


def _chosen(standing: Sequence[Cell]) -> list[str]:
    """What training chose in validation in some cells: an alpha, or to keep other weights."""
    alphas, kept = [], []
    for cell in standing:
        place = cell.folder.adapter
        facts = sealed.facts(place) if sealed.manifest_of(place).is_file() else {}
        if "alpha" in facts:
            alphas.append(f"{cell.name} {facts['alpha']:g}")
        if "kept" in facts:
            kept.append(f"{cell.name} its {facts['kept']}'s")
    said = [f"soft.alpha, chosen in validation: {', '.join(alphas)}."] if alphas else []
    if kept:
        said.append(f"Kept other weights, better in validation than its own: {', '.join(kept)}.")
    return said


def _gates_part(plan: Plan, gates: Mapping[Side, Gates]) -> Part:
    rows = []
    for side, one in gates.items():
        start = "start" if side in plan.starts else ""
        verdict = "fails" if one.failed else "passes"
        rows.append(
            [
                _title(plan, side),
                start,
                _interval(one.over_popularity, sign=True),
                _interval(one.sensitivity, sign=True),
                f"{one.distinct:.1%} of {one.answers}",
                verdict,
            ]
        )
    return Part(
        "Gates",
        "A model that has not learned to read histories says nothing about a method: its NLL is to "
        f"stand below popularity's, another user's history is to cost at least {LEAST_SENSITIVITY} "
        f"nats, and of the first answers to {ASKED} users at least {LEAST_DISTINCT:.0%} are to be "
        "distinct (expected of a random draw, or of all where there are fewer), on the mean of "
        "the seeds.",
        Sheet(
            ["", "", "NLL less popularity's", "another's history costs", "distinct", "gates"], rows
        ),
    )


def _means_part(plan: Plan, pooled: Pooled, group: Group) -> Part:
    several = len(plan.study.seeds) > 1
    scaled = {
        row.side: at_temperature(pooled, row.side) for row in pooled.rows if group.name == "all"
    }
    has_scaled = any(value is not None for value in scaled.values())
    first = plan.study.metrics[0]
    header = ["", *(f"{m}, nats" if m == NLL else m for m in plan.study.metrics)]
    header += ["NLL at a temperature"] if has_scaled else []
    header += [f"{first} by seed"] if several else []
    rows = []
    for row in pooled.rows:
        cells = [_interval(group.means[row.side][m]) for m in plan.study.metrics]
        cells += [_interval(scaled[row.side])] if has_scaled else []
        cells += [", ".join(map(number, by_seed(pooled, row.side, first)))] if several else []
        rows.append([row.title, *cells])
    heading = "All test users" if group.name == "all" else f"Targets that are {group.name}"
    text = f"n = {group.n} (user, seed) pairs of {group.users} users. "
    text += METHOD.format(level=f"{CONFIDENCE * 100:g}")
    if has_scaled:
        text += (
            " The temperature is fitted in validation; its NLL is exact where the whole catalog is "
            "listed, else at most so large."
        )
    return Part(heading, text, Sheet(header, rows))


def _tests_part(plan: Plan, group: Group) -> list[Part]:
    if not group.tests:
        return []
    rows = []
    for tested in group.tests:
        one, test = tested.comparison, tested.comparison.test
        rows.append(
            [
                _by_key(plan, one.system),
                _by_key(plan, one.reference),
                one.metric,
                f"{number(test.difference, sign=True)} [{number(test.low, sign=True)}, "
                f"{number(test.high, sign=True)}]",
                number(one.p_holm),
                f"{tested.agreeing} of {tested.seeds}",
                str(test.n),
                one.standing,
            ]
        )
    header = ["", "against", "metric", "difference", "p (Holm)", "seeds alike", "n", "stands"]
    name = "" if group.name == "all" else f", {group.name} targets"
    return [Part(f"Paired differences{name}", "", Sheet(header, rows))]


def _swept_parts(plan: Plan, group: Group) -> list[Part]:
    """A drawing for each metric against each axis of numbers."""
    drawings = []
    axes = dict.fromkeys(key for line in plan.lines.values() for key in line.at)
    for axis in axes:
        on_axis = [line for line in plan.lines.values() if _is_number(line.at.get(axis))]
        for metric in plan.study.metrics:
            lines: dict[str, list[tuple[float, float, float, float]]] = {}
            for line in on_axis:
                mean = group.means.get(Side(line.name, line.system), {}).get(metric)
                if mean is not None:
                    point = (float(line.at[axis]), mean.mean, mean.low, mean.high)
                    lines.setdefault(_others(plan, line, axis), []).append(point)
            still = [line for line in plan.lines.values() if axis not in line.at]
            levels = {
                line.title: found[metric].mean
                for line in still
                if (found := group.means.get(Side(line.name, line.system)))
            }
            svg = swept_curve(lines, levels, metric, axis)
            if svg is not None:
                name = f"{group.name}-{axis.rpartition('.')[2]}-{metric.replace('@', '')}"
                drawings.append(Drawing(name, f"{metric} by {axis}, {group.name}.", svg))
    return [Part("Against the swept value", drawings=tuple(drawings))] if drawings else []


def _others(plan: Plan, line: Line, axis: str) -> str:
    """An arm and its values on the other axes."""
    rest = [f"{key.rpartition('.')[2]} {value}" for key, value in line.at.items() if key != axis]
    return ", ".join([plan.study.arms[line.arm].title or line.arm, *rest])


def _validation_part(plan: Plan, record: Record) -> Part:
    """What each training reached, line by line and seed by seed."""
    figures = {cell.name: record.cells.get(cell.name, {}).get("figures", {}) for cell in plan.cells}
    names = list(dict.fromkeys(name for known in figures.values() for name in known))
    rows = [
        [
            cell.line.title,
            str(cell.seed),
            *(_figure(figures[cell.name].get(name)) for name in names),
        ]
        for cell in plan.cells
    ]
    return Part("Validation", "", Sheet(["", "seed", *names], rows))


def _training_parts(plan: Plan, pooled: Pooled | None) -> list[Part]:
    curves = {line.title: trainings(plan.of(line.name)) for line in plan.lines.values()}
    curves = {title: found for title, found in curves.items() if found}
    guess = {}
    for metrics in [] if pooled is None else pooled.metrics.values():
        guess["uniform guess"] = float(metrics["table"]["uniform_nll"])
    svg = training_curves(curves, guess, "training targets seen")
    if svg is None:
        return []
    caption = "Target NLL in validation by targets seen; further seeds of a line are paler."
    return [Part("Training", drawings=(Drawing("training", caption, svg),))]


def _hours_part(plan: Plan, record: Record) -> Part:
    rows = []
    for line in plan.lines.values():
        cells = plan.of(line.name)
        names = [cell.name for cell in cells]
        made = sum(record.cells.get(name, {}).get("made", 0) for name in names)
        standing = sum(record.stands(cell) for cell in cells)
        rows.append(
            [line.title, f"{record.hours(names):.2f}", f"{standing} of {len(cells)}", str(made)]
        )
    text = "Hours of finished stages; what interruptions cost is not in them."
    return Part("Hours", text, Sheet(["", "hours", "cells that stand", "made"], rows))


def _title(plan: Plan, side: Side) -> str:
    line = plan.lines[side.line]
    return line.title if side.system == line.system else f"{line.title}, {side.system}"


def _by_key(plan: Plan, key: str) -> str:
    line, _, system = key.rpartition(":")
    return _title(plan, Side(line, system))


def _interval(interval: Interval | None, sign: bool = False) -> str:
    if interval is None or not interval.n:
        return UNDEFINED
    text = number(interval.mean, sign=sign)
    if math.isfinite(interval.low):
        text += f" [{number(interval.low, sign=sign)}, {number(interval.high, sign=sign)}]"
    return text


def _figure(value: object) -> str:
    if value is None or isinstance(value, bool):
        return UNDEFINED
    return str(value) if isinstance(value, int) else number(float(str(value)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
