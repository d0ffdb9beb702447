"""Further processes that work on the same study, each an `llmrec study` of its own.

They take cells that no other works on (see `running`), write no page, and end with this process.
"""

import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("llmrec")
GRACE = 120.0  # seconds that a training has to save before it is ended


@contextmanager
def helped(
    count: int, reference: str | Path, overrides: Sequence[str], only: Sequence[str]
) -> Iterator[None]:
    """While open `count` further processes take cells; on leaving they are waited for.

    Where this process fails or is stopped they are asked to stop, which they do as it does.
    """
    command = [sys.executable, "-m", "llmrec", "study", str(reference), *overrides, "--no-page"]
    command += [part for name in only for part in ("--only", name)]
    started = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(count)]  # noqa: S603
    try:
        yield
        for process in started:
            if process.wait() not in (0, 1):  # 1: cells failed, which the record tells
                log.warning("study: a process beside this one ended with %d", process.returncode)
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
        for process in started:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
