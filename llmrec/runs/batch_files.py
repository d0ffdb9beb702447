"""Answers made batch by batch, each batch a file, so that an interrupted stage goes on by batch.

Processes take the batches from one queue. The batches are cut from the whole list, never from what
is left, so that neither an interruption nor the number of processes changes an answer. Where it is
cut anew, because users are to be read otherwise together, a batch that was never answered is
answered.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmrec import progress, stopping
from llmrec.data.batching import Batch
from llmrec.data.files import write_json


def answer_in_parts(
    parts: Path, plan: Sequence[Batch], begin: Callable[[], Callable[[Batch], list[Any]]], what: str
) -> None:
    """Answer every batch of `plan` that has no file under `parts`.

    `begin()` is called by who has anything to do, and gives the function that answers a batch: one
    JSON value for each index in it. Processes take the next batch when they are done with one.
    Returns when all processes are.
    """
    from llmrec.runs.processes import main_only, taken, together  # brings torch

    # One looks, for all: files of another host may be seen later.
    left = main_only(
        lambda: [n for n, batch in enumerate(plan) if not _part(parts, batch).exists()]
    )
    answer: Callable[[Batch], list[Any]] | None = None
    with progress.over(f"{what}, batch") as told:
        for done in taken(len(left)):
            batch, answer = plan[left[done]], answer or begin()
            stopping.check()
            started = time.monotonic()
            answers = {str(i): a for i, a in zip(batch.tolist(), answer(batch), strict=True)}
            seconds = time.monotonic() - started
            write_json(_part(parts, batch), {"seconds": seconds, "answers": answers})
            told.at(done + 1, len(left))
    together()


def collected(parts: Path) -> tuple[list[Any], float]:
    """All answers in order, and the seconds they took."""
    answers: dict[int, Any] = {}
    seconds = 0.0
    for path in sorted(parts.glob("*.json")):
        part = json.loads(path.read_text("utf-8"))
        answers |= {int(i): answer for i, answer in part["answers"].items()}
        seconds += part["seconds"]
    return [answers[i] for i in range(len(answers))], seconds


def discard(parts: Path) -> None:
    """Remove the files once what they held stands elsewhere."""
    shutil.rmtree(parts, ignore_errors=True)


def _part(parts: Path, batch: Batch) -> Path:
    """The file of these very indices."""
    known = hashlib.sha256(batch.astype("<i8").tobytes()).hexdigest()
    return parts / f"{known[:16]}.json"
