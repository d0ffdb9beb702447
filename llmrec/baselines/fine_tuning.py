"""Fine-tuning a fitted network at every place of its sequences, with a loss that the caller gives.

A place is a prefix of a sequence and the item that follows it, its label. One pass over a sequence
gives what the network says after each prefix, so the loss can look at two views of a place (CPFT,
arXiv 2402.08976): the train view after the prefix, and the set view after one item more. What the
loss is, the caller says; without one it is cross-entropy. Importing this module imports torch.
"""

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmrec import stopping
from llmrec.baselines.sequential import (
    IGNORED,
    FittedNetwork,
    Network,
    cross_entropy_backward,
    of_like_length,
    padded,
    repeatable,
    sequences_of,
    spans,
    step,
)
from llmrec.data.records import Examples, Interactions, Ints

log = logging.getLogger("llmrec")


@dataclass(frozen=True)
class Places:
    """B places by the rows of a batch: `train` (B,) and `sets` (B,) index them, `labels` (B,)."""

    train: Tensor
    sets: Tensor
    labels: Tensor


# Of a network, what it holds (P, hidden) after each item of a batch, and the B places there: the
# loss and, by name, what it is made of.
PlacesLoss = Callable[[Network, Tensor, Places], tuple[Tensor, Mapping[str, float]]]


@dataclass(frozen=True)
class Row:
    """Items that are read in one pass; each of the first `places` is followed by its label."""

    items: Ints
    places: int


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
        sequences = sequences_of(train)
        begun = time.monotonic()
        with repeatable(seed):
            rng = np.random.default_rng(seed)
            network = copy.deepcopy(base.network)
            optimizer = torch.optim.AdamW(
                network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
            )
            best, best_ndcg, epoch = base, -1.0, 0
            for epoch in range(1, self.max_epochs + 1):
                stopping.check()
                network.train()
                figures = self._epoch(network, optimizer, sequences, following, loss, rng)
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
        sequences: list[Ints],
        following: Mapping[int, int] | None,
        loss: PlacesLoss | None,
        rng: np.random.Generator,
    ) -> dict[str, float]:
        """One pass over all places; means of the losses over them, by name."""
        ahead = 1 if following is None else 2
        longest = max(1, network.max_length - ahead)
        cut = list(spans([len(s) for s in sequences], longest, rng))
        rng.shuffle(cut)
        rows = []
        for number, begin, end in cut:
            items = sequences[number][begin:end]
            if following is not None:
                at_end = end == len(sequences[number])
                beyond = following.get(number) if at_end else int(sequences[number][end])
                items = items if beyond is None else np.append(items, beyond)
            rows.append(Row(items, end - begin - 1))
        sums: dict[str, float] = {"ce": 0.0}
        count = 0
        for batch in batches(rows, self.batch_size):
            mine = sum(row.places for row in batch)
            optimizer.zero_grad()
            if loss is None:
                learned = [row.items[: row.places + 1] for row in batch]
                sums["ce"] += cross_entropy_backward(network, learned)
            else:
                total, parts = loss(network, *places_of(network, batch, ahead))
                total.backward()
                for name, value in parts.items():
                    sums[name] = sums.get(name, 0.0) + value * mine
            step(network, optimizer)
            count += mine
        return {name: value / max(1, count) for name, value in sums.items()}


def batches(rows: Sequence[Row], places: int) -> Iterator[list[Row]]:
    """The rows in their order, in batches of at most so many places; a longer row stands alone."""
    batch: list[Row] = []
    count = 0
    for row in rows:
        if batch and count + row.places > places:
            yield batch
            batch, count = [], 0
        batch.append(row)
        count += row.places
    if batch:
        yield batch


def places_of(network: Network, batch: Sequence[Row], ahead: int) -> tuple[Tensor, Places]:
    """(P, hidden) after each item of a batch, in one causal pass, and its places.

    The set view stands `ahead` items behind the train view, or behind the last item that is read.
    """
    hidden, train, sets, labels, begin = [], [], [], [], 0
    for part in of_like_length(batch, lambda row: len(row.items)):
        # A row of one item more than it has: `padded` takes the last for the label.
        inputs, known = padded([np.append(row.items, 0) for row in part])
        hidden.append(network(inputs.to(network.device))[(known != IGNORED).to(network.device)])
        for row in part:
            at, end = begin + np.arange(row.places), begin + len(row.items)
            train.append(at)
            sets.append(np.minimum(at + ahead, end - 1))
            labels.append(row.items[1 : row.places + 1].astype(np.int64))
            begin = end
    places = (torch.from_numpy(np.concatenate(x)) for x in (train, sets, labels))
    return torch.cat(hidden), Places(*(x.to(network.device) for x in places))


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
