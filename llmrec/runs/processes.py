"""The processes that a launcher started, and how they share work."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

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
