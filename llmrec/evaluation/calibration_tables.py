"""Calibration and prediction sets laid out as tables, from what `calibration.json` says."""

import math
from collections.abc import Mapping
from typing import Any

from llmrec.evaluation import conformal
from llmrec.evaluation.layout import number

STATED, SCALED = "stated", "scaled"  # the probabilities as they are, and at the temperature
ECE, ECE_MASS, BRIER, NLL = "ECE", "ECE, equal mass", "Brier", "NLL"


def figures_table(said: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what `calibration.json` says of probabilities, two rows a system."""
    header, rows = ["system", "temperature", "n"], []
    for system, found in said["systems"].items():
        for which, temperature in ((STATED, 1.0), (SCALED, found["temperature"])):
            figures = found[which]["figures"]
            rows.append(
                [
                    system,
                    number(temperature, 2),
                    str(found["n_measured"]),
                    *(_interval(figure) for figure in figures.values()),
                ]
            )
            names = [f"{name}, nats" if name == NLL else name for name in figures]
    return [*header, *names], rows


def coverage_table(said: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the prediction sets for all users that measure."""
    header = [
        "system",
        "method",
        "wanted",
        "calibrated",
        "coverage",
        "size",
        "median size",
        "empty",
        "guarantee",
    ]
    return header, [
        [
            system,
            c["method"],
            number(1 - c["alpha"], 2),
            str(c["calibrated"]),
            _interval(c["coverage"]),
            _interval(c["size"], 1),
            _number(c["median_size"], 1),
            _number(c["empty_share"], 3),
            "yes" if c["guaranteed"] else f"no: {c['reason']}",
        ]
        for system, found in said["systems"].items()
        for c in found["coverages"]
        if c["group"] == conformal.ALL
    ]


def group_table(said: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the drawn rule for groups, with the common threshold and their own."""
    header = [
        "system",
        "method",
        "wanted",
        "group",
        "n",
        "coverage",
        "size",
        "coverage, own",
        "size, own",
        "guarantee, own",
    ]
    rows = []
    for system, found in said["systems"].items():
        drawn = [
            c
            for c in found["coverages"]
            if c["method"] == said["drawn"] and c["group"] != conformal.ALL
        ]
        owns = {(c["group"], c["alpha"]): c for c in drawn if c["own"]}
        for c in (c for c in drawn if not c["own"]):
            own, cells = owns.get((c["group"], c["alpha"])), ["", "", ""]
            if own is not None:
                cells = [
                    _interval(own["coverage"]),
                    _interval(own["size"], 1),
                    "yes" if own["guaranteed"] else f"no: {own['reason']}",
                ]
            rows.append(
                [
                    system,
                    c["method"],
                    number(1 - c["alpha"], 2),
                    c["group"],
                    str(c["coverage"]["n"]),
                    _interval(c["coverage"]),
                    _interval(c["size"], 1),
                    *cells,
                ]
            )
    return header, rows


def _interval(said: Mapping[str, Any], decimals: int = 3) -> str:
    text = _number(said["mean"], decimals)
    if said["low"] is not None:
        text += f" [{_number(said['low'], decimals)}, {_number(said['high'], decimals)}]"
    return f"{text} (n = {said['n']})" if said["excluded"] and said["n"] else text


def _number(value: float | None, decimals: int) -> str:
    return number(math.nan if value is None else value, decimals)
