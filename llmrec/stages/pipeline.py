"""Stages in order: `llmrec run`, and the three trainings of SOFT behind one `llmrec train`.

Each stage itself skips what is already done.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmrec import stopping
from llmrec.recipe import Recipe
from llmrec.recipe.systems import parsed
from llmrec.runs.folder import RunFolder
from llmrec.stages.holding import alone

log = logging.getLogger("llmrec")
# What `run` tells of what its stages found.
FINDINGS = ("headline", "table", "gates", "findings", "metrics", "report")


@dataclass(frozen=True)
class Stage:
    """A verb of a run. `everyone`: all processes of a launcher run it and share its work; else the
    main one does while the others wait."""

    name: str
    run: Callable[[Recipe, RunFolder], dict[str, Any]]
    everyone: bool


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages of a run in their order."""
    # Imported late: `train` and `recommend` bring torch.
    from llmrec.methods.table import method_of
    from llmrec.stages import calibrate, evaluate, prepare, recommend, report

    trains = any(system.is_trained for system in parsed(recipe.systems))
    calibrates = recipe.evaluate.calibration is not None
    return [
        Stage("prepare", prepare.run, everyone=False),
        *(
            # A network is trained by one process.
            [Stage("train", train, everyone=method_of(recipe).rows is not None)]
            if trains and recipe.model.adapter is None
            else []
        ),
        Stage("recommend", recommend.run, everyone=True),
        Stage("evaluate", evaluate.run, everyone=False),
        *([Stage("calibrate", calibrate.run, everyone=False)] if calibrates else []),
        Stage("report", report.run, everyone=False),
    ]


@alone("run")
def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Prepare, train, recommend, evaluate, report; what they found and each one's seconds."""
    from llmrec.runs.processes import begun, staged

    state = begun(recipe, folder.root)
    seconds: dict[str, float] = {}
    found: dict[str, Any] = {}
    for stage in stages_of(recipe):
        stopping.check()
        log.info("%s: %s", folder.root, stage.name)
        started = time.monotonic()
        result = staged(partial(stage.run, recipe, folder), everyone=stage.everyone)
        found |= {name: result[name] for name in FINDINGS if result and name in result}
        if state.is_main_process:
            folder.keep(recipe)
        seconds[stage.name] = round(time.monotonic() - started, 1)
        log.info("%s: %s done in %.1f s", folder.root, stage.name, seconds[stage.name])
    return {**found, "run": str(folder.root), "seconds": seconds}


def told(found: dict[str, Any]) -> str:
    """What a person reads at the end of a run: was it worth it, the table, what differs, where."""
    places = "\n".join(f"{name}: {found[name]}" for name in ("report", "run") if name in found)
    parts = [found.get(name, "").rstrip() for name in ("headline", "table", "gates", "findings")]
    return "\n\n".join([*(part for part in parts if part), places])


@alone("train")
def train(recipe: Recipe, folder: RunFolder, only: str | None = None) -> dict[str, Any]:
    """Train as the recipe's method says, step by step; `only`: that step alone.

    Those of SOFT are sft (an adapter under `sft/`), distill (its answers under `distilled/`) and
    soft (the run's adapter); those of a network are told in `networks`.
    """
    from llmrec.methods.table import method_of
    from llmrec.runs.processes import begun, main_first, staged
    from llmrec.stages import prepare
    from llmrec.stages import train as training

    begun(recipe, folder.root)
    with main_first():
        prepare.run(recipe, folder)
    method = method_of(recipe)
    steps = partial(method.train, recipe, folder, training.run, only)
    return staged(steps, everyone=method.rows is not None)  # only a language model's is shared
