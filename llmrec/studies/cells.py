"""The cells of a study: every arm, at every value of its axes, with every seed, as a recipe.

All recipes are read before anything runs, so that their errors come at once, each where the study
or the recipe says it. Knows no stage.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmrec.errors import RecipeError
from llmrec.evaluation.gates import POPULARITY
from llmrec.recipe import Recipe, shipped
from llmrec.recipe.loading import load
from llmrec.recipe.reading import Reading, Setting, several
from llmrec.recipe.systems import System
from llmrec.runs.folder import RunFolder
from llmrec.studies import file
from llmrec.studies.file import Study

LEAKY = " (leaky: shows other users' answers)"
RUN = "run:"  # begins a value that is a path in another arm's run folder
AtArms = tuple[str | int, ...]


@dataclass(frozen=True)
class Line:
    """One line of the tables: an arm at one value of each of its axes."""

    name: str
    arm: str
    title: str
    system: str
    at: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """A line with a seed: one run folder. `needs`: lines whose run folders its recipe names."""

    line: Line
    seed: int
    recipe: Recipe
    folder: RunFolder
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How it is called on the command line and in folders."""
        return f"{self.line.name}-s{self.seed}"


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a line's system."""

    line: str
    system: str


@dataclass(frozen=True)
class Plan:
    """A study with its lines, its cells in the order in which they can run, and what is compared.

    `starts`: the sides whose model the methods start from.
    """

    study: Study
    root: Path
    lines: Mapping[str, Line]
    cells: tuple[Cell, ...]
    pairs: tuple[tuple[Side, Side], ...]
    starts: tuple[Side, ...]

    def of(self, line: str) -> list[Cell]:
        """The cells of a line, by seed."""
        return [cell for cell in self.cells if cell.line.name == line]


def planned(reference: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """The plan of a study's file (or shipped name). Raises RecipeError that lists every error."""
    path = shipped.located_study(reference)
    study, reading, for_recipes = file.read(path, list(overrides))
    return plan_of(study, reading, for_recipes, path.parent)


def plan_of(study: Study, reading: Reading, overrides: Sequence[str], folder: Path) -> Plan:
    """The plan of a study that was read; paths in it are relative to `folder`."""
    lines = {line.name: line for arm in study.arms for line in _lines(study, arm)}
    if len(lines) < sum(len(list(_lines(study, arm))) for arm in study.arms):
        reading.report(("arms",), "two lines would be called the same; rename an arm")
    root = Path(study.output_dir).expanduser() / study.name
    cells = []
    recipes: dict[str, None] = {}  # problems, each once and in order
    for line in list(lines.values()):
        for seed in study.seeds:
            settings, needs = _settings(study, reading, line, seed, lines, root, folder)
            try:
                recipe = load(_base(study.recipe, folder), overrides, settings)
            except RecipeError as error:
                recipes |= dict.fromkeys(error.problems)
                continue
            lines[line.name] = line = _marked(line, recipe)
            folder_of = RunFolder.of(recipe, of_study=True)
            cells.append(Cell(line, seed, recipe, folder_of, needs))
    pairs, starts = _pairs(study, reading, lines), _starts(study, reading, lines)
    _check_overrides(study, overrides, reading)
    plan = Plan(study, root, lines, _in_order(cells, reading), pairs, starts)
    if not recipes and not reading.problems:
        _check_rows(plan, reading)
    problems = [text for _, text in sorted(reading.problems, key=lambda problem: problem[0])]
    if problems or recipes:
        raise several(reading.file, [*dict.fromkeys(problems), *recipes])
    return plan


def flat(settings: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[Any]:
    """(path as written, keys, value) of every setting; section.key and sections are the same."""
    for written, value in settings.items():
        path = (*above, written)
        if isinstance(value, Mapping) and value:
            yield from flat(value, path)
        else:
            yield path, tuple(part for key in path for part in key.split(".")), value


def _lines(study: Study, arm: str) -> Iterator[Line]:
    said = study.arms[arm]
    axes = {**study.sweep, **said.sweep}
    for values in itertools.product(*axes.values()):
        at = dict(zip(axes, values, strict=True))
        short = {key.rpartition(".")[2]: value for key, value in at.items()}
        name = "-".join([arm, *(f"{key}-{_word(value)}" for key, value in short.items())])
        title = ", ".join([said.title or arm, *(f"{k} {_word(v)}" for k, v in short.items())])
        yield Line(name, arm, title, said.system or study.system, at)


def _marked(line: Line, recipe: Recipe) -> Line:
    """The line with a title that warns where its prompts show what must not be known."""
    if recipe.demonstrations is None or not recipe.demonstrations.leaks:
        return line
    return replace(line, title=f"{line.title.removesuffix(LEAKY)}{LEAKY}")


def _word(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value).lower()
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_")


def _base(name: str, folder: Path) -> str | Path:
    """The recipe's file beside the study, else what the name means everywhere."""
    beside = folder / Path(name).expanduser()
    return beside if beside.is_file() else name


def _settings(
    study: Study,
    reading: Reading,
    line: Line,
    seed: int,
    lines: Mapping[str, Line],
    root: Path,
    folder: Path,
) -> tuple[list[Setting], tuple[str, ...]]:
    """What a cell changes in the recipe, later ones beating earlier ones."""
    needs: list[str] = []
    settings = [Setting(("evaluate", "gates"), True, reading.file)]
    layers: list[tuple[AtArms, Mapping[str, Any]]] = [
        (("set",), study.set),
        (("per_seed", str(seed)), study.per_seed.get(str(seed), {})),
        (("arms", line.arm, "set"), study.arms[line.arm].set),
        (("sweep",), {key: line.at[key] for key in study.sweep}),
        (("arms", line.arm, "sweep"), {key: line.at[key] for key in study.arms[line.arm].sweep}),
    ]
    for above, given in layers:
        for written, path, value in flat(given):
            at = (*above, *written)
            if isinstance(value, str) and value.startswith(RUN):
                other, _, rest = value.removeprefix(RUN).partition("/")
                found = _resolved(other, line, lines)
                if isinstance(found, str):
                    reading.report(at, f"{value}: {found}")
                    continue
                needs.append(found.name)
                value = str((root / f"{found.name}-s{seed}" / rest).absolute())
            settings.append(Setting(path, value, reading.place_of(at)[1], folder))
    own = {"seed": seed, "name": f"{line.name}-s{seed}", "output_dir": str(root)}
    return [*settings, *(Setting((k,), v, reading.file) for k, v in own.items())], tuple(needs)


def _resolved(name: str, seen_from: Line | None, lines: Mapping[str, Line]) -> Line | str:
    """The line that a name means for another line: of an arm with axes, that at the same values.

    In words what is wrong where there is not exactly one.
    """
    if name in lines:
        return lines[name]
    of_arm = [line for line in lines.values() if line.arm == name]
    if not of_arm:
        arms = dict.fromkeys(line.arm for line in lines.values())
        return f"no arm of that name; there are {', '.join(arms)}"
    at = seen_from.at if seen_from else {}
    same = [
        line
        for line in of_arm
        if all(line.at[key] == value for key, value in at.items() if key in line.at)
    ]
    if len(same) != 1:
        return f"the arm has several lines; say which of {', '.join(line.name for line in of_arm)}"
    return same[0]


def _side(row: str, seen_from: Line | None, lines: Mapping[str, Line]) -> Side | str:
    name, _, system = row.partition(":")
    found = _resolved(name, seen_from, lines)
    return found if isinstance(found, str) else Side(found.name, system or found.system)


def _pairs(
    study: Study, reading: Reading, lines: Mapping[str, Line]
) -> tuple[tuple[Side, Side], ...]:
    pairs = []
    for line in lines.values():
        for number, row in enumerate(study.arms[line.arm].against):
            reference = _side(row, line, lines)
            if isinstance(reference, str):
                reading.report(("arms", line.arm, "against", number), f"{row}: {reference}")
            else:
                pairs.append((Side(line.name, line.system), reference))
    for number, both in enumerate(study.compare):
        sides = [_side(row, None, lines) for row in both]
        for row, side in zip(both, sides, strict=True):
            if isinstance(side, str):
                reading.report(("compare", number), f"{row}: {side}")
        if all(isinstance(side, Side) for side in sides):
            pairs.append((sides[0], sides[1]))
    for pair in pairs:
        if pair[0] == pair[1]:
            reading.report(("arms",), f"{pair[0].line} is compared with itself")
    return tuple(dict.fromkeys(pairs))


def _starts(study: Study, reading: Reading, lines: Mapping[str, Line]) -> tuple[Side, ...]:
    found = []
    for number, row in enumerate(study.start or []):
        name, _, system = row.partition(":")
        of_arm = [line for line in lines.values() if name in (line.arm, line.name)]
        if not of_arm:
            reading.report(("start", number), f"{row}: {_resolved(name, None, lines)}")
        found += [Side(line.name, system or line.system) for line in of_arm]
    return tuple(dict.fromkeys(found))


def _check_overrides(study: Study, overrides: Sequence[str], reading: Reading) -> None:
    """Overrides are of all cells alike, so they may not name what makes the arms differ."""
    sets = [said.set for said in study.arms.values()]
    sweeps = [study.sweep, *(said.sweep for said in study.arms.values())]
    differing = {keys for group in (*sets, *sweeps) for _, keys, _ in flat(group)}
    for override in overrides:
        keys = tuple(override.partition("=")[0].split("."))
        if keys in differing | {("seed",), ("name",), ("output_dir",)}:
            reading.report(
                (), f"command line, {override!r}: the arms or seeds of the study differ in it"
            )


def _check_rows(plan: Plan, reading: Reading) -> None:
    """Every system and metric that is compared must be one of the recipe's."""
    study, of_line = plan.study, {cell.line.name: cell.recipe for cell in plan.cells}
    if study.ends_with == "train":
        return
    compared = [side for pair in plan.pairs for side in pair]
    shown = [Side(line.name, line.system) for line in plan.lines.values()]
    for side in dict.fromkeys([*shown, *compared, *plan.starts]):
        systems = of_line[side.line].systems
        if side.system not in systems:
            arm = plan.lines[side.line].arm
            said = f"{side.line} has no system {side.system}; its recipe's are {', '.join(systems)}"
            reading.report(("arms", arm), said)
    for side in plan.starts:
        if POPULARITY not in of_line[side.line].systems:
            at = ("arms", plan.lines[side.line].arm)
            said = "the first gate compares with popularity, which is not among the systems"
            reading.report(at, f"{side.line}: {said}")
    if study.start is None and any(_is_language_model(side.system) for side in shown):
        reading.report(
            (), "start is missing: the arm whose model the methods start from; [] where none does"
        )
    for number, metric in enumerate(study.metrics):
        kind, _, k = metric.partition("@")
        for recipe in of_line.values():
            lacks = k.isdigit() and int(k) not in recipe.evaluate.k
            if kind not in ("NLL", "HR", "NDCG", "MRR") or bool(k) == (kind == "NLL"):
                reading.report(
                    ("metrics", number), f"{metric!r} is none of NLL, HR@k, NDCG@k, MRR@k"
                )
            elif lacks:
                reading.report(
                    ("metrics", number), f"{metric} needs evaluate.k to hold {k} in every arm"
                )


def _is_language_model(system: str) -> bool:
    return System.is_name(system) and System.parse(system).kind == "language_model"


def _in_order(cells: Sequence[Cell], reading: Reading) -> tuple[Cell, ...]:
    """Seed by seed, and within a seed every cell after those it needs."""
    ordered: list[Cell] = []
    for seed in dict.fromkeys(cell.seed for cell in cells):
        waiting = [cell for cell in cells if cell.seed == seed]
        there: set[str] = set()
        known = {cell.line.name for cell in waiting}
        while waiting:
            ready = [c for c in waiting if all(n in there or n not in known for n in c.needs)]
            if not ready:
                names = ", ".join(cell.line.name for cell in waiting)
                reading.report(("arms",), f"{names} need each other's run folders")
                break
            ordered.append(ready[0])
            there.add(ready[0].line.name)
            waiting.remove(ready[0])
    return tuple(ordered)
