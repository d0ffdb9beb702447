"""The processes that a launcher started, and how they share work."""

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from accelerate.utils import gather_object


def processes() -> PartialState:
    """The processes that a launcher started, this one alone without a launcher."""
    # Without `cpu` accelerate does not join processes on a machine that has no GPU.
    return PartialState(cpu=not torch.cuda.is_available())


def share_of(count: int) -> npt.NDArray[np.int64]:
    """Which of `count` things this process does.

    Processes do equally many, as sharded models demand, so some are done twice.
    """
    state = processes()
    share = -(-count // state.num_processes)
    return (np.arange(share) + state.process_index * share) % count


def gathered(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """The rows that all processes found for their `share_of(count)`, (count, ...), in order."""
    return np.array(gather_object(values.tolist()))[:count]
