"""Votes: how many of some users chose each item. Knows neither how they were found nor a model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmrec.data.records import Ints


@dataclass(frozen=True)
class Tally:
    """The V items that got a vote, most votes first: `items` (V,) positions, `votes` (V,).

    Items of equal votes stand in the order of the users, the most similar first, and of one user's
    items the later first.
    """

    items: Ints
    votes: npt.NDArray[np.int64]


def tally(chosen: Sequence[Ints], seen: Ints | Sequence[int] = ()) -> Tally:
    """Count the votes of users, most similar first, each with the positions that they `chose`.

    A user has one vote for an item, however often it was chosen; positions are oldest first. Items
    that the asked user has `seen` get none.
    """
    latest = [items[::-1] for items in chosen]
    once = [items[np.sort(np.unique(items, return_index=True)[1])] for items in latest]
    every = np.concatenate([np.zeros(0, np.int32), *once]).astype(np.int32)
    every = every[~np.isin(every, np.asarray(seen, np.int32))]
    items, first, votes = np.unique(every, return_index=True, return_counts=True)
    order = np.lexsort((first, -votes))
    return Tally(items[order], votes[order].astype(np.int64))
