"""How long each stage of a run will take on this machine, from little that is really done.

Two optimiser steps are learned and two users are asked, with the model as training begins; an epoch
of each network is timed on some users. What is learned is thrown away. Knows no stage but training.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from transformers import TrainerCallback

from llmrec.baselines.network_tuning import KINDS
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples, Interactions
from llmrec.evaluation.intervals import mean_intervals
from llmrec.inference.engine import Engine, closed_items
from llmrec.methods.method import Job
from llmrec.methods.table import method_of
from llmrec.model.trainer import TreeTrainer, Validated
from llmrec.progress import LONG, words
from llmrec.recipe import Recipe
from llmrec.recipe.systems import System, parsed
from llmrec.runs.folder import RunFolder
from llmrec.runs.processes import processes
from llmrec.stages.train import arguments_of
from llmrec.text.tree import TokenTree

log = logging.getLogger("llmrec")
STEPS, USERS, NETWORK_USERS = 2, 2, 200
LESS = "rows.count, train.num_train_epochs, data.subset.valid, data.subset.test, systems"


@dataclass(frozen=True)
class Asking:
    """Seconds for a user: a list, the likelihood of a target, a free answer (0 where none is)."""

    rank: float
    nll: float
    write: float


def estimated(job: Job, rows: Sequence[TokenTree], model: Any, prepared: float) -> dict[str, Any]:
    """{hours: by stage, in_words}. `rows` are those that training reads, `model` as it begins;
    `prepared`: the seconds that preparing took just now."""
    recipe, folder = job.recipe, job.folder
    asking = _asking(job, model)
    step = _seconds_of_steps(job, rows, model)
    seconds: dict[str, Any] = {
        "prepare": prepared,
        "train": {} if recipe.model.adapter else _training(job, len(rows), step, asking),
        "recommend": {s.name: _answering(job, s, asking) for s in parsed(recipe.systems)},
        "evaluate": _evaluating(recipe, folder),
    }
    sums = {n: sum(x.values()) if isinstance(x, dict) else x for n, x in seconds.items()}
    total = sum(sums.values())
    if total > LONG:
        log.warning("train: a run of this takes about %s; less: %s", words(total), LESS)
    told = ", ".join(f"{name} {words(value)}" for name, value in sums.items())
    return {
        "hours": {name: _hours(value) for name, value in seconds.items()},
        "in_words": f"about {words(total)} in all: {told}; on this machine, if nothing stops early",
    }


def _hours(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _hours(inner) for name, inner in value.items()}
    return round(value / 3600, 4)


def _seconds_of_steps(job: Job, rows: Sequence[TokenTree], model: Any) -> float:
    """Seconds to learn all the epochs' rows, by their tokens, from steps that were learned."""
    recipe, method = job.recipe, method_of(job.recipe)
    batch = rows_of_step(recipe)
    drawn = np.random.default_rng(0).permutation(len(rows))[: (1 + STEPS) * batch]
    some = [rows[int(i)] for i in drawn]
    few = {"max_steps": 1 + STEPS, "eval_strategy": "no", "save_strategy": "no"}
    quiet = {"report_to": "none", "logging_strategy": "no"}
    shorter = recipe.model_copy(update={"train": {**recipe.train, **few, **quiet}})
    clock = _Clock()
    with TemporaryDirectory(prefix="llmrec-") as place:
        scratch = RunFolder(Path(place))
        trainer = TreeTrainer(
            model,
            arguments_of(shorter, scratch),
            some,
            method.loss(job),
            lambda _: Validated((0.0,), {}),
            scratch.train_log,
            cuda_graphs=recipe.model.cuda_graphs,
            begin=None if method.begin is None else partial(method.begin, job, some),
        )
        trainer.add_callback(clock)
        scratch.train_log.parent.mkdir(parents=True, exist_ok=True)
        trainer.train()
        trainer.model.eval()
    # The first step is warm-up.
    per_row = (clock.ends[-1] - clock.ends[0]) / (STEPS * min(batch, len(some)))
    size = np.mean([len(row) for row in rows]) / np.mean([len(row) for row in some])
    return float(per_row * len(rows) * float(recipe.train["num_train_epochs"]) * size)


class _Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ends.append(time.monotonic())


def rows_of_step(recipe: Recipe) -> int:
    """Rows of an optimiser step, over all processes."""
    each = recipe.train["per_device_train_batch_size"]
    together = recipe.train.get("gradient_accumulation_steps", 1)
    return int(each) * int(together) * processes().num_processes


def _asking(job: Job, model: Any) -> Asking:
    """What two users of the test split cost, on their own histories without anything beside."""
    recipe, folder = job.recipe, job.folder
    test = Examples.read(folder.examples("test"))
    drawn = np.random.default_rng(0).permutation(len(test))[:USERS]
    some = test.take(np.sort(drawn))
    engine = Engine(model.eval(), job.encoder, recipe.decode)
    prompts = [job.encoder.prompt(history).ids for history in some.histories()]
    closed = closed_items(some.histories(), recipe.decode.filter_seen)
    if recipe.data.candidates is None:
        rank = partial(engine.rank, prompts, closed)
    else:
        items, count = len(job.encoder.titles), recipe.data.candidates.count
        shown = [np.random.default_rng(n).permutation(items)[:count] for n in range(len(some))]
        rank = partial(engine.choose, prompts, np.array(shown, np.int32))
    free = any(system.way in ("grounded", "free") for system in parsed(recipe.systems))
    grounding = recipe.decode.grounding
    write = partial(engine.write, prompts, grounding.beams, grounding.max_new_tokens)
    targets = some.targets
    return Asking(
        _seconds(rank) / len(some),
        _seconds(lambda: engine.nll(prompts, closed, targets)) / len(some),
        _seconds(write) / len(some) if free else 0.0,
    )


def _seconds(do: Callable[[], Any]) -> float:
    began = time.monotonic()
    do()
    return time.monotonic() - began


def _training(job: Job, rows: int, steps: float, asking: Asking) -> dict[str, float]:
    """Seconds of each step of the method and of what it asks the live model for."""
    recipe, folder = job.recipe, job.folder
    every = -(-rows // rows_of_step(recipe)) * float(recipe.train["num_train_epochs"])
    validations = float(recipe.train["num_train_epochs"])
    if recipe.train.get("eval_strategy") == "steps":
        validations = every // float(recipe.train.get("eval_steps") or every or 1)
    users = len(Examples.read(folder.examples("valid")))
    ranks = recipe.validation.metric != "nll"
    answers = asking.write if recipe.validation.answer == "grounding" else asking.rank
    validating = max(1.0, validations) * users * (answers if ranks else asking.nll)
    found = {"steps": steps, "validation": validating}
    if recipe.soft is not None:
        # Each prompt is answered once; a probe of some before each epoch.
        answered = asking.rank if recipe.soft.distill.decode != "free" else asking.write
        probes = float(recipe.train["num_train_epochs"]) * recipe.soft.probe
        found |= {"distill": rows * answered, "probe": probes * answered}
        if recipe.soft.sft_adapter is None:
            found |= {"sft": steps / 2 + validating}  # of two titles a row it learns one
    return found


def _answering(job: Job, system: System, asking: Asking) -> float:
    """Seconds of a row of the table; 0 where it is told by no model."""
    folder = job.folder
    test, valid = (len(Examples.read(folder.examples(part))) for part in ("test", "valid"))
    if system.kind == "language_model":
        each = asking.write if system.way in ("grounded", "free") else asking.rank
        chosen = valid * asking.nll if system.way in ("guided", "fused") else 0.0
        gates = test * asking.nll if job.recipe.evaluate.gates and system.way == "ranked" else 0.0
        return test * each + chosen + gates
    return _network(job, system) if system.weights in KINDS else 0.0


def _network(job: Job, system: System) -> float:
    """Seconds of all trials of a network, each to its last epoch."""
    network = KINDS[system.weights]()
    data = Interactions.read(job.folder.interactions)
    users = np.random.default_rng(0).permutation(len(data.user_ids))[:NETWORK_USERS]
    some = data.take(np.isin(data.user, users))
    none = Examples.read(job.folder.examples("valid")).take(np.zeros(0, np.int64))
    items = len(Catalog.read(job.folder.items))
    epoch = _seconds(lambda: replace(network, max_epochs=1).fit(some, items, none, True, 0))
    share = len(some) / max(1, len(data))
    return epoch / max(share, 1e-9) * network.max_epochs * job.recipe.baselines.trials


def _evaluating(recipe: Recipe, folder: RunFolder) -> float:
    """Seconds of the table: a column of bootstrap intervals, for each column, system and group."""
    test = Examples.read(folder.examples("test"))
    users = np.unique(test.user_ids, return_inverse=True)[1]
    values = np.random.default_rng(0).random((len(test), 4))
    wanted = recipe.evaluate
    options = {"samples": wanted.samples, "confidence": wanted.confidence, "seed": wanted.seed}
    columns = 1 + 3 * len(wanted.k)
    one = _seconds(lambda: mean_intervals(values, users, **options)) / 4
    return one * columns * len(recipe.systems) * 3
