"""Things of like length together, so that little of what is read is padding."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Batch = npt.NDArray[np.int64]


def batches(
    lengths: Sequence[int],
    size: int | None = None,
    tokens: int | None = None,
    shortest_first: bool = False,
) -> list[Batch]:
    """Indices into `lengths` in groups of `size` at most, longest first; equals as they stand.

    `tokens`: a group has fewer where it would hold more than these, padding counted; never none.
    """
    order = np.argsort(lengths if shortest_first else -np.asarray(lengths), kind="stable")
    if tokens is None:
        size = size or max(1, len(order))
        return [order[i : i + size] for i in range(0, len(order), size)]
    found: list[list[int]] = []
    for i in order.tolist():
        full = not found or len(found[-1]) == size
        longest = lengths[i if shortest_first or full else found[-1][0]]
        if full or longest * (len(found[-1]) + 1) > tokens:
            found.append([])
        found[-1].append(i)
    return [np.array(group, np.int64) for group in found]
