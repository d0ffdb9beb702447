"""The TokenTree: token ids of a prompt and of every completion that hangs on it, as one row.

A tree is a list of segments, each with a parent. A token sees its own segment so far and its
ancestors, and its position is its depth, so a decoder that reads the flattened row under the
tree's mask computes, for every path, what it would compute for that path alone, and the shared
prompt once. Knows neither text nor models.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
ROOT = -1


@dataclass(frozen=True)
class Segment:
    """A run of tokens that follows the end of segment `parent` (ROOT: it starts the row).

    `target` >= 0 marks tokens to be predicted: they are tokens `start`, `start + 1`, ... of the
    completion of the catalog item at position `target`. `target` = ROOT: only read. `kind` tells
    apart targets that are weighted differently: 0 real ones, 1 a model's own answers or other
    candidates, 2 candidates of a second view.
    """

    ids: Ids
    parent: int = ROOT
    target: int = -1
    start: int = 0
    kind: int = 0


@dataclass(frozen=True)
class FlatTree:
    """A TokenTree as one row of S tokens of which T are to be predicted.

    input_ids (S,), position_ids (S,). Token i may see token j if and only if
    spans[0, j] <= spans[0, i] <= spans[1, j]: spans (2, S) are each token's place in an order that
    goes through one branch after another, and the last place of what hangs on it. For predicted
    token t: `labels` (T,) its id, `predictors` (T,) the row index of the token before it on its
    path, `branches` (T,) the number, from 0, of the predicted segment it lies in, `targets` (T,)
    the item's position and `steps` (T,) its index inside that item's completion. `kinds` (G,): the
    kind of each of the G predicted segments. `among`: as in TokenTree.
    """

    input_ids: Ids
    position_ids: Ids
    spans: Ids
    labels: Ids
    predictors: Ids
    branches: Ids
    targets: Ids
    steps: Ids
    kinds: Ids
    among: tuple[int, ...] = ()

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(S, S) row i may see column j."""
        place, end = self.spans
        sees: npt.NDArray[np.bool_] = (place <= place[:, None]) & (place[:, None] <= end)
        return sees

    @property
    def branch_count(self) -> int:
        """How many completions (or parts of one) the row predicts."""
        return int(self.branches[-1]) + 1 if len(self.branches) else 0


@dataclass(frozen=True)
class TokenTree:
    """Segments in an order in which every parent stands before its children.

    `among`: positions of the items that its targets are chosen from; empty: any.
    """

    segments: tuple[Segment, ...]
    among: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for index, segment in enumerate(self.segments):
            if not ROOT <= segment.parent < index:
                raise ValueError(
                    f"segment {index} has parent {segment.parent}; a parent must stand before "
                    f"its children (allowed: {ROOT} to {index - 1})"
                )
            if segment.target >= 0 and segment.parent == ROOT:
                raise ValueError(f"segment {index} is predicted but nothing stands before it")

    def __len__(self) -> int:
        return sum(len(segment.ids) for segment in self.segments)

    def paths(self) -> list[list[int]]:
        """Segment numbers from the root to each leaf, for reading the tree path by path."""
        parents = {segment.parent for segment in self.segments}
        return [self._ancestors(leaf) for leaf in range(len(self.segments)) if leaf not in parents]

    def _ancestors(self, index: int) -> list[int]:
        path = [index]
        while self.segments[path[-1]].parent != ROOT:
            path.append(self.segments[path[-1]].parent)
        return path[::-1]

    def only(self, kinds: Collection[int]) -> "TokenTree":
        """The tree that predicts these kinds alone: other leaves are left out, other inner segments
        are only read.
        """
        parents = {segment.parent for segment in self.segments}
        place: dict[int, int] = {ROOT: ROOT}
        kept: list[Segment] = []
        for index, segment in enumerate(self.segments):
            other = segment.target >= 0 and segment.kind not in kinds
            if other and index not in parents:
                continue
            place[index] = len(kept)
            target = ROOT if other else segment.target
            kept.append(replace(segment, parent=place[segment.parent], target=target))
        return TokenTree(tuple(kept), self.among)

    def flatten(self) -> FlatTree:
        """Lay the segments end to end."""
        count = len(self.segments)
        lengths = np.array([len(s.ids) for s in self.segments], np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        depths = np.zeros(count, np.int64)
        last = np.full(count, ROOT, np.int64)  # row index of the last token on the path so far
        for index, segment in enumerate(self.segments):
            before = ROOT
            if segment.parent != ROOT:
                depths[index] = depths[segment.parent] + lengths[segment.parent]
                before = last[segment.parent]
            last[index] = starts[index] + lengths[index] - 1 if lengths[index] else before
        owner = np.repeat(np.arange(count), lengths)
        inside = np.arange(len(owner)) - starts[owner]
        first, end = self._places(lengths)
        learned = [i for i, s in enumerate(self.segments) if s.target >= 0 and len(s.ids)]
        predictors = [
            np.concatenate([[last[self.segments[i].parent]], starts[i] + np.arange(lengths[i] - 1)])
            for i in learned
        ]
        return FlatTree(
            input_ids=_joined([s.ids for s in self.segments]),
            position_ids=(depths[owner] + inside).astype(np.int32),
            spans=np.stack([first[owner] + inside, end[owner] - 1]).astype(np.int32),
            labels=_joined([self.segments[i].ids for i in learned]),
            predictors=_joined(predictors),
            branches=np.repeat(np.arange(len(learned)), lengths[learned]).astype(np.int32),
            targets=np.repeat([self.segments[i].target for i in learned], lengths[learned]).astype(
                np.int32
            ),
            steps=_joined([self.segments[i].start + np.arange(lengths[i]) for i in learned]),
            kinds=np.array([self.segments[i].kind for i in learned], np.int32),
            among=self.among,
        )

    def _places(self, lengths: npt.NDArray[np.int64]) -> tuple[Longs, Longs]:
        """For each segment the place of its first token, one branch read after another, and the
        place behind all that hangs on it.
        """
        below = lengths.copy()  # tokens of a segment and of all that hangs on it
        parents = [segment.parent for segment in self.segments]
        for index in range(len(parents) - 1, -1, -1):
            if parents[index] != ROOT:
                below[parents[index]] += below[index]
        first = np.zeros(len(parents), np.int64)
        free = np.zeros(len(parents) + 1, np.int64)  # where the next child goes; last: of the root
        for index, parent in enumerate(parents):
            first[index] = free[parent]
            free[parent] += below[index]
            free[index] = first[index] + lengths[index]
        return first, first + below


def _joined(arrays: Sequence[npt.NDArray[np.int32] | npt.NDArray[np.int64]]) -> Ids:
    return np.concatenate(arrays).astype(np.int32) if len(arrays) else np.zeros(0, np.int32)
