"""How fast the sides of the GPU bench are, measured side by side. Knows no model."""

import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from gpu_sides import Answers, Bench, batched, graphed

BETWEEN = 20  # seconds that must be left for another repeat


class Clock:
    """How many seconds are left of those given, and how often a measurement is repeated."""

    def __init__(self, seconds: float, repeats: int) -> None:
        self._end, self.repeats = time.monotonic() + seconds, repeats

    def left(self) -> float:
        return self._end - time.monotonic()

    def rounds(self) -> Iterator[int]:
        """At least one."""
        for done in range(self.repeats):
            if done == 0 or self.left() > BETWEEN:
                yield done


def measured(bench: Bench, run: Callable) -> tuple:
    """What `run` returns, its seconds, and the peak of memory above what was held before."""
    if bench.plan.device != "cuda":
        begun = time.perf_counter()
        return run(), time.perf_counter() - begun, None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, begun = torch.cuda.memory_allocated(), time.perf_counter()
    found = run()
    torch.cuda.synchronize()
    return found, time.perf_counter() - begun, torch.cuda.max_memory_allocated() - before


def best_batch(bench: Bench, make: Callable[[int], Callable]) -> tuple[dict, int, Answers]:
    """Users per second by users in a batch, the best batch, and what was answered in it.

    `make` gives what is asked in batches of a size.
    """
    asked, rates, found = bench.prompts[: bench.plan.users], {}, {}
    for size in bench.plan.batches:
        try:
            run = make(size)
            run(asked[:size])  # warm
            found[size], seconds, _ = measured(bench, partial(batched, asked, size, run))
            rates[size] = round(len(asked) / seconds, 2)
        except torch.OutOfMemoryError:
            if not rates:
                raise
            break  # larger ones are not tried
    best = max(rates, key=rates.get)
    return rates, best, found[best]


class Graphs:
    """llmrec with graphs beside the plain one; what breaks here costs the plain figures nothing."""

    def __init__(self, bench: Bench, search: Callable, asked: Sequence) -> None:
        self.side: list[tuple[int, Callable]] = []  # for `side_by_side`; none where it cannot run
        self._failed = ""

        def warmed(size: int) -> Callable:
            run = graphed(bench, search)
            batched(asked, size, run)  # every shape is captured
            return run

        try:
            self._rates, self._batch, self._found = best_batch(bench, warmed)
            run = partial(batched, asked, self._batch, warmed(self._batch))
        except Exception as error:
            traceback.print_exc()
            self._failed = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        else:
            self.side.append((len(asked), run))

    def figures(self, rates: Sequence[float], peers: float | None, others: Answers) -> dict:
        """What is told of them; `others`: what the plain lists are compared with too."""
        if not rates:
            names = ("graphs", "graphs_ratio", "graphs_same_lists", "graphs_same_items")
            return {**dict.fromkeys(names), "graphs_failed": self._failed}
        return {
            "graphs": round(rates[0], 2),
            "graphs_ratio": peers and round(rates[0] / peers, 2),
            "graphs_by_batch": self._rates,
            "graphs_batch": self._batch,
            "graphs_same_lists": same_lists(self._found, others),
            "graphs_same_items": shared(self._found, others),
        }


def side_by_side(
    bench: Bench, clock: Clock, *sides: tuple[int, Callable]
) -> tuple[list[float], dict]:
    """Median users per second of each side, and the median and range of the first to the second.

    A side is how many users it is asked for, and what answers them.
    """
    rates = []
    for _ in clock.rounds():  # alternating, so that a slow spell of the machine hits all
        rates.append([count / measured(bench, run)[1] for count, run in sides])
    ratios = [round(ours / theirs, 2) for ours, theirs, *_ in rates]
    return [statistics.median(r) for r in zip(*rates, strict=True)], {
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [min(ratios), max(ratios)],
        "repeats": len(rates),
    }


def same_lists(some: Answers, others: Answers) -> float:
    """Share of users whose lists are equal in items and order; of the first where one is longer."""
    return round(float(np.mean([a == b for (a, _), (b, _) in zip(some, others, strict=False)])), 3)


def shared(some: Answers, others: Answers) -> float:
    """Mean share of a user's items that are in both lists."""
    return round(
        float(
            np.mean(
                [len({*a} & {*b}) / len(b) for (a, _), (b, _) in zip(some, others, strict=False)]
            )
        ),
        3,
    )
