"""One worker that answers what several requests ask, together where they ask alike.

While one batch is computed the next ones gather: an idle server answers at once, a busy one in
batches. Knows neither models nor HTTP.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

Answer = Callable[[Hashable, Sequence[Any]], Sequence[Any]]


class Full(Exception):
    """More is waiting than may wait."""


@dataclass
class _Job:
    key: Hashable
    asked: Sequence[Any]
    future: "Future[Sequence[Any]]" = field(default_factory=Future)


class Batcher:
    """Calls `answer(key, asked)` in a thread of its own, one answer for each thing asked.

    At most `most` things at a time, of jobs of equal keys, in the order of their coming; at most
    `waiting` of them wait. `sizes`: called with the size of every batch.
    """

    def __init__(
        self, answer: Answer, most: int, waiting: int, sizes: Callable[[int], None] = lambda _: None
    ) -> None:
        self._answer, self._most, self._room, self._sizes = answer, most, waiting, sizes
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="llmrec answers", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many things wait, those that are computed not counted."""
        with self._changed:
            return sum(len(job.asked) for job in self._jobs)

    def submit(self, key: Hashable, asked: Sequence[Any]) -> "Future[Sequence[Any]]":
        """The answers, when they are there; cancelling it takes back what has not begun.

        Raises Full where too much is waiting.
        """
        job = _Job(key, asked)
        with self._changed:
            if self._closed or sum(len(one.asked) for one in self._jobs) + len(asked) > self._room:
                raise Full
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Let the batch in work end and cancel what waits."""
        with self._changed:
            self._closed = True
            for job in self._jobs:
                job.future.cancel()
            self._jobs.clear()
            self._changed.notify()
        self._thread.join()

    def _next(self) -> list[_Job]:
        """The next jobs of one key; none when the batcher is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            taken: list[_Job] = []
            size = 0
            for job in list(self._jobs):
                alike = not taken or job.key == taken[0].key
                if alike and (not taken or size + len(job.asked) <= self._most):
                    taken.append(job)
                    self._jobs.remove(job)
                    size += len(job.asked)
            return taken

    def _work(self) -> None:
        while jobs := self._next():
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if not jobs:
                continue
            asked = [one for job in jobs for one in job.asked]
            self._sizes(len(asked))
            try:
                found = list(self._answer(jobs[0].key, asked))
            except BaseException as error:
                for job in jobs:
                    job.future.set_exception(error)
                continue
            for job in jobs:
                job.future.set_result(found[: len(job.asked)])
                found = found[len(job.asked) :]
