"""Three gates that a language model must pass before a method that starts from it is judged.

A model that has not learned to read histories says nothing about what a method adds to it. So: its
target NLL is below popularity's; another user's history in the prompt costs it at least 0.2 nats;
and of its first answers to 250 users, as expected of users drawn at random, at least 20 % are
different items (among more users every system has a smaller share). Knows no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.errors import DataError
from llmrec.evaluation.intervals import Interval

POPULARITY = "popularity"  # the system whose NLL a model is to stand below
SENSITIVITY = "sensitivity"
LEAST_SENSITIVITY = 0.2  # nats
LEAST_DISTINCT = 0.2
ASKED = 250  # users among whom different answers are counted, or all where there are fewer


@dataclass(frozen=True)
class Gates:
    """`over_popularity`: NLL minus popularity's; `sensitivity`: NLL with another user's history
    minus NLL with one's own; both in nats, None where not measured. `distinct`: the share of
    different items among `answers` first answers."""

    over_popularity: Interval | None
    sensitivity: Interval | None
    distinct: float
    answers: int

    @property
    def failed(self) -> list[str]:
        """What does not pass, in words; a gate that was not measured does not."""
        told = []
        if self.over_popularity is None:
            told.append("its NLL was not compared with popularity's")
        elif not self.over_popularity.mean < 0:
            told.append(f"its NLL stands {self.over_popularity.mean:+.3f} from popularity's")
        if self.sensitivity is None:
            told.append("what another user's history costs was not measured")
        elif not self.sensitivity.mean >= LEAST_SENSITIVITY:
            told.append(
                f"another user's history costs {self.sensitivity.mean:.3f} nats, less than "
                f"{LEAST_SENSITIVITY}"
            )
        if not self.distinct >= LEAST_DISTINCT:
            told.append(
                f"{self.distinct:.1%} of the first answers are distinct, less than "
                f"{LEAST_DISTINCT:.0%}"
            )
        return told

    def to_json(self) -> dict[str, Any]:
        """Plain values; `failed` in words, empty where all pass."""
        return {
            "over_popularity": self.over_popularity,
            SENSITIVITY: self.sensitivity,
            "distinct": self.distinct,
            "answers": self.answers,
            "failed": self.failed,
        }


def distinct_share(
    rankings: Sequence[npt.NDArray[np.integer[Any]]], asked: int = ASKED
) -> tuple[float, int]:
    """The share of different items among the first answers to `asked` users, and of how many.

    That is what is expected of so many drawn without replacement from all who got an answer
    (rarefaction); NaN for none.
    """
    first = np.array([int(items[0]) for items in rankings if len(items)], np.int64)
    drawn = min(asked, len(first))
    if drawn == 0:
        return float("nan"), 0
    # An item is missed when all that are drawn are among those who got another one.
    others = len(first) - np.unique(first, return_counts=True)[1]
    steps = np.arange(drawn)
    left = np.maximum(others[:, None] - steps, 0) / (len(first) - steps)
    return float((1 - left.prod(axis=1)).sum() / drawn), drawn


def another_user(user_ids: npt.NDArray[np.object_], seed: int) -> npt.NDArray[np.int64]:
    """(E,) for each of E examples one of another user, every example once, drawn with the seed.

    Raises DataError where one user has more than half of the examples.
    """
    users, which = np.unique(user_ids.astype(str), return_inverse=True)
    which, order = which.ravel(), np.random.default_rng(seed)
    most = int(np.bincount(which).max(initial=0))
    if len(users) < 2 or 2 * most > len(which):
        raise DataError(
            f"one user has {most} of {len(which)} test examples, so not everyone can be given "
            "another user's history; set evaluate.gates: false"
        )
    # Users stand together in a random order; a shift by the largest of them leaves none in place.
    place = np.lexsort((order.permutation(len(which)), order.permutation(len(users))[which]))
    found = np.empty(len(which), np.int64)
    found[place] = np.roll(place, -most)
    return found
