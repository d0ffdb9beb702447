"""Runs the cells of a study one after the other; those that stand are not made again.

The study's folder keeps a record of each cell: what it was made from, its hours, how often it was
made. A run folder that is lost is made again, and the record says so. Hours are those of finished
stages; what an interruption cost is not in them. The same command may run several times at once:
each process takes cells that no other works on, and waits for what its next cell needs or has in
common with one that is being made.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llmrec import stopping
from llmrec.data.files import write_json
from llmrec.errors import LlmrecError, RecipeError
from llmrec.runs.folder import recipe_hash
from llmrec.runs.lock import hold, holder_of, release
from llmrec.studies.cells import Cell, Plan
from llmrec.studies.sharing import Shared, share
from llmrec.terminal import by_main, is_main_process

log = logging.getLogger("llmrec")
RECORDS = "cells"  # folder with a file for each cell, so that processes may write at once
VERSION = 2
PAUSE = 1.0  # seconds between looks at what others work on


@dataclass
class Record:
    """What is known of the cells of a study, by name; a cell's is written after every change."""

    plan: Plan
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    begun: float = field(default_factory=time.time)  # of this process's part in it

    @staticmethod
    def of(plan: Plan) -> "Record":
        """The record that stands; of a cell whose own cannot be read nothing is known."""
        record = Record(plan)
        record.refresh()
        return record

    def refresh(self) -> None:
        """Read again what other processes may have written."""
        for cell in self.plan.cells:
            try:
                said = json.loads(self._file(cell).read_text("utf-8"))
                if said.pop("version") == VERSION:
                    self.cells[cell.name] = said
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                pass

    def _file(self, cell: Cell) -> Path:
        return self.plan.root / RECORDS / f"{cell.name}.json"

    def key(self, cell: Cell) -> str:
        """What a cell was made from: its recipe, and the cells that this names."""
        needed = [
            self.key(c)
            for c in self.plan.cells
            if c.seed == cell.seed and c.line.name in cell.needs
        ]
        return hashlib.sha256("".join([recipe_hash(cell.recipe), *needed]).encode()).hexdigest()

    def stands(self, cell: Cell) -> bool:
        """Whether a cell was finished from this very recipe and its results are there."""
        known = self.cells.get(cell.name, {})
        if not known.get("finished") or known.get("key") != self.key(cell):
            return False
        return all(path.is_file() for path in results_of(self.plan, cell))

    def hours(self, names: Sequence[str] | None = None) -> float:
        """Hours of some cells, by default of all."""
        wanted = self.cells if names is None else [n for n in names if n in self.cells]
        return sum(self.cells[name]["seconds"] for name in wanted) / 3600

    def failed_since(self, cell: Cell) -> bool:
        """Whether a process tried a cell in vain since this one began."""
        known = self.cells.get(cell.name, {})
        return bool(known.get("failed")) and known.get("ended", 0.0) >= self.begun

    def failed(self) -> dict[str, str]:
        """Why cells of the plan failed the last time they were tried, by name."""
        known = {cell.name: self.cells.get(cell.name, {}) for cell in self.plan.cells}
        return {name: said["failed"] for name, said in known.items() if said.get("failed")}

    def expected(self, cell: Cell) -> float:
        """Hours that a cell will take, as far as others tell: the same line's, else all; else 0."""
        same = [
            self.cells[c.name]["seconds"]
            for c in self.plan.of(cell.line.name)
            if self.cells.get(c.name, {}).get("finished")
        ]
        same = same or [said["seconds"] for said in self.cells.values() if said.get("finished")]
        return sum(same) / len(same) / 3600 if same else 0.0

    def add(self, cell: Cell, seconds: float, **said: Any) -> None:
        """Add seconds to a cell's, and what else is known of it."""
        known = self.cells.setdefault(cell.name, {"seconds": 0.0, "made": 0})
        known |= said
        known["seconds"] = round(known["seconds"] + seconds, 1)
        if is_main_process():
            write_json(self._file(cell), {"version": VERSION, **known})


def results_of(plan: Plan, cell: Cell) -> list[Any]:
    """The files that a finished cell has."""
    if plan.study.ends_with == "train":
        return [cell.folder.recipe]
    return [cell.folder.metrics, cell.folder.per_user]


def run(plan: Plan, wanted: Callable[[Cell], bool] = lambda _: True) -> Record:
    """Run every cell that does not stand and that is wanted, until the budget is spent.

    What fails is told in the record, and what needs it is left out; the others go on. Cells that
    another process works on are left to it, and waited for. Of several processes of one launch the
    main one decides and keeps the record.
    """
    record, shared = Record.of(plan), Shared.of(plan.cells)
    waiting = [number for number, cell in enumerate(plan.cells) if wanted(cell)]
    while waiting:
        stopping.check()
        number, what, why = by_main(partial(_next, plan, waiting, record, shared))
        if what == "stop":
            log.warning("study: %s", why)
            break
        if what == "wait":
            time.sleep(PAUSE)
            continue
        waiting.remove(number)
        cell = plan.cells[number]
        if what == "leave out":
            record.add(cell, 0.0, finished=False, failed=why, ended=time.time())
            log.warning("study: %s %s and is left out", cell.name, why)
        if what == "run":
            _make(plan, cell, record)
    return record


def _next(
    plan: Plan, waiting: Sequence[int], record: Record, shared: Shared
) -> tuple[int, str, str]:
    """The first cell about which something can be done, what, and why; else wait."""
    record.refresh()
    for number in waiting:
        left = [plan.cells[n] for n in waiting]
        what, why = _decided(plan, plan.cells[number], record, left, shared)
        if what != "wait":
            return number, what, why
    return -1, "wait", ""


def _decided(
    plan: Plan, cell: Cell, record: Record, waiting: Sequence[Cell], shared: Shared
) -> tuple[str, str]:
    """What is to be done about a cell, and why. Where it is to run, its folder is held."""
    if record.stands(cell) or record.failed_since(cell):
        return "nothing", ""
    needed = [c for c in plan.cells if c.seed == cell.seed and c.line.name in cell.needs]
    lacking = [c for c in needed if not record.stands(c)]
    if any(holder_of(c.folder.root) or c in waiting for c in lacking):
        return "wait", ""
    if lacking:
        return "leave out", f"needs {', '.join(c.name for c in lacking)}"
    budget, spent, more = plan.study.budget, record.hours(), record.expected(cell)
    if budget is not None and (spent >= budget or spent + more > budget):
        return "stop", (
            f"{spent:.2f} of {budget:g} hours are spent and {cell.name} would take about "
            f"{more:.2f}; stopping here, raise it with study.budget=HOURS to go on"
        )
    others = [c for c in plan.cells if c.name != cell.name]
    makers = [c for c in others if shared.awaits(cell, c, plan.cells)]
    if holder_of(cell.folder.root) or _at_work(makers, record):
        return "wait", ""
    try:
        hold(cell.folder.root, "study")
    except RecipeError:  # taken this moment
        return "wait", ""
    record.refresh()  # it may have been finished, and let go, in between
    order = [c.name for c in plan.cells]
    earlier = [c for c in makers if order.index(c.name) < order.index(cell.name)]
    if _at_work(earlier, record):
        release(cell.folder.root)  # begun this moment too, and before this one in the plan
        return "wait", ""
    return ("nothing", "") if record.stands(cell) else ("run", "")


def _at_work(cells: Sequence[Cell], record: Record) -> bool:
    """Whether another process works on one of the cells."""
    failed = {name for name, said in record.cells.items() if said.get("failed")}
    return any(c.name not in failed and holder_of(c.folder.root) for c in cells)


def _make(plan: Plan, cell: Cell, record: Record) -> None:
    from llmrec.stages import pipeline  # brings torch

    log.info("study: %s", cell.name)
    before = record.cells.get(cell.name, {})
    again = before.get("finished") and before.get("key") == record.key(cell)
    if again:
        log.warning("study: %s was made before and is gone; making it again", cell.name)
    by_main(partial(share, cell, plan.cells))
    begun = time.monotonic()
    record.add(cell, 0.0, finished=False, failed=None, key=record.key(cell))
    try:
        if plan.study.ends_with == "train":
            reached = pipeline.train(cell.recipe, cell.folder)
            by_main(partial(cell.folder.keep, cell.recipe))
        else:
            reached = pipeline.run(cell.recipe, cell.folder)
    except LlmrecError as error:
        record.add(cell, time.monotonic() - begun, failed=str(error), ended=time.time())
        log.warning("study: %s failed: %s", cell.name, error)
        return
    made = record.cells[cell.name]["made"] + 1
    figures = figures_of(reached) if plan.study.ends_with == "train" else {}
    seconds = time.monotonic() - begun
    record.add(cell, seconds, finished=True, made=made, figures=figures)


def figures_of(reached: dict[str, Any], above: str = "") -> dict[str, float | int | None]:
    """What a training says of its validation; of several steps, each under its name."""
    figures: dict[str, Any] = {}
    for name, value in reached.items():
        if isinstance(value, dict):
            figures |= figures_of(value, f"{name} ")
        elif name in ("step", "epoch") or name.startswith("valid_"):
            figures[above + name] = value
    return figures
