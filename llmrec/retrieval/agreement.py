"""How alike two users rate what both have rated, of the items that a prompt would show.

One of the four measures by which the authors of AdaptRec (arXiv 2504.08786) compare retrievers. It
ranks nobody: most logs have no ratings, and most pairs share no item.
"""

import numpy as np
import numpy.typing as npt

from llmrec.data.records import Interactions, Longs
from llmrec.retrieval.snapshots import NOTHING, Queries, Snapshots
from llmrec.retrieval.vectors import Floats


def rating_agreement(
    interactions: Interactions, queries: Queries, snapshots: Snapshots, found: Longs
) -> Floats:
    """(Q,) 1 - mean |difference of ratings| / range of ratings, over the items in both windows.

    `found` (Q,): a snapshot for each query, -1 for none. Ratings are the last that each user gave
    the item in the `interactions`. NaN without ratings, without a neighbour, for a user who has
    none there, or for windows that share no item; 1 is the same ratings, 0 the opposite ends.
    """
    agreement = np.full(len(queries), np.nan, np.float32)
    if interactions.rating is None or not len(interactions):
        return agreement
    span = float(np.nanmax(interactions.rating) - np.nanmin(interactions.rating))
    known = {
        (user, position): rating
        for user, position, rating in zip(
            interactions.user.tolist(),
            interactions.position.tolist(),
            interactions.rating.tolist(),
            strict=True,
        )
    }
    for row, at in enumerate(found.tolist()):
        if at < 0:
            continue
        mine, other = int(queries.user[row]), int(snapshots.user[at])
        both = np.intersect1d(queries.windows[row], snapshots.windows[at])
        pairs = [
            (known.get((mine, position)), known.get((other, position)))
            for position in both[both != NOTHING].tolist()
        ]
        apart = np.array([abs(a - b) for a, b in pairs if a is not None and b is not None])
        apart = apart[np.isfinite(apart)]
        if len(apart):
            agreement[row] = 1.0 - (apart.mean() / span if span > 0 else 0.0)
    return agreement


def mean_agreement(values: Floats) -> tuple[float, int]:
    """The mean over queries that have one, and how many those are; NaN where none has."""
    there: npt.NDArray[np.bool_] = np.isfinite(values)
    return (float(values[there].mean()) if there.any() else float("nan")), int(there.sum())
