"""Sequential networks: training and answering, whatever reads the sequence.

Output tied to the item embeddings, cross-entropy over the whole catalog, early stop on validation
NDCG@10. `SASRec` and `GRU4Rec` say how a sequence is read. Knows no titles and no other loss;
`fine_tuning` does. Importing this module imports torch.
"""

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec import stopping
from llmrec.baselines.catalog_loss import CatalogLoss
from llmrec.baselines.distribution import Distribution, Floats, Histories, seen
from llmrec.data.records import Examples, Interactions, Ints

log = logging.getLogger("llmrec")

T = TypeVar("T")

IGNORED = -100
ANSWERED = 256  # histories read at a time


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
        # A row of one item more than it has: `padded` takes the last for the label.
        cut = [np.append(row[-self.max_length :], 0).astype(np.int64) for row in rows]
        ends = torch.tensor([len(row) - 2 for row in cut], device=self.device)
        hidden = self(padded(cut)[0].to(self.device))[torch.arange(len(cut)), ends.clamp(min=0)]
        return self.logits(hidden * (ends >= 0).unsqueeze(1))


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

    @abstractmethod
    def network(self, catalog_size: int) -> Network:
        """An untrained network for N items."""

    def fit(
        self, train: Interactions, catalog_size: int, valid: Examples, filter_seen: bool, seed: int
    ) -> "FittedNetwork":
        """Train on every transition of every user; keep the epoch that ranks `valid` best.

        On a GPU where there is one. The same seed gives the same weights on the same machine,
        whatever runs beside it; torch's own random state is left as it was.
        """
        sequences = sequences_of(train)
        with repeatable(seed):
            rng = np.random.default_rng(seed)
            network = self.network(catalog_size).to(default_device())
            mean = RunningMean(network)
            optimizer = torch.optim.AdamW(
                network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
            )
            best = mean.fitted(self.temperature, epoch=0)
            best_ndcg = -1.0
            for epoch in range(1, self.max_epochs + 1):
                stopping.check()
                loss = self._epoch(network, mean, optimizer, sequences, rng)
                fitted = mean.fitted(self.temperature, epoch)
                ndcg = fitted.ndcg(valid, filter_seen)
                log.info(
                    "%s epoch %d: loss %.4f, valid NDCG@10 %.4f",
                    type(self).__name__.lower(),
                    epoch,
                    loss,
                    ndcg,
                )
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
        sequences: list[Ints],
        rng: np.random.Generator,
    ) -> float:
        """One pass over all transitions; mean loss in nats. `mean` follows the weights."""
        network.train()
        rows = windows(sequences, self.max_length, rng)
        rng.shuffle(rows)
        steps, total, targets = -(-len(rows) // self.batch_size), 0.0, 0
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            optimizer.zero_grad()
            total += cross_entropy_backward(network, batch)
            step(network, optimizer)
            mean.follow(network, steps)
            targets += transitions(batch)
        return total / max(1, targets)


class RunningMean:
    """The weights of a network in training, averaged over about its latest steps."""

    def __init__(self, network: Network) -> None:
        self.network, self.steps = copy.deepcopy(network).eval(), 0

    @torch.no_grad()
    def follow(self, network: Network, horizon: int) -> None:
        """Take a step's weights in, so that those `horizon` steps old weigh 1/e; fewer at first."""
        self.steps += 1
        share = max(1.0 / horizon, 9.0 / (9.0 + self.steps))
        both = zip(self.network.parameters(), network.parameters(), strict=True)
        for mine, now in both:
            mine.lerp_(now, share)

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
                logits = self.network.after(histories[start : start + ANSWERED]).cpu().double()
                probabilities = torch.softmax(logits / self.temperature, dim=-1)
                result[start : start + ANSWERED] = probabilities.numpy()
        return result

    @torch.no_grad()
    def ndcg(self, examples: Examples, filter_seen: bool, k: int = 10) -> float:
        """Mean NDCG@k of the examples, 0 for none; equal scores by position, as rankings are.

        For choosing an epoch; what is reported comes from `llmrec.evaluation`.
        """
        with one_thread():
            return self._ndcg(examples, filter_seen, k)

    def _ndcg(self, examples: Examples, filter_seen: bool, k: int) -> float:
        total = 0.0
        histories = examples.histories()
        for start in range(0, len(histories), ANSWERED):
            part = histories[start : start + ANSWERED]
            scores = self.network.after(part).cpu()
            targets = torch.from_numpy(examples.targets[start : start + ANSWERED].astype(np.int64))
            if filter_seen:
                scores[tuple(torch.from_numpy(x.astype(np.int64)) for x in seen(part))] = -torch.inf
            own = scores.gather(1, targets[:, None])
            before = torch.arange(scores.shape[1]) < targets[:, None]
            rank = ((scores > own) | ((scores == own) & before)).sum(dim=1)
            hit = (rank < k) & (own[:, 0] > -torch.inf)
            total += float((hit / torch.log2(rank + 2.0)).sum())
        return total / max(1, len(examples))


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


def cross_entropy_backward(network: Network, batch: Sequence[Ints]) -> float:
    """Add the gradients of the mean cross-entropy over a batch's transitions; returns its sum."""
    total, targets = 0.0, transitions(batch)
    for part in of_like_length(batch):
        inputs, labels = (tensor.to(network.device) for tensor in padded(part))
        asked = labels != IGNORED
        loss = CatalogLoss.apply(
            network(inputs)[asked], network.items.weight, network.bias, labels[asked]
        )
        (loss / targets).backward()
        total += loss.item()
    return total


def step(network: Network, optimizer: torch.optim.Optimizer) -> None:
    """Update the weights with the gradients, whose norm is cut to 5."""
    nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()


def transitions(rows: Sequence[Ints]) -> int:
    """How many items of the rows follow another."""
    return sum(len(row) - 1 for row in rows)


def spans(
    lengths: Sequence[int], max_length: int, rng: np.random.Generator
) -> Iterator[tuple[int, int, int]]:
    """(number, start, stop): windows of at most `max_length` transitions, at a random phase.

    Neighbouring windows share one item, so every transition of a sequence stands in one window.
    """
    for number, length in enumerate(lengths):
        begin = -int(rng.integers(max_length))
        for start in range(begin, length - 1, max_length):
            first, stop = max(0, start), min(length, start + max_length + 1)
            if stop - first > 1:
                yield number, first, stop


def windows(sequences: Sequence[Ints], max_length: int, rng: np.random.Generator) -> list[Ints]:
    """The sequences cut into the windows that `spans` gives."""
    cut = spans([len(sequence) for sequence in sequences], max_length, rng)
    return [sequences[number][start:stop] for number, start, stop in cut]


def sequences_of(train: Interactions) -> list[Ints]:
    """Each user's positions, oldest first, in the order of the rows."""
    starts = np.flatnonzero(np.diff(train.user)) + 1
    return np.split(train.position, starts)


def padded(rows: Sequence[Ints]) -> tuple[Tensor, Tensor]:
    """(B, S) inputs, all but the last item of each row, and labels, all but its first."""
    length = max(1, max(len(row) for row in rows) - 1)
    inputs = torch.zeros((len(rows), length), dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    for i, row in enumerate(rows):
        inputs[i, : len(row) - 1] = torch.from_numpy(row[:-1].astype(np.int64))
        labels[i, : len(row) - 1] = torch.from_numpy(row[1:].astype(np.int64))
    return inputs, labels


def of_like_length(rows: Sequence[T], length: Callable[[T], int] = len) -> Iterator[Sequence[T]]:
    """The rows in parts, longest first, none twice as long as another of its part: less padding."""
    ordered = sorted(rows, key=length, reverse=True)
    while ordered:
        longest = length(ordered[0])
        fits = sum(2 * length(row) > longest for row in ordered)
        yield ordered[:fits]
        ordered = ordered[fits:]
