"""What training leaves behind: its log, checkpoints, and the weights that did best so far."""

import json
from pathlib import Path
from typing import Any

CHECKPOINT, BEST = "checkpoint-", "best-"  # followed by their step


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a training log; none where there is no file."""
    if not path.exists():
        return []
    lines = path.read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]
