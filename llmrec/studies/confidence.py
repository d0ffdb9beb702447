"""The part of a study's page on confidence: what `calibration.json` says, a mean over the seeds.

Sizes of prediction sets are told seed by seed too: a threshold is found once a seed and moves all
of its sets together, which no interval over users holds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmrec.evaluation.calibration_tables import ECE, SCALED, STATED
from llmrec.evaluation.conformal import ALL
from llmrec.evaluation.layout import from_json, number
from llmrec.evaluation.page import Sheet
from llmrec.evaluation.study_page import Part
from llmrec.runs.evaluated import read_calibration
from llmrec.studies.cells import Cell, Plan
from llmrec.studies.pooled import Pooled

RULE = "lac"  # the one that CPFT's losses are about


def calibrations(cells: Sequence[Cell], system: str) -> list[Mapping[str, Any]]:
    """What each cell's calibration says of a system, by seed; of those that have one."""
    found = []
    for cell in cells:
        data = cell.folder.provenance(cell.recipe)["data"]
        said = (read_calibration(cell.folder.calibration, data) or {}).get("systems", {})
        found += [said[system]] if system in said else []
    return found


def confidence_parts(plan: Plan, pooled: Pooled) -> list[Part]:
    """A table with a row for each system that is calibrated; none where no cell calibrates."""
    rows: list[list[str]] = []
    header: list[str] = []
    for row in pooled.rows:
        by_seed = calibrations(plan.of(row.side.line), row.side.system)
        if not by_seed:
            continue
        names = [n for n in by_seed[0][STATED]["figures"] if n == ECE or n.startswith(f"{ECE}, f")]
        eces = [
            number(float(np.mean([_figure(one[which], name) for one in by_seed])))
            for name in names
            for which in (STATED, SCALED)
        ]
        temperature = float(np.mean([one["temperature"] for one in by_seed]))
        sets = [_sets(one) for one in by_seed]
        told = []
        for alpha in sets[0]:
            of_alpha = [one[alpha] for one in sets if alpha in one]
            shares, sizes = zip(*of_alpha, strict=True)
            told += [
                number(float(np.mean(shares))),
                f"{np.mean(sizes):.0f} ({', '.join(f'{size:.0f}' for size in sizes)})",
            ]
        rows.append([row.title, number(temperature, 2), *eces, *told])
        header = ["", "temperature"]
        header += [f"{name}{scaled}" for name in names for scaled in ("", ", at it")]
        header += [
            text for alpha in sets[0] for text in (f"coverage {1 - alpha:g}", "set size (by seed)")
        ]
    text = (
        "Means over seeds. The temperature is fitted in validation; sets get their thresholds from "
        "one part of the test users and are measured on the other."
    )
    return [Part("Confidence", text, Sheet(header, rows))] if rows else []


def _figure(part: Mapping[str, Any], name: str) -> float:
    return from_json(part["figures"][name]["mean"])


def _sets(said: Mapping[str, Any]) -> dict[float, tuple[float, float]]:
    """Coverage and mean size by alpha, of all users."""
    return {
        c["alpha"]: (from_json(c["coverage"]["mean"]), from_json(c["size"]["mean"]))
        for c in said["coverages"]
        if c["group"] == ALL and c["method"] == RULE
    }
