"""Snapshots: what a user had chosen just before choosing once more; the unit that is retrieved.

A user changes with every choice, so the one who resembles a query is a user at a moment. Since
snapshots stand in the order of time, all that a query may see are the first ones, and no rule about
the future is needed anywhere else. Knows no vectors and no measure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmrec.data.records import Interactions, Ints, Longs
from llmrec.errors import DataError

NOTHING = -1  # pads a window on the left


@dataclass(frozen=True)
class Snapshots:
    """M states of users, by the time of the choice that ended them, ties by row.

    `user` (M,) int32 codes of the Interactions; `windows` (M, L) int32 the last L positions before
    the choice, oldest first, padded with -1 on the left; `chosen` (M,) int32 the position chosen
    next; `time` (M,) int64 when, ascending; `row` (M,) int64 the chosen row of the Interactions.
    """

    user: Ints
    windows: Ints
    chosen: Ints
    time: Longs
    row: Longs

    def __len__(self) -> int:
        return len(self.user)

    def before(self, time: int) -> int:
        """How many snapshots ended strictly before `time`; they are the first ones."""
        return int(np.searchsorted(self.time, time, side="left"))

    def history(self, index: int) -> Ints:
        """The positions of one window, oldest first, without padding."""
        window = self.windows[index]
        known: Ints = window[window != NOTHING]
        return known

    def rows(self, index: int) -> Longs:
        """Rows of the Interactions a snapshot is made of: the n of its window, the chosen last."""
        last = int(self.row[index])
        return np.arange(last - len(self.history(index)), last + 1)


def snapshots_of(interactions: Interactions, window: int, every: int = 1) -> Snapshots:
    """A snapshot for each interaction that has an earlier one of the same user.

    `window` is how many positions a snapshot keeps (L). With `every` above 1 only each so many-th
    of a user is kept, counted back from the user's last. Raises DataError if the interactions are
    not ordered by user and time, ValueError for a window or a step below 1.
    """
    if window < 1 or every < 1:
        raise ValueError(f"window {window} and every {every} must be at least 1")
    first, end = _bounds_of_users(interactions)
    lengths = end - first
    place = np.arange(len(interactions)) - np.repeat(first, lengths)
    behind = np.repeat(lengths, lengths) - 1 - place  # choices of the same user that follow
    rows = np.flatnonzero((place >= 1) & (behind % every == 0))
    rows = rows[np.argsort(interactions.timestamp[rows], kind="stable")]
    windows = np.full((len(rows), window), NOTHING, np.int32)
    for steps in range(1, window + 1):
        known = place[rows] >= steps
        windows[known, window - steps] = interactions.position[rows[known] - steps]
    return Snapshots(
        interactions.user[rows].astype(np.int32),
        windows,
        interactions.position[rows].astype(np.int32),
        interactions.timestamp[rows].astype(np.int64),
        rows.astype(np.int64),
    )


@dataclass(frozen=True)
class Queries:
    """Q users others are looked for, each at a moment.

    `user` (Q,) int32 codes of the Interactions, -1 for a user without rows there; `windows` (Q, L)
    as in Snapshots, all -1 for an empty history; `time` (Q,) int64: only what ended strictly
    before it may be shown.
    """

    user: Ints
    windows: Ints
    time: Longs

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: npt.NDArray[np.integer] | slice) -> "Queries":
        """The given queries, in the given order."""
        return Queries(self.user[rows], self.windows[rows], self.time[rows])


def queries_of(
    user_ids: Sequence[str] | npt.NDArray[np.object_],
    histories: Sequence[Ints],
    timestamps: Sequence[int] | Longs,
    interactions: Interactions,
    window: int,
) -> Queries:
    """Queries for Q users with their own histories (positions, oldest first) and moments.

    Raises ValueError for lists of different lengths or a window below 1.
    """
    if window < 1 or not len(user_ids) == len(histories) == len(timestamps):
        raise ValueError(
            f"{len(user_ids)} users, {len(histories)} histories and {len(timestamps)} timestamps "
            f"must be as many; window {window} must be at least 1"
        )
    present = np.unique(interactions.user)
    codes = dict(zip(interactions.user_ids[present].tolist(), present.tolist(), strict=True))
    windows = np.full((len(user_ids), window), NOTHING, np.int32)
    for row, history in enumerate(histories):
        kept = history[-window:]
        windows[row, window - len(kept) :] = kept
    return Queries(
        np.array([codes.get(user_id, -1) for user_id in user_ids], np.int32),
        windows,
        np.asarray(timestamps, np.int64),
    )


def _bounds_of_users(interactions: Interactions) -> tuple[Longs, Longs]:
    """(U,) first row and end of each user with rows; DataError where the order is another."""
    user = interactions.user
    first = np.flatnonzero(np.diff(user, prepend=-1) != 0)
    end = np.append(first, len(user))[1:]
    again = len(np.unique(user[first])) < len(first)
    backwards = (np.diff(interactions.timestamp) < 0) & (np.diff(user) == 0)
    if again or backwards.any():
        what = (
            "a user's rows are apart"
            if again
            else (
                f"row {int(np.argmax(backwards)) + 1} is earlier than the same user's row before it"
            )
        )
        raise DataError(
            f"the interactions are not ordered: {what}; snapshots need the rows of a user adjacent "
            "and oldest first, as llmrec.data.splits.order leaves them"
        )
    return first, end
