"""`llmrec train --dry-run`: what training would read, do, need and take. Keeps nothing."""

import time
from typing import Any

import numpy as np

from llmrec.data.files import free_bytes
from llmrec.data.records import Examples
from llmrec.methods.table import method_of
from llmrec.recipe import Recipe
from llmrec.runs.folder import RunFolder
from llmrec.runs.processes import begun
from llmrec.stages import prepare, prompts, timing
from llmrec.stages.train import bytes_needed, model_of, prepared
from llmrec.text.tree import TokenTree


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """What training would read, do and need: lengths, truncation, steps, parameters, disk, hours.

    `prompt`: one row of it, as `prompts render` shows it. With a section `soft`, the last step's;
    before there are answers, as if they were the titles. `hours` are those of every stage of a run
    on this machine (see `timing`).
    """
    method = method_of(recipe)
    if method.preview is not None:
        prepare.run(recipe, folder)
        return method.preview(recipe, folder)
    begun(recipe, folder.root)
    began = time.monotonic()
    job = prepared(recipe, folder)
    seconds = time.monotonic() - began
    rows = (method.shown or method.rows)(job)
    lengths, targets = np.array([(len(row), _real_targets(row)) for row in rows]).T
    train = Examples.read(folder.examples("train"))
    dropped = [
        job.encoder.prompt(h).dropped > max(0, len(h) - recipe.prompt.max_history)
        for h in train.histories()[:2000]
    ]
    model = model_of(recipe)
    sizes = [(name, p.numel(), p.requires_grad) for name, p in model.named_parameters()]
    total = sum(size for name, size, _ in sizes if ".lora_" not in name)
    trainable = sum(size for _, size, trains in sizes if trains)
    epochs = float(recipe.train["num_train_epochs"])
    return {
        "rows": len(rows),
        "targets": int(targets.sum()),
        "row_tokens": {f"p{q}": int(np.percentile(lengths, q)) for q in (5, 50, 95, 100)},
        "share_of_prompts_that_lost_titles_to_max_tokens": float(np.mean(dropped)),
        "optimiser_steps": int(-(-len(rows) // timing.rows_of_step(recipe)) * epochs),
        "parameters": total,
        "trainable_parameters": trainable,
        "disk_needed_bytes": bytes_needed(recipe, trainable),
        "disk_free_bytes": free_bytes(folder.root),
        **timing.estimated(job, rows, model, seconds),
        "prompt": prompts.rendered(job),
    }


def _real_targets(row: TokenTree) -> int:
    return sum(segment.target >= 0 and segment.kind == 0 for segment in row.segments)
