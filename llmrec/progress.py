"""How far long work is, and how long it has left: a bar where somebody watches, else a plain line.

Whoever works in units calls `over` and then `at` behind each of them. The line goes to the log once
in EVERY seconds; `bars`, set by whoever has a terminal, draws instead. Knows no terminal.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

log = logging.getLogger("llmrec")
EVERY = 30.0  # seconds between two lines
SETTLED = 10.0  # seconds after which the time that is left can be told
LONG = 3600.0  # seconds left from which it is said first, and what takes less


class Bar(Protocol):
    """What is drawn for one piece of work."""

    def show(self, done: int, total: int | None, note: str, left: float | None) -> None:
        """Draw it anew; `left` in seconds."""

    def close(self) -> None:
        """The work is over, however it ended."""


class Bars(Protocol):
    """Where bars are drawn."""

    def bar(self, what: str) -> Bar:
        """A new one."""


class _State:
    bars: Bars | None = None


def draw_with(bars: Bars | None) -> None:
    """Have all work drawn from now on; None: told in lines."""
    _State.bars = bars


class Progress:
    """A piece of work, `what` for the log as "train: step", whose units are counted."""

    def __init__(self, what: str, less: str) -> None:
        self.what, self.less = what, less
        self._begun: tuple[float, int] | None = None
        self._told = time.monotonic()
        self._warned = False
        self._bar = None if _State.bars is None else _State.bars.bar(what)

    def at(self, done: int, total: int | None = None, note: str = "") -> None:
        """`done` units of `total` are behind. The first call sets the clock that rates are of."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = now, done
        left = self._left(now, done, total)
        if left is not None and left > LONG and not self._warned:
            self._warned = True
            less = f"; less of it: {self.less}" if self.less else ""
            log.warning("%s %s of %s: about %s left%s", self.what, done, total, words(left), less)
        if self._bar is not None:
            self._bar.show(done, total, note, left)
        elif now - self._told >= EVERY:
            self._told = now
            of = "" if total is None else f" of {total}"
            rest = "" if left is None else f", about {words(left)} left"
            log.info("%s %s%s%s%s", self.what, done, of, f", {note}" if note else "", rest)

    def _left(self, now: float, done: int, total: int | None) -> float | None:
        assert self._begun is not None  # noqa: S101  set by `at`
        seconds, units = now - self._begun[0], done - self._begun[1]
        if total is None or units <= 0 or seconds < SETTLED:
            return None
        return (total - done) * seconds / units

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def over(what: str, less: str = "") -> Iterator[Progress]:
    """Work that is counted inside; `less`: what of a recipe makes it less, for who has too much."""
    progress = Progress(what, less)
    try:
        yield progress
    finally:
        progress.close()


def words(seconds: float) -> str:
    """A duration as a person says it: 40 s, 12 min, 3.4 h, 2.1 days."""
    for unit, size, most in (("s", 1.0, 100), ("min", 60.0, 100), ("h", 3600.0, 48)):
        if seconds / size < most:
            return f"{seconds / size:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400:.1f} days"
