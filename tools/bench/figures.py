"""What every bench says of its figures: what they ran on, and their table."""

import platform

import peft
import torch
import transformers
from decode import MODEL

SEED = 0


def provenance() -> dict:
    """What every figure ran on."""
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    return {
        "model": MODEL,
        "dtype": "float32",
        "seed": SEED,
        "threads": torch.get_num_threads(),
        **versions,
        "machine": platform.machine(),
    }


def table(figures: list[dict], keys: str) -> list[str]:
    """A line for each figure, a column for each key."""
    columns = keys.split()
    lines = [[key.replace("_", " ") for key in columns], ["---"] * len(columns)]
    for f in figures:
        cells = {**f, "ratio": "{} ({} to {})".format(f["ratio"], *f["ratio_range"])}
        lines.append([str(cells[key]) for key in columns])
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]
