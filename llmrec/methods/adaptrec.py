"""Selecting anew while training: the live model chooses whom the training prompts show.

Every choice is written down with its step, so that an interrupted training goes on with the prompts
that it had. Source: AdaptRec (arXiv 2504.08786), which does so every 1,000 micro-batches of 8, that
is every 125 steps of 64.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from llmrec.data.files import write_json
from llmrec.inference.engine import live_engine
from llmrec.inference.prompting import Prompting
from llmrec.inference.ratings import Selected
from llmrec.methods import plain
from llmrec.methods.method import Job, Method, Trees, alone
from llmrec.methods.redrawing import steps_of_epoch
from llmrec.methods.windows import Window, training_rows
from llmrec.model.trainer import Refresh
from llmrec.recipe import Recipe
from llmrec.runs.folder import RunFolder
from llmrec.runs.processes import main_only, processes
from llmrec.text.tree import TokenTree

log = logging.getLogger("llmrec")


class Reselecting:
    """What the trainer calls before each step; processes share the questions."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        windows: Sequence[Window],
        prompting: Prompting,
        drawn: Callable[[int], Prompting] | None = None,
    ) -> None:
        """`drawn`: the prompts of an epoch, where their candidates are drawn anew in each."""
        self.recipe, self.folder, self.windows = recipe, folder, windows
        self._drawn, self._epoch = drawn, 0
        self._in_epoch = steps_of_epoch(recipe, len(windows))
        self.prompting, self._shown = prompting, prompting.selected(None)
        self._begun = False
        self._engine_of = live_engine(prompting.encoder, recipe.decode)

    def __call__(
        self, model: nn.Module, step: int
    ) -> tuple[Sequence[TokenTree], dict[str, Any]] | None:
        """The rows from `step` on and how much of the selection changed; None: as they were."""
        epoch, redrawn = step // self._in_epoch, False
        if self._drawn is not None and epoch != self._epoch:
            self._epoch, redrawn = epoch, True
            self.prompting = self._drawn(epoch)
        begun, self._begun = self._begun, True
        known = None if begun else main_only(lambda: self._newest(step))
        if known is not None:
            self._shown = self._on_file(known)
        if not self._due(step):
            return None if known is None and not redrawn else (self._rows(), {})
        if known == step:  # chosen before an interruption, which may have come before the log
            earlier = self._newest(step - 1)
            before = self.prompting.selected(None) if earlier is None else self._on_file(earlier)
        else:
            before, self._shown = self._shown, self._selected(model)
            if processes().is_main_process:
                write_json(
                    self.folder.selected / f"{step}.json",
                    [
                        {"shown": s.shown, "ratings": s.ratings, "failed": s.failed}
                        for s in self._shown
                    ],
                )
        pairs = list(zip(before, self._shown, strict=True))
        new = [len(set(b.shown) - set(a.shown)) / max(1, len(b.shown)) for a, b in pairs]
        facts = {
            "selection_changed": float(np.mean([a.shown != b.shown for a, b in pairs])),
            "users_changed": float(np.mean(new)),
            "selection_failed": int(sum(s.failed for s in self._shown)),
        }
        log.info(
            "train: selection at step %d, changed in %.0f %% of the prompts",
            step,
            100 * facts["selection_changed"],
        )
        return self._rows(), facts

    def _due(self, step: int) -> bool:
        wanted = self.recipe.demonstrations
        assert wanted is not None  # noqa: S101  whoever selects has them
        every = wanted.selection.refresh if wanted.selection is not None else 0
        return step == 0 or (every > 0 and step % every == 0)

    def _newest(self, step: int) -> int | None:
        """The step of the newest selection on file up to a step."""
        steps = [int(path.stem) for path in self.folder.selected.glob("*.json")]
        return max((s for s in steps if s <= step), default=None)

    def _on_file(self, step: int) -> list[Selected]:
        said = json.loads((self.folder.selected / f"{step}.json").read_text("utf-8"))
        return [Selected(tuple(s["shown"]), tuple(s["ratings"]), s["failed"]) for s in said]

    def _selected(self, model: nn.Module) -> list[Selected]:
        return self.prompting.selected(self._engine_of(model))

    def _rows(self) -> list[TokenTree]:
        contexts = self.prompting.contexts(self._shown)
        return training_rows(self.recipe, self.prompting.encoder, self.windows, contexts)


def all_steps(recipe: Recipe, rows: int) -> int:
    """Optimiser steps of a whole training."""
    given = int(recipe.train.get("max_steps") or -1)  # type: ignore[arg-type]
    epochs = float(recipe.train["num_train_epochs"])  # type: ignore[arg-type]
    return given if given > 0 else math.ceil(steps_of_epoch(recipe, rows) * epochs)


def refresh(job: Job, rows: Trees) -> Refresh | None:
    """Selecting anew, where the recipe's demonstrations are selected by the model."""
    prompting = job.prompting
    if prompting is None or prompting.selecting is None:
        return None
    wanted = job.recipe.demonstrations
    every = wanted.selection.refresh if wanted is not None and wanted.selection is not None else 0
    steps = all_steps(job.recipe, len(job.windows))
    if every >= steps:
        log.warning(
            "train: demonstrations.selection.refresh is every %d steps, and training has %d, so "
            "the users shown are selected once, before the first step",
            every,
            steps,
        )
    drawn = None
    if job.recipe.rows.redraw:

        def drawn(epoch: int) -> Prompting:
            found = job.drawn(epoch).prompting
            assert found is not None  # noqa: S101  the job has one already
            return found

    reselecting = Reselecting(job.recipe, job.folder, job.windows, prompting, drawn)
    return lambda model, step, _: reselecting(model, step)


ADAPTREC = Method(lambda _: {"train": alone}, plain.rows, plain.loss, refresh, asks=True)
