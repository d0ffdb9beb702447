"""How much of an epoch is padding, for `train.py`: rows of a recipe, grouped by length or not.

Reads the rows of `sft_ml100k` on MovieLens-100K; runs no model.
"""

import tempfile
from collections.abc import Iterator

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.inference.from_recipe import encoder_of
from llmrec.methods.windows import training_rows, training_windows
from llmrec.model.row_order import RowOrder
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder
from llmrec.stages import prepare

SEED = 0


def padding_figures() -> Iterator[dict]:
    """How many tokens of an epoch are padding, with rows grouped by length and without."""
    for shape in ("single", "all_targets"):
        with tempfile.TemporaryDirectory() as scratch:
            recipe = load("sft_ml100k", [f"output_dir={scratch}", f"rows.shape={shape}"])
            folder = RunFolder.of(recipe)
            prepare.run(recipe, folder)
            encoder = encoder_of(recipe, Catalog.read(folder.items))
            windows = training_windows(recipe, Examples.read(folder.examples("train")))
        sizes = np.array([len(row) for row in training_rows(recipe, encoder, windows)])
        batch = recipe.train["per_device_train_batch_size"]
        step = batch * recipe.train["gradient_accumulation_steps"]
        grouped = np.array(list(RowOrder(sizes, step, 1, SEED).numbers(0)))
        drawn = np.random.default_rng(SEED).permutation(len(sizes))
        (waste, most), (unordered, _) = (padded_share(sizes[o], batch) for o in (grouped, drawn))
        yield {
            "part": "padding",
            "figure": "share of an epoch's tokens that are padding",
            "recipe": recipe.name,
            "shape": shape,
            "rows": len(sizes),
            "batch": batch,
            "rows_a_step": step,
            "row_tokens": round(float(sizes.mean()), 1),
            "waste": round(waste, 4),
            "waste_unordered": round(unordered, 4),
            "most_tokens": most,
            "ratio": round((1 - waste) / (1 - unordered), 3),
        }


def padded_share(sizes: np.ndarray, batch: int) -> tuple[float, int]:
    """Of rows read `batch` at a time: the share that is padding, and the most tokens of a batch."""
    parts = [sizes[i : i + batch] for i in range(0, len(sizes), batch)]
    held = [len(part) * int(part.max()) for part in parts]
    return 1 - int(sizes.sum()) / sum(held), max(held)
