"""What training leaves behind: its log, and the weights that did best in validation."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from llmrec.data import sealed as checkpoints
from llmrec.errors import LlmrecError

CHECKPOINT, BEST = "checkpoint-", "best-"  # followed by their step


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a training log; none where there is no file."""
    if not path.exists():
        return []
    lines = path.read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def publish_best(root: Path, adapter: Path, settings: dict[str, Any]) -> None:
    """Copy the best sealed weights under `root` to `adapter`, with the settings they came from."""
    best, skipped = checkpoints.newest(root, BEST)
    if best is None:
        raise LlmrecError(f"{root}: no weights that verify ({'; '.join(skipped) or 'none saved'})")
    staged = adapter.with_name(f".{adapter.name}.{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(best, staged)
    known = checkpoints.facts(best)
    checkpoints.seal(
        staged,
        adapter,
        step=known["step"],
        score=known["score"],
        figures=known["figures"],
        settings=settings,
    )
