"""`llmrec study`: run the cells of a study that do not stand, then write its page."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llmrec.data.files import replacing, write_json
from llmrec.errors import RecipeError
from llmrec.evaluation.layout import as_json, laid_out
from llmrec.evaluation.study_page import StudyPage, html, markdown
from llmrec.studies import running
from llmrec.studies.beside import helped
from llmrec.studies.cells import Cell, Plan, planned
from llmrec.studies.findings import Group, gates_of, groups_of, key_of
from llmrec.studies.page import page_of
from llmrec.studies.pooled import pooled
from llmrec.studies.running import Record
from llmrec.terminal import by_main

log = logging.getLogger("llmrec")
FINDINGS = "findings.json"


def run(
    reference: str | Path,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    out: Path | None = None,
    jobs: int = 1,
    page: bool = True,
) -> dict[str, Any]:
    """Run what does not stand and write the page; returns tables, verdict and files.

    `only`: names of cells, lines, or seeds as s0; the page is of all that stands. `out`: where the
    Markdown goes instead of the study's folder, its drawings beside it. `jobs`: processes that
    share the cells. Without a `page` what failed is returned alone. Raises RecipeError for a study
    that cannot run.
    """
    plan = planned(reference, overrides)
    wanted = _wanted(plan, only)
    with helped(jobs - 1, reference, overrides, only):
        record = running.run(plan, wanted)
    record.refresh()
    if not page:
        return {"failed": list(record.failed())}
    return by_main(partial(written, plan, record, out))


def described(plan: Plan) -> dict[str, Any]:
    """The cells, what they need, and which of them stand; runs nothing."""
    record = Record.of(plan)
    cells = [
        {
            "cell": cell.name,
            "run": str(cell.folder.root),
            "needs": list(cell.needs),
            "stands": record.stands(cell),
            "hours_expected": round(record.expected(cell), 3),
        }
        for cell in plan.cells
    ]
    return {"study": plan.study.name, "hours": round(record.hours(), 3), "cells": cells}


def written(plan: Plan, record: Record, out: Path | None = None) -> dict[str, Any]:
    """Write the page of what stands, as HTML, Markdown and JSON; returns the last, with tables."""
    standing = [cell for cell in plan.cells if record.stands(cell)]
    evaluated = plan.study.ends_with == "report" and bool(standing)
    pool = pooled(plan, standing) if evaluated else None
    groups = groups_of(plan, pool) if pool is not None else []
    gates = gates_of(plan, pool) if pool is not None else {}
    page = page_of(plan, record, pool, groups, gates)
    target = out or plan.root / "study.md"
    text, drawings = markdown(page, target.stem)
    target.parent.mkdir(parents=True, exist_ok=True)
    plan.root.mkdir(parents=True, exist_ok=True)
    for path, content in {
        target: text,
        plan.root / "study.html": html(page),
        **{target.with_name(name): svg for name, svg in drawings.items()},
    }.items():
        with replacing(path) as temporary:
            temporary.write_text(content, "utf-8")
    findings = {
        "study": plan.study.name,
        "void": page.void,
        "verdict": page.verdict,
        "hours": round(record.hours(), 4),
        "cells": {cell.name: record.cells.get(cell.name, {}) for cell in plan.cells},
        "failed": list(record.failed()),
        "standing": [cell.name for cell in standing],
    }
    findings["gates"] = {key_of(side): one.to_json() for side, one in gates.items()}
    findings["groups"] = [_told(group) for group in groups]
    findings = as_json(findings)
    write_json(plan.root / FINDINGS, findings)
    log.info("study: %s", plan.root / "study.html")
    files = {"page": str(plan.root / "study.html"), "markdown": str(target)}
    return {**findings, "tables": _tables(page), **files}


def _told(group: Group) -> dict[str, Any]:
    return {
        "group": group.name,
        "n": group.n,
        "users": group.users,
        "means": {key_of(side): means for side, means in group.means.items()},
        "tests": [
            {**one.comparison.to_json(), "seeds_alike": one.agreeing, "seeds": one.seeds}
            for one in group.tests
        ],
    }


def _tables(page: StudyPage) -> str:
    """The verdict and the tables as text."""
    tables = [
        f"{part.heading}\n{laid_out(part.sheet.header, part.sheet.rows, 'text')}"
        for part in page.parts
        if part.sheet is not None
    ]
    return "\n".join([f"VOID: {page.verdict}" if page.void else page.verdict, "", *tables])


def _wanted(plan: Plan, only: Sequence[str]) -> Callable[[Cell], bool]:
    known = {name for c in plan.cells for name in _names(c)}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise RecipeError(
            f"--only {unknown[0]}: no such cell; there are "
            f"{', '.join(cell.name for cell in plan.cells)}"
        )
    return lambda cell: not only or bool(_names(cell) & set(only))


def _names(cell: Cell) -> set[str]:
    return {cell.name, cell.line.name, cell.line.arm, f"s{cell.seed}"}
