"""The processes that a launcher started, and how they share work."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from llmrec.errors import LlmrecError

T = TypeVar("T")


def processes() -> PartialState:
    """The processes that a launcher started, this one alone without a launcher."""
    # Without `cpu` accelerate does not join processes on a machine that has no GPU.
    return PartialState(cpu=not torch.cuda.is_available())


def share_of(count: int) -> list[int]:
    """Which of `count` things this process does; neighbours go to different processes.

    Processes do equally many, as sharded models demand, so some are done twice.
    """
    state = processes()
    each = -(-count // state.num_processes)
    return [(n * state.num_processes + state.process_index) % count for n in range(each)]


def gathered(found: Mapping[int, T]) -> dict[int, T]:
    """What all processes found for their shares, by number; every process calls this."""
    return dict(gather_object(list(found.items())))


def joined(timeout: float | None = None) -> PartialState:
    """The processes of a launcher, made a group that waits `timeout` seconds for one another.

    Only the first call of a process makes the group; the recipe's `train.ddp_timeout` goes here.
    """
    waits = {} if timeout is None else {"timeout": timedelta(seconds=timeout)}
    return PartialState(cpu=not torch.cuda.is_available(), **waits)


def staged(stage: Callable[[], T], *, everyone: bool) -> T:
    """Run a stage and return what it gave, in all processes or the main one alone; then all go on.

    Of the main process alone the others wait, get its result, and fail as it failed. Where one of
    all fails it ends, and the launcher ends the others, which may be waiting for it anywhere.
    """
    state = processes()
    if everyone or state.num_processes == 1:
        result = stage()
        state.wait_for_everyone()
        return result
    told: list[Any] = [None, None]
    if state.is_main_process:
        try:
            told[0] = stage()
        except Exception as error:
            told[1] = error if isinstance(error, LlmrecError) else LlmrecError(repr(error))
            broadcast_object_list(told)
            raise
    broadcast_object_list(told)
    if told[1] is not None:
        told[1].is_told = True  # by the process that failed
        raise told[1]
    return told[0]  # type: ignore[no-any-return]
