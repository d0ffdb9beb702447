"""Answers made batch by batch, kept as they come, so that an interrupted stage goes on by batch.

Each process appends the batches it answers to a file of its own, which has a line for each. They
take the batches from one queue. The batches are cut from the whole list, never from what is left,
so that neither an interruption nor the number of processes changes an answer. Where it is cut anew,
because users are to be read otherwise together, a batch that was never answered is answered.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmrec import progress, stopping
from llmrec.data.batching import Batch
from llmrec.data.checked_lines import line, whole_lines
from llmrec.data.files import unique

log = logging.getLogger("llmrec")
Over = Callable[[Callable[[int], Any], Iterable[int]], Iterable[Any]]
SYNCED_EACH = 5.0  # seconds; what a machine that loses its power may have to answer again


def answer_in_parts(
    parts: Path,
    plan: Sequence[Batch],
    begin: Callable[[], Callable[[Batch], list[Any]]],
    what: str,
    over: Over = map,
) -> None:
    """Answer every batch of `plan` whose answers do not stand under `parts`.

    `begin()` is called by who has anything to do, and gives the function that answers a batch: one
    JSON value for each index in it. Processes take the next batch when they are done with one.
    `over`: applies a function to things as they come, in their order. Returns when all processes
    are done.
    """
    from llmrec.runs.processes import main_only, taken, together  # brings torch

    # One looks, for all: files of another host may be seen later.
    left = main_only(lambda: _left(parts, plan))
    answer: Callable[[Batch], list[Any]] | None = None
    since = 0.0

    def coming() -> Iterator[int]:
        nonlocal answer, since
        for done in taken(len(left)):
            stopping.check()
            if answer is None:
                answer, since = begin(), time.monotonic()
            yield done

    def answered(done: int) -> tuple[int, list[Any]]:
        assert answer is not None  # noqa: S101  begun with the first that came
        return done, answer(plan[left[done]])

    with progress.over(f"{what}, batch") as told, _growing(parts) as keep:
        for done, found in over(answered, coming()):
            batch, now = plan[left[done]], time.monotonic()
            answers = {str(i): a for i, a in zip(batch.tolist(), found, strict=True)}
            keep({"batch": _name(batch), "seconds": now - since, "answers": answers})
            since = now
            told.at(done + 1, len(left))
    together()


def collected(parts: Path) -> tuple[list[Any], float]:
    """All answers in order, and the seconds they took."""
    answers: dict[int, Any] = {}
    seconds = 0.0
    for said in _standing(parts):
        answers |= {int(i): answer for i, answer in said["answers"].items()}
        seconds += said["seconds"]
    return [answers[i] for i in range(len(answers))], seconds


def discard(parts: Path) -> None:
    """Remove the files once what they held stands elsewhere."""
    shutil.rmtree(parts, ignore_errors=True)


def _left(parts: Path, plan: Sequence[Batch]) -> list[int]:
    known = {said["batch"] for said in _standing(parts)}
    return [n for n, batch in enumerate(plan) if _name(batch) not in known]


def _standing(parts: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(parts.glob("*.jsonl")):
        for said, end in whole_lines(path):
            if said is None:
                log.warning(
                    "%s: what follows byte %d is not whole, and is answered again", path, end
                )
            else:
                yield said


@contextmanager
def _growing(parts: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What appends a line to this process's own file, which is made with the first one."""
    path, descriptor, synced = parts / f"{unique()}.jsonl", -1, 0.0

    def keep(said: dict[str, Any]) -> None:
        nonlocal descriptor, synced
        if descriptor < 0:
            parts.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        append(path, descriptor, line(said))
        if time.monotonic() - synced > SYNCED_EACH:
            os.fsync(descriptor)
            synced = time.monotonic()

    try:
        yield keep
    finally:
        if descriptor >= 0:
            os.fsync(descriptor)
            os.close(descriptor)


def append(path: Path, descriptor: int, content: bytes) -> None:
    """Write all of it at the end of the file `path`. Raises OSError where there is no room."""
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    except OSError as error:
        error.filename = str(path)
        raise


def _name(batch: Batch) -> str:
    """What these very indices are known by."""
    return hashlib.sha256(batch.astype("<i8").tobytes()).hexdigest()[:16]
