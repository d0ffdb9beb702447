"""SASRec: causal self-attention over a user's last items, on CPU threads or wherever torch is put.

Learned positions, output tied to the item embeddings, cross-entropy over the whole catalog,
early stop on validation NDCG@10. Source: arXiv 1808.09781 (its loss samples negatives, which
understates it). Knows no titles. Importing this module imports torch.
"""

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec.baselines.distribution import Distribution, Floats, Histories
from llmrec.baselines.ranking import mean_ndcg, predict
from llmrec.data.records import Examples, Interactions, Ints

log = logging.getLogger("llmrec")

# Logits held at once in training: 2**24 float32 are 64 MiB, a few times that with gradients.
LOGITS = 2**24
IGNORED = -100


@dataclass(frozen=True)
class SASRec:
    """Sizes and training. `temperature` divides the logits once trained (1: as trained).

    Training stops after `patience` epochs without a better NDCG@10 on validation, or goes on to the
    last epoch where there is no validation example.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 2
    max_length: int = 50
    dropout: float = 0.1
    learning_rate: float = 5e-3
    weight_decay: float = 0.01
    batch_size: int = 24
    max_epochs: int = 10
    patience: int = 5
    temperature: float = 1.0

    def fit(
        self, train: Interactions, catalog_size: int, valid: Examples, filter_seen: bool, seed: int
    ) -> "FittedSASRec":
        """Train on every transition of every user; keep the epoch that ranks `valid` best.

        The same seed and number of threads give the same weights; torch's own random state is
        left as it was.
        """
        sequences = _sequences(train)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            rng = np.random.default_rng(seed)
            network = Network(self, catalog_size)
            optimizer = torch.optim.AdamW(
                network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
            )
            # The rate falls to 0 at the last epoch: far fewer epochs than at a constant rate.
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda epoch: 1.0 - epoch / self.max_epochs
            )
            best = FittedSASRec(copy.deepcopy(network).eval(), self.temperature, epoch=0)
            best_ndcg = -1.0
            for epoch in range(1, self.max_epochs + 1):
                loss = self._epoch(network, optimizer, sequences, rng)
                schedule.step()
                fitted = FittedSASRec(network.eval(), self.temperature, epoch)
                shown = predict(fitted, valid.histories(), None, catalog_size, 10, filter_seen)
                ndcg = mean_ndcg(shown.positions, valid.targets)
                log.info("sasrec epoch %d: loss %.4f, valid NDCG@10 %.4f", epoch, loss, ndcg)
                if ndcg > best_ndcg or len(valid) == 0:
                    best_ndcg = ndcg
                    best = FittedSASRec(copy.deepcopy(network), self.temperature, epoch)
                elif epoch - best.epoch >= self.patience:
                    break
        return best

    def _epoch(
        self, network: "Network", optimizer: torch.optim.Optimizer, sequences: list[Ints],
        rng: np.random.Generator,
    ) -> float:  # fmt: skip
        """One pass over all transitions; mean loss in nats."""
        network.train()
        rows = windows(sequences, self.max_length, rng)
        rng.shuffle(rows)
        total, targets_seen = 0.0, 0
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            targets = sum(len(row) - 1 for row in batch)
            optimizer.zero_grad()
            for part in _parts(batch, network.catalog_size):
                inputs, labels = _padded(part)
                hidden = network(inputs)[labels != IGNORED]
                loss = F.cross_entropy(
                    network.logits(hidden), labels[labels != IGNORED], reduction="sum"
                )
                (loss / targets).backward()
                total += loss.item()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            targets_seen += targets
        return total / max(1, targets_seen)


class Network(nn.Module):
    """`forward` (B, S) positions, right-padded -> (B, S, hidden); `logits` (..., hidden) -> N."""

    def __init__(self, sizes: SASRec, catalog_size: int) -> None:
        super().__init__()
        self.catalog_size = catalog_size
        self.max_length = sizes.max_length
        self.items = nn.Embedding(catalog_size, sizes.hidden)
        self.places = nn.Embedding(sizes.max_length, sizes.hidden)
        self.bias = nn.Parameter(torch.zeros(catalog_size))
        for embedding in (self.items, self.places):
            nn.init.normal_(embedding.weight, std=sizes.hidden**-0.5 / 2)
        self.dropout = nn.Dropout(sizes.dropout)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.hidden)

    def forward(self, inputs: Tensor) -> Tensor:
        """A padded place comes after all real ones, so causality alone hides it."""
        places = torch.arange(inputs.shape[1], device=inputs.device)
        hidden = self.dropout(self.items(inputs) + self.places(places))
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Tied output: a dot product with every item's embedding, plus the item's bias."""
        return F.linear(hidden, self.items.weight, self.bias)


class Block(nn.Module):
    """Causal attention, then a feed-forward layer, each added to what came in."""

    def __init__(self, sizes: SASRec) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.attention_norm = nn.LayerNorm(sizes.hidden)
        self.query_key_value = nn.Linear(sizes.hidden, 3 * sizes.hidden)
        self.output = nn.Linear(sizes.hidden, sizes.hidden)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(sizes.hidden), nn.Linear(sizes.hidden, 2 * sizes.hidden), nn.GELU(),
            nn.Linear(2 * sizes.hidden, sizes.hidden),
        )  # fmt: skip
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        rows, length, width = hidden.shape
        qkv = self.query_key_value(self.attention_norm(hidden))
        split = qkv.view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*split.unbind(0), is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(rows, length, width)
        hidden = hidden + self.dropout(self.output(mixed))
        return hidden + self.dropout(self.feed_forward(hidden))


@dataclass(frozen=True)
class FittedSASRec(Distribution):
    """A network in evaluation mode, as it was after `epoch` epochs."""

    network: Network
    temperature: float
    epoch: int

    @torch.no_grad()
    def weights(self, histories: Histories) -> Floats:
        """See `Distribution.weights`; an empty history gets the items' biases alone."""
        result = np.empty((len(histories), self.network.catalog_size))
        for start in range(0, len(histories), 256):
            part = histories[start : start + 256]
            # A row of one item more than it has: `_padded` takes the last for the label.
            rows = [np.append(h[-self.network.max_length :], 0).astype(np.int64) for h in part]
            ends = torch.tensor([len(row) - 2 for row in rows])
            hidden = self.network(_padded(rows)[0])[torch.arange(len(part)), ends.clamp(min=0)]
            logits = self.network.logits(hidden * (ends >= 0).unsqueeze(1))
            logits = logits.double() / self.temperature
            result[start : start + 256] = torch.softmax(logits, dim=-1).numpy()
        return result


def windows(sequences: list[Ints], max_length: int, rng: np.random.Generator) -> list[Ints]:
    """Sequences cut into windows of at most `max_length` transitions, at a random phase each.

    Neighbouring windows share one item, so every transition of a sequence stands in one window.
    """
    result = []
    for sequence in sequences:
        begin = -int(rng.integers(max_length))
        for start in range(begin, len(sequence) - 1, max_length):
            window = sequence[max(0, start) : start + max_length + 1]
            if len(window) > 1:
                result.append(window)
    return result


def _sequences(train: Interactions) -> list[Ints]:
    """Each user's positions, oldest first."""
    starts = np.flatnonzero(np.diff(train.user)) + 1
    return np.split(train.position, starts)


def _parts(batch: list[Ints], catalog_size: int) -> Iterator[list[Ints]]:
    """The batch in pieces whose logits fit; their gradients add up to the batch's."""
    longest = max(len(row) for row in batch)
    size = max(1, LOGITS // (longest * catalog_size))
    return (batch[start : start + size] for start in range(0, len(batch), size))


def _padded(rows: list[Ints]) -> tuple[Tensor, Tensor]:
    """(B, S) inputs, all but the last item of each row, and labels, all but its first."""
    length = max(1, max(len(row) for row in rows) - 1)
    inputs = torch.zeros((len(rows), length), dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    for i, row in enumerate(rows):
        inputs[i, : len(row) - 1] = torch.from_numpy(row[:-1].astype(np.int64))
        labels[i, : len(row) - 1] = torch.from_numpy(row[1:].astype(np.int64))
    return inputs, labels
