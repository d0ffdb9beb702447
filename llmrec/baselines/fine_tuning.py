"""Fine-tuning a fitted network at every place of its sequences, with a loss that the caller gives.

A place is a prefix of a sequence and the item that follows it, its label. One pass over a sequence
gives what the network says after each prefix, so the loss can look at two views of a place (CPFT,
arXiv 2402.08976): the train view after the prefix, and the set view after one item more. What the
loss is, the caller says; without one it is cross-entropy. Importing this module imports torch.
"""

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmrec import stopping
from llmrec.baselines.rows import Rows, on, shuffled, spans
from llmrec.baselines.sequential import (
    FittedNetwork,
    Network,
    cross_entropy_backward,
    optimizer_of,
    repeatable,
    sequences_of,
    step,
)
from llmrec.data.records import Examples, Interactions, Longs, offsets_of

log = logging.getLogger("llmrec")


@dataclass(frozen=True)
class Places:
    """B places by the rows of a batch: `train` (B,) and `sets` (B,) index them, `labels` (B,)."""

    train: Tensor
    sets: Tensor
    labels: Tensor


# Of a network, what it holds (P, hidden) after each item of a batch, and the B places there: the
# loss and, by name and without gradient, what it is made of.
PlacesLoss = Callable[[Network, Tensor, Places], tuple[Tensor, Mapping[str, Tensor]]]


@dataclass(frozen=True)
class FineTuning:
    """How a network is trained on; `batch_size` counts places. `patience` None: all epochs."""

    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    batch_size: int = 1024
    max_epochs: int = 15
    patience: int | None = 3

    def fit(
        self,
        base: FittedNetwork,
        train: Interactions,
        valid: Examples,
        filter_seen: bool,
        seed: int,
        loss: PlacesLoss | None = None,
        following: Mapping[int, int] | None = None,
    ) -> "FineTuned":
        """Train `base` on at a constant rate; keep the epoch that ranks `valid` best.

        `loss` None: cross-entropy alone. `following` None: the set view of a place ends with its
        own label. Else it ends one item further, at the end of a sequence of `train` with the item
        that `following` has for its number, never a label. The epoch that is kept may rank worse
        than `base` did; `FineTuned` tells.
        """
        begun = time.monotonic()
        with repeatable(seed):
            rng = np.random.default_rng(seed)
            network = copy.deepcopy(base.network)
            optimizer = optimizer_of(network, self.learning_rate, self.weight_decay)
            log_of_items = Log.of(train, following, network.device)
            best, best_ndcg, epoch = base, -1.0, 0
            for epoch in range(1, self.max_epochs + 1):
                stopping.check()
                network.train()
                figures = self._epoch(network, optimizer, log_of_items, loss, rng)
                fitted = FittedNetwork(network.eval(), base.temperature, epoch)
                ndcg = fitted.ndcg(valid, filter_seen)
                log.info(
                    "fine-tuning epoch %d: %s, valid NDCG@10 %.4f",
                    epoch,
                    ", ".join(f"{k} {v:.4f}" for k, v in figures.items()),
                    ndcg,
                )
                if ndcg > best_ndcg or len(valid) == 0:
                    best_ndcg = ndcg
                    best = FittedNetwork(copy.deepcopy(network), base.temperature, epoch)
                elif self.patience is not None and epoch - best.epoch >= self.patience:
                    break
        before = base.ndcg(valid, filter_seen)
        if best_ndcg < before:
            log.warning(
                "fine-tuning lowered validation NDCG@10 from %.4f to %.4f", before, best_ndcg
            )
        return FineTuned(best, epoch, best_ndcg, before, time.monotonic() - begun)

    def _epoch(
        self,
        network: Network,
        optimizer: torch.optim.Optimizer,
        read: "Log",
        loss: PlacesLoss | None,
        rng: np.random.Generator,
    ) -> dict[str, float]:
        """One pass over all places; means of the losses over them, by name."""
        ahead = read.ahead
        rows = read.rows(max(1, network.max_length - ahead), rng, further=loss is not None)
        zero = torch.zeros((), device=network.device)
        sums: dict[str, Tensor] = {"ce": zero}
        for batch in batches(rows, self.batch_size):
            optimizer.zero_grad()
            if loss is None:
                sums["ce"] = sums["ce"] + cross_entropy_backward(network, batch)
            else:
                total, parts = loss(network, *places_of(network, batch, ahead))
                total.backward()
                mine = int(batch.places.sum())
                for name, value in parts.items():
                    sums[name] = sums.get(name, zero) + value * mine
            step(network, optimizer)
        count = max(1, int(rows.places.sum()))
        return {name: value.item() / count for name, value in sums.items()}


@dataclass(frozen=True)
class Log:
    """Training sequences end to end, each with the item that follows it, where there is one.

    `offsets` (n + 1,): where each begins; `lengths` (n,): its items, without the one that follows;
    `ahead`: how many items the set view stands behind the train view.
    """

    items: Tensor
    offsets: Longs
    lengths: Longs
    ahead: int

    @staticmethod
    def of(train: Interactions, following: Mapping[int, int] | None, device: torch.device) -> "Log":
        """The log of `FineTuning.fit`, on a device."""
        ends = offsets_of(sequences_of(train))
        known = sorted((following or {}).items())
        numbers = np.array([number for number, _ in known], np.int64)
        items = np.insert(train.position, ends[numbers + 1], [item for _, item in known])
        offsets = ends + np.searchsorted(numbers, np.arange(len(ends)))
        return Log(on(device, items), offsets, np.diff(ends), 1 if following is None else 2)

    def rows(self, longest: int, rng: np.random.Generator, further: bool) -> Rows:
        """An epoch's rows of at most `longest` places, shuffled; `further`: with the item that the
        set view ends with, where it is none of the places' own labels' neighbours."""
        number, begin, end = shuffled(spans(self.lengths, longest, rng), rng).T
        start, places = self.offsets[number] + begin, end - begin - 1
        if not further:
            return Rows.of(self.items, start, places, places)
        there = self.offsets[number + 1] - self.offsets[number]
        return Rows.of(self.items, start, np.minimum(places + self.ahead, there - begin), places)


def batches(rows: Rows, places: int) -> Iterator[Rows]:
    """The rows in their order, in batches of at most so many places; a longer row stands alone."""
    first, count = 0, 0
    for at, more in enumerate(rows.places.tolist()):
        if at > first and count + more > places:
            yield rows[first:at]
            first, count = at, 0
        count += more
    if len(rows):
        yield rows[first:]


def places_of(network: Network, batch: Rows, ahead: int) -> tuple[Tensor, Places]:
    """(P, hidden) after each item of a batch, in one causal pass, and its places.

    The set view stands `ahead` items behind the train view, or behind the last item that is read.
    """
    hidden, train, sets, labels, begin = [], [], [], [], 0
    for part in batch.of_like_length():
        row, at = part.each("read")
        states = network(part.inputs())
        hidden.append(states.flatten(0, 1).index_select(0, row * states.shape[1] + at))
        read = part.there[1]
        end = begin + read.cumsum(0)
        row, at = part.each("places")
        train.append((end - read)[row] + at)
        sets.append(torch.minimum(train[-1] + ahead, end[row] - 1))
        labels.append(part.labels())
        begin += int(part.read.sum())
    return torch.cat(hidden), Places(*(torch.cat(x) for x in (train, sets, labels)))


@dataclass(frozen=True)
class FineTuned:
    """The network that was kept, after how many epochs training ended, and what it cost.

    `ndcg`, `base_ndcg`: validation NDCG@10 of what was kept and of the network before; `seconds` of
    training and validation.
    """

    fitted: FittedNetwork
    epochs: int
    ndcg: float
    base_ndcg: float
    seconds: float


def following_items(train: Interactions, valid: Examples) -> dict[int, int]:
    """For each sequence of `train`, by number, the validation item that came right after it.

    A sequence without one has none: users who are not validated, and histories that are no
    training sequence.
    """
    sequences = sequences_of(train)
    first = np.flatnonzero(np.diff(train.user, prepend=-1))
    number_of = {str(train.user_ids[train.user[row]]): n for n, row in enumerate(first)}
    found = {}
    for example in valid:
        number = number_of.get(str(example.user_id))
        if number is not None and np.array_equal(sequences[number], example.history):
            found[number] = example.target
    return found
