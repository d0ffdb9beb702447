"""Sequential networks: training and answering, whatever reads the sequence.

Output tied to the item embeddings, cross-entropy over the whole catalog, early stop on validation
NDCG@10. `SASRec` and `GRU4Rec` say how a sequence is read. Knows no titles and no other loss;
`fine_tuning` does. Importing this module imports torch.
"""

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec import progress, stopping
from llmrec.baselines.catalog_loss import CatalogLoss
from llmrec.baselines.distribution import Distribution, Floats, Histories
from llmrec.baselines.rows import Rows, on, shuffled, spans
from llmrec.data.records import Examples, Interactions, Ints, Longs, concatenated, offsets_of

log = logging.getLogger("llmrec")
LESS = "baselines.trials, network.max_epochs; patience may end it before"

ANSWERED, ANSWERED_ON_GPU = 256, 2048  # histories read at a time


class Network(nn.Module, ABC):
    """Item embeddings (N, hidden) in `items`, read by `forward`, and the output tied to them."""

    def __init__(self, catalog_size: int, hidden: int, max_length: int) -> None:
        super().__init__()
        self.catalog_size, self.max_length = catalog_size, max_length
        self.items = nn.Embedding(catalog_size, hidden)
        nn.init.normal_(self.items.weight, std=hidden**-0.5 / 2)
        self.bias = nn.Parameter(torch.zeros(catalog_size))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.bias.device

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """(B, S) positions, right-padded -> (B, S, hidden); no place sees a later one."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., hidden) -> (..., N): a dot product with each item's embedding, plus its bias."""
        return F.linear(hidden, self.items.weight, self.bias)

    def after(self, rows: Sequence[Ints]) -> Tensor:
        """(B, N) logits of what follows each of B sequences, of which the last items are read.

        An empty sequence gets the items' biases alone.
        """
        return self.after_rows(self.ends(on(self.device, concatenated(rows)), offsets_of(rows)))

    def ends(self, items: Tensor, offsets: Longs) -> Rows:
        """The last items of each sequence of `items`, as many as are read."""
        read = np.minimum(np.diff(offsets), self.max_length)
        return Rows.of(items, offsets[1:] - read, read, np.zeros_like(read))

    def after_rows(self, rows: Rows) -> Tensor:
        """(R, N) logits of what follows each row; see `after`."""
        every, read = torch.arange(len(rows), device=self.device), rows.there[1]
        hidden = self(rows.inputs())[every, (read - 1).clamp(min=0)]
        return self.logits(hidden * (read > 0).unsqueeze(1))


@dataclass(frozen=True)
class Sequential(ABC):
    """Sizes and training. `temperature` divides the logits once trained (1: as trained).

    The rate stays as it is; what is judged and kept is a running mean of the weights over about
    one epoch, which does what a falling rate does without fixing the number of epochs beforehand.
    Training stops after `patience` epochs without a better NDCG@10 on validation, or goes on to the
    last epoch where there is no validation example.
    """

    hidden: int = 64
    layers: int = 2
    max_length: int = 50
    dropout: float = 0.3
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    batch_size: int = 64
    max_epochs: int = 100
    patience: int = 5
    temperature: float = 1.0

    reads_titles: ClassVar[bool] = False  # and is another network where they are others

    @abstractmethod
    def network(self, catalog_size: int, titles: Sequence[str] = ()) -> Network:
        """An untrained network for N items, with N titles where it reads them."""

    def fit(
        self,
        train: Interactions,
        catalog_size: int,
        valid: Examples,
        filter_seen: bool,
        seed: int,
        titles: Sequence[str] = (),
    ) -> "FittedNetwork":
        """Train on every transition of every user; keep the epoch that ranks `valid` best.

        On a GPU where there is one. The same seed gives the same weights on the same machine,
        whatever runs beside it; torch's own random state is left as it was.
        """
        offsets, name = offsets_of(sequences_of(train)), type(self).__name__.lower()
        with repeatable(seed), progress.over(f"{name}: epoch", LESS) as told:
            rng = np.random.default_rng(seed)
            network = self.network(catalog_size, titles).to(default_device())
            items = on(network.device, train.position)
            mean = RunningMean(network)
            optimizer = optimizer_of(network, self.learning_rate, self.weight_decay)
            best = mean.fitted(self.temperature, epoch=0)
            best_ndcg = -1.0
            for epoch in range(1, self.max_epochs + 1):
                stopping.check()
                loss = self._epoch(network, mean, optimizer, items, offsets, rng)
                fitted = mean.fitted(self.temperature, epoch)
                ndcg = fitted.ndcg(valid, filter_seen)
                log.info("%s epoch %d: loss %.4f, valid NDCG@10 %.4f", name, epoch, loss, ndcg)
                told.at(epoch, self.max_epochs)
                if ndcg > best_ndcg or len(valid) == 0:
                    best, best_ndcg = fitted, ndcg
                elif epoch - best.epoch >= self.patience:
                    break
        return best

    def _epoch(
        self,
        network: Network,
        mean: "RunningMean",
        optimizer: torch.optim.Optimizer,
        items: Tensor,
        offsets: Longs,
        rng: np.random.Generator,
    ) -> float:
        """One pass over all transitions; mean loss in nats. `mean` follows the weights."""
        network.train()
        number, start, stop = shuffled(spans(np.diff(offsets), self.max_length, rng), rng).T
        rows = Rows.of(items, offsets[number] + start, stop - start - 1, stop - start - 1)
        steps = -(-len(rows) // self.batch_size)
        total = torch.zeros((), dtype=torch.float64, device=network.device)
        for first in range(0, len(rows), self.batch_size):
            optimizer.zero_grad()
            total += cross_entropy_backward(network, rows[first : first + self.batch_size])
            step(network, optimizer)
            mean.follow(network, steps)
        return total.item() / max(1, int(rows.places.sum()))


class RunningMean:
    """The weights of a network in training, averaged over about its latest steps."""

    def __init__(self, network: Network) -> None:
        self.network, self.steps = copy.deepcopy(network).eval(), 0

    @torch.no_grad()
    def follow(self, network: Network, horizon: int) -> None:
        """Take a step's weights in, so that those `horizon` steps old weigh 1/e; fewer at first."""
        self.steps += 1
        share = max(1.0 / horizon, 9.0 / (9.0 + self.steps))
        mine, now = list(self.network.parameters()), list(network.parameters())
        torch._foreach_lerp_(mine, now, share)

    def fitted(self, temperature: float, epoch: int) -> "FittedNetwork":
        """A copy, as a recommender."""
        return FittedNetwork(copy.deepcopy(self.network), temperature, epoch)


@dataclass(frozen=True)
class FittedNetwork(Distribution):
    """A network in evaluation mode, as it was after `epoch` epochs."""

    network: Network
    temperature: float
    epoch: int

    @torch.no_grad()
    def weights(self, histories: Histories) -> Floats:
        """See `Distribution.weights`; an empty history gets the items' biases alone."""
        result = np.empty((len(histories), self.network.catalog_size))
        with one_thread():
            for start in range(0, len(histories), ANSWERED):
                logits = self.network.after(histories[start : start + ANSWERED]).double()
                probabilities = torch.softmax(logits / self.temperature, dim=-1)
                result[start : start + ANSWERED] = probabilities.cpu().numpy()
        return result

    @torch.no_grad()
    def ndcg(self, examples: Examples, filter_seen: bool, k: int = 10) -> float:
        """Mean NDCG@k of the examples, 0 for none; equal scores by position, as rankings are.

        For choosing an epoch; what is reported comes from `llmrec.evaluation`.
        """
        with one_thread():
            return self._ndcg(examples, filter_seen, k)

    def _ndcg(self, examples: Examples, filter_seen: bool, k: int) -> float:
        network, device = self.network, self.network.device
        total = torch.zeros((), dtype=torch.float64, device=device)
        items, offsets = on(device, examples.positions), examples.offsets
        targets, place = on(device, examples.targets), torch.arange(network.catalog_size)
        place, several = place.to(device), ANSWERED_ON_GPU if items.is_cuda else ANSWERED
        for first in range(0, len(examples), several):
            part = offsets[first : first + several + 1]
            scores, own = network.after_rows(network.ends(items, part)), targets[first:][:several]
            if filter_seen:
                read = np.diff(part)
                seen = Rows.of(items, part[:-1], read, np.zeros_like(read))
                row, at = seen.each("read")
                scores[row, items[seen.there[0][row] + at]] = -torch.inf
            value = scores.gather(1, own[:, None])
            before = place < own[:, None]
            rank = ((scores > value) | ((scores == value) & before)).sum(dim=1)
            hit = (rank < k) & (value[:, 0] > -torch.inf)
            total += (hit / torch.log2(rank + 2.0)).sum()
        return total.item() / max(1, len(examples))


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread on the CPU: a sum's order, and so its rounding, depends on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """The same draws and sums each time; torch's own random state is left as it was."""
    gpus = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=gpus), one_thread():
        torch.manual_seed(seed)
        yield


def optimizer_of(network: Network, rate: float, decay: float) -> torch.optim.Optimizer:
    """AdamW over all weights; on a GPU one kernel a step."""
    fused = network.device.type == "cuda"
    return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay, fused=fused)


def cross_entropy_backward(network: Network, rows: Rows) -> Tensor:
    """Add the gradients of the mean cross-entropy over the rows' places; returns () its sum."""
    total, count = torch.zeros((), device=network.device), int(rows.places.sum())
    for part in rows.of_like_length():
        row, place = part.each("places")
        hidden = network(part.inputs())
        learned = hidden.flatten(0, 1).index_select(0, row * hidden.shape[1] + place)
        weight, bias = network.items.weight, network.bias
        loss = CatalogLoss.apply(learned, weight, bias, part.labels())
        (loss / count).backward()
        total += loss.detach()
    return total


def step(network: Network, optimizer: torch.optim.Optimizer) -> None:
    """Update the weights with the gradients, whose norm is cut to 5."""
    nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()


def sequences_of(train: Interactions) -> list[Ints]:
    """Each user's positions, oldest first, in the order of the rows."""
    starts = np.flatnonzero(np.diff(train.user)) + 1
    return np.split(train.position, starts)
