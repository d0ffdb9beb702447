"""Memory that runs out, and the same done in halves instead.

Knows how the libraries say so; neither trainer nor search.
"""

import gc
import logging
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch

from llmrec.data.batching import Batch

log = logging.getLogger("llmrec")
T = TypeVar("T")
_CGROUP = Path("/sys/fs/cgroup/memory.max")
# What a RuntimeError of torch says where memory ran out and its class does not.
_SAID = ("DefaultCPUAllocator: ", "[enforce fail at alloc", "CUDA out of memory")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was not memory enough."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def release() -> None:
    """Give back what nothing refers to any more, as after an error that has been dealt with."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def memory_of(device: torch.device) -> float:
    """Bytes of memory that a device has in all, whoever uses them; infinity where none can be told.

    Of a CPU: the machine's, or its container's where that is less.
    """
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return math.inf
    machine = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        return min(machine, float(_CGROUP.read_text("utf-8")))
    except (OSError, ValueError):  # "max", or no such groups
        return machine


class Halves:
    """Answers batches: in halves where memory runs out, and from then on no more at a time."""

    def __init__(self) -> None:
        self.most: int | None = None

    def answer(self, batch: Batch, ask: Callable[[Batch], Iterable[T]]) -> list[T]:
        """What `ask` says of each index in `batch`; raises what it raises about a single one."""
        found: list[T] = []
        waiting = [batch]
        while waiting:
            some = waiting.pop()
            if self.most is not None and len(some) > self.most:
                waiting += [some[self.most :], some[: self.most]]
                continue
            try:
                found += list(ask(some))
                continue
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error) or len(some) == 1:
                    raise
            release()  # here, where no traceback holds what was computed
            self.most = len(some) // 2
            log.warning(
                "memory ran out with %d prompts at a time; going on with %d, which changes no "
                "answer (decode.batch_size=%d)",
                len(some),
                self.most,
                self.most,
            )
            waiting.append(some)
        return found
