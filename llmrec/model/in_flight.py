"""Batches in flight: while one waits for the GPU, the host works on another.

Each has a thread and a CUDA stream of its own, and they take turns: a thread gives its turn away
only while it waits in `fetched`, so whatever it hooks to the model and launches is its alone, and
nothing else has to expect a second thread. Knows neither prompts nor search.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

A, B = TypeVar("A"), TypeVar("B")
_own = threading.local()  # `turn`: the lock that this thread holds, where it is one of several


def fetched(values: Tensor) -> npt.NDArray[np.float64]:
    """Numbers of a device on the host, as float64; here another batch has its turn."""
    wide = values.double()
    turn: threading.Lock | None = getattr(_own, "turn", None)
    if turn is None:
        return wide.cpu().numpy()  # type: ignore[no-any-return]
    turn.release()
    try:
        return wide.cpu().numpy()  # type: ignore[no-any-return]
    finally:
        turn.acquire()


def by_turns(count: int, do: Callable[[A], B], things: Iterable[A]) -> Iterator[B]:
    """What `do` gives for each thing, in their order, at most `count` of them at a time.

    In this thread where it is one, or where this thread is one of several itself. A thing is taken
    when there is room for it; what was begun is ended even where another fails.
    """
    if count == 1 or getattr(_own, "turn", None) is not None:
        yield from map(do, things)
        return
    turn, wanted = threading.Lock(), torch.is_grad_enabled()
    autocast = [
        torch.autocast(kind, torch.get_autocast_dtype(kind))
        for kind in ("cuda", "cpu")
        if torch.is_autocast_enabled(kind)
    ]
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    main = None if device is None else torch.cuda.current_stream(device)

    def alone(thing: A) -> B:
        with turn, ExitStack() as state:  # what torch holds for each thread by itself
            _own.turn = turn
            state.callback(_own.__dict__.clear)
            state.enter_context(torch.set_grad_enabled(wanted))
            for cast in autocast:
                state.enter_context(cast)
            if main is not None:
                stream = torch.cuda.Stream(device)
                stream.wait_stream(main)
                state.enter_context(torch.cuda.stream(stream))
            return do(thing)

    begun: deque[Future[B]] = deque()
    with ThreadPoolExecutor(count, "llmrec-batch") as threads:
        try:
            for thing in things:
                begun.append(threads.submit(alone, thing))
                if len(begun) == count:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for waiting in begun:
                waiting.cancel()
