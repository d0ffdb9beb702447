"""What training leaves behind: its log, checkpoints, and the weights that did best so far."""

import json
import logging
import zlib
from pathlib import Path
from typing import Any

log = logging.getLogger("llmrec")
CHECKPOINT, BEST = "checkpoint-", "best-"  # followed by their step
CHECK = "check"  # of a line, the CRC-32 of what else it says


def log_line(facts: dict[str, Any]) -> str:
    """A line of a training log: JSON with a check of what it says, and a line end."""
    return json.dumps({**facts, CHECK: _check(facts)}) + "\n"


def read_log(path: Path) -> list[dict[str, Any]]:
    """What the lines of a training log say; nothing where there is no file.

    A line that was changed, or is none, is told and left out; of a last one that a kill has cut
    nothing is said.
    """
    if not path.exists():
        return []
    text = path.read_bytes().decode("utf-8", errors="replace")
    said = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        facts = _facts(line)
        if facts is not None:
            said.append(facts)
        elif line.endswith("\n"):
            log.warning("%s:%d is not what was written there and was left out", path, number)
    return said


def _facts(line: str) -> dict[str, Any] | None:
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(facts, dict) or facts.pop(CHECK, None) not in (None, _check(facts)):
        return None
    return facts


def _check(facts: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(facts).encode()):08x}"
