"""Processes beside this one, for work in shares that need nothing of each other.

What they log comes out here, and a wish to stop reaches them, so that each stops where that is
safe. They end with this process, however it ends. Knows nothing of the work.
"""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from logging.handlers import QueueHandler, QueueListener
from threading import Thread
from typing import Any

from llmrec import stopping

LOGGER = "llmrec"
EVERY = 0.5  # seconds between looks at whether the others still live, and at a wish to stop


class _Here(logging.Handler):
    """Gives a record to this process's own loggers."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        logging.getLogger(record.name).handle(record)


@contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """So many processes, which begin afresh and take one task after another.

    Where the block is left by an error or a wish to stop, tasks that have not begun are dropped,
    and those that run are told to stop; they are waited for.
    """
    context = multiprocessing.get_context("spawn")
    records, stop = context.Queue(), context.Value("i", 0)
    listener = QueueListener(records, _Here())
    listener.start()
    level = logging.getLogger(LOGGER).getEffectiveLevel()
    pool = ProcessPoolExecutor(count, context, _begin, (records, level, stop))
    try:
        yield pool
    except BaseException:
        stop.value = stopping.requested() or 1
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        listener.stop()


def as_they_end(futures: Sequence["Future[Any]"]) -> Iterator["Future[Any]"]:
    """The futures as each is done; a wish to stop is raised while waiting."""
    left = set(futures)
    while left:
        done, left = wait(left, EVERY, FIRST_COMPLETED)
        yield from done
        stopping.check()


def _begin(records: Any, level: int, stop: Any) -> None:
    """What a new process does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl+C; the first process decides
    logger = logging.getLogger(LOGGER)
    logger.handlers, logger.propagate = [QueueHandler(records)], False
    logger.setLevel(level)
    Thread(target=_watch, args=(stop,), daemon=True).start()


def _watch(stop: Any) -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        if stop.value:
            stopping.request(stop.value)
        time.sleep(EVERY)
    os._exit(1)
