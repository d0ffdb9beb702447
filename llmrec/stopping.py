"""A wish to stop, noted when a signal comes and looked at where stopping is safe.

Nothing is raised inside code that happens to run: a library would swallow it or be left half done.
Whoever works in steps calls `check` between them; what takes long to leave, as a training that
saves first, does so inside `gracefully`. Knows no signal and no process; `terminal` does.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(SystemExit):
    """Ends the process with the code of the wish; raised by `check` and by what has saved."""


class _State:
    code: int | None = None
    graceful: int = 0


def request(code: int) -> None:
    """Note that the process is to stop with this exit code; the first wish counts."""
    if _State.code is None:
        _State.code = code


def requested() -> int | None:
    """The exit code of the wish to stop; None without one."""
    return _State.code


def withdraw() -> None:
    """Forget a wish, as where one process does several things in turn."""
    _State.code = None


def check() -> None:
    """Raise Stopped if there is a wish to stop."""
    if _State.code is not None:
        raise Stopped(_State.code)


@contextmanager
def gracefully() -> Iterator[None]:
    """What runs inside stops by itself at its next step, and may take its time to save."""
    _State.graceful += 1
    try:
        yield
    finally:
        _State.graceful -= 1


def is_graceful() -> bool:
    """Whether something runs that stops by itself."""
    return _State.graceful > 0
