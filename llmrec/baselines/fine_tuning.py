"""Fine-tuning a fitted network: cross-entropy, and a loss of the sets of likely items beside it.

Two views of each sequence (CPFT, arXiv 2402.08976). The train view ends before the window's last
item, which it is asked for; the set view goes on to that item or one further, and what follows it
is asked by nobody. What the loss of the sets is, the caller says. Importing this module imports
torch.
"""

import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmrec.baselines.sequential import (
    FittedNetwork,
    cross_entropy_backward,
    sequences_of,
    spans,
    step,
    transitions,
)
from llmrec.data.records import Examples, Interactions, Ints

log = logging.getLogger("llmrec")

# Of log-probabilities of the train view and of the set view (B, N), the true items of the train
# view (B,) and the item embeddings (N, hidden): what is added to the cross-entropy, and its parts.
SetLoss = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Mapping[str, float]]]


@dataclass(frozen=True)
class FineTuning:
    """How a network is trained on; `patience` None: all epochs."""

    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    batch_size: int = 128
    max_epochs: int = 20
    patience: int | None = 10

    def fit(
        self,
        base: FittedNetwork,
        train: Interactions,
        valid: Examples,
        filter_seen: bool,
        seed: int,
        loss: SetLoss | None = None,
        following: Mapping[int, int] | None = None,
    ) -> "FineTuned":
        """Train `base` on at a constant rate; keep the epoch that ranks `valid` best.

        `loss` None: cross-entropy alone. `following`: for a sequence of `train`, by number, the
        item that the set view may read beyond its end; never a label. The epoch that is kept may
        rank worse than `base` did; `FineTuned` tells.
        """
        sequences = sequences_of(train)
        begun = time.monotonic()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            rng = np.random.default_rng(seed)
            network = copy.deepcopy(base.network)
            optimizer = torch.optim.AdamW(
                network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
            )
            best, best_ndcg, epoch = base, -1.0, 0
            for epoch in range(1, self.max_epochs + 1):
                network.train()
                figures = self._epoch(network, optimizer, sequences, following or {}, loss, rng)
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
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        sequences: list[Ints],
        following: Mapping[int, int],
        loss: SetLoss | None,
        rng: np.random.Generator,
    ) -> dict[str, float]:
        """One pass over all transitions; means of the losses, by name."""
        cut = list(spans([len(s) for s in sequences], network.max_length, rng))
        rng.shuffle(cut)
        sums: dict[str, float] = {"ce": 0.0}
        targets = batches = 0
        for start in range(0, len(cut), self.batch_size):
            part = cut[start : start + self.batch_size]
            windows = [sequences[number][begin:end] for number, begin, end in part]
            optimizer.zero_grad()
            sums["ce"] += cross_entropy_backward(network, windows)
            if loss is not None:
                added, parts = loss(*self._views(network, windows, part, sequences, following))
                added.backward()
                for name, value in parts.items():
                    sums[name] = sums.get(name, 0.0) + value
            step(network, optimizer)
            targets += transitions(windows)
            batches += 1
        means = {name: value / max(1, batches) for name, value in sums.items()}
        return means | {"ce": sums["ce"] / max(1, targets)}

    def _views(
        self,
        network: torch.nn.Module,
        windows: list[Ints],
        part: Sequence[tuple[int, int, int]],
        sequences: list[Ints],
        following: Mapping[int, int],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a `SetLoss` takes. A window inside a sequence is followed by its next item."""
        longer = []
        for window, (number, _, end) in zip(windows, part, strict=True):
            at_end = end == len(sequences[number])
            next_item = following.get(number) if at_end else int(sequences[number][end])
            # Without validation items the set view ends with the train view's own label.
            further = [next_item] if following and next_item is not None else []
            longer.append(np.append(window, further).astype(np.int64))
        train = network.after([window[:-1] for window in windows]).log_softmax(dim=-1)
        sets = network.after(longer).log_softmax(dim=-1)
        labels = torch.tensor([int(window[-1]) for window in windows])
        return train, sets, labels, network.items.weight


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
