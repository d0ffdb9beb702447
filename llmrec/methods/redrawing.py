"""Candidates of training rows drawn anew in each epoch; those of valid and test are drawn once.

Source: AdaptRec (arXiv 2504.08786), whose code draws them at every access.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from llmrec.methods.method import Job, Trees
from llmrec.model.trainer import Coming, Refresh
from llmrec.recipe import Recipe
from llmrec.runs.processes import processes


def steps_of_epoch(recipe: Recipe, rows: int) -> int:
    """Optimiser steps that read `rows` training rows once."""
    together = int(recipe.train["per_device_train_batch_size"])  # type: ignore[arg-type]
    together *= int(recipe.train.get("gradient_accumulation_steps") or 1)  # type: ignore[arg-type]
    return -(-rows // (together * processes().num_processes))


def redrawing(job: Job, rows_of: Callable[[Job], Trees]) -> Refresh | None:
    """What gives the rows of each epoch with its own candidates; None where they stay the same.

    A draw hangs on the row and the epoch's number alone, so an interrupted training goes on with
    the candidates that it had.
    """
    if not job.recipe.rows.redraw:
        return None
    in_epoch, standing = steps_of_epoch(job.recipe, len(job.windows)), 0

    def refresh(_: nn.Module, step: int, __: Coming) -> tuple[Trees, dict[str, Any]] | None:
        nonlocal standing
        epoch = step // in_epoch
        if epoch == standing:
            return None
        standing = epoch
        return rows_of(job.drawn(epoch)), {}

    return refresh
