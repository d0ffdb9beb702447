"""Objectives: what a predicted token costs, as pure functions of logits, and batches for them.

`sft` is cross-entropy over the vocabulary. `msl` is cross-entropy over the tokens that continue
some title (Masked Softmax Loss, arXiv 2504.04178): what the constrained decoder will use. A token
with one continuation costs nothing there, so its logits are never computed.

`set_size` and `set_distance` judge the prediction sets of conformal prediction (CPFT, arXiv
2402.08976): B examples, N items or candidates, log-probabilities in nats. Given a `temperature`
they are smooth: membership is a sigmoid, and gradients flow through it and through the threshold.
Without one they are hard as published: gradients flow through the probabilities of the items
outside a set (size) and through the similarities of those inside (distance), nothing else. The
smooth values become the hard ones as the temperature goes to 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from llmrec.model.forward import TreeBatch, collate, forward_logits
from llmrec.text.tree import FlatTree
from llmrec.text.trie import TitleTrie


@dataclass(frozen=True)
class Choices:
    """For T predicted tokens the ids to choose from, end to end.

    tokens (C,) candidate ids; owner (C,) which of the T they belong to, ascending; chosen (T,)
    index into C of the true one.
    """

    tokens: Tensor
    owner: Tensor
    chosen: Tensor

    def to(self, device: torch.device | str) -> "Choices":
        """The same choices on another device."""
        return Choices(self.tokens.to(device), self.owner.to(device), self.chosen.to(device))


def log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """(T,) float32 log-probability of `labels` (T,) under the softmax over the vocabulary."""
    return -torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")


def restricted_log_probabilities(logits: Tensor, choices: Choices, tau: float = 1.0) -> Tensor:
    """(T,) float32 log-probability of the chosen tokens under the softmax over their choices.

    logits (T, V); `tau` divides the logits.
    """
    z = logits[choices.owner, choices.tokens].float() / tau
    return z[choices.chosen] - segment_logsumexp(z, choices.owner, len(logits))


def segment_logsumexp(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """(count,) log-sum-exp of the `values` (C,) that share an `owner` (C,) index."""
    peak = values.new_full((count,), -torch.inf)
    peak = peak.scatter_reduce(0, owner, values.detach(), "amax")
    total = values.new_zeros(count).index_add(0, owner, torch.exp(values - peak[owner]))
    return total.log() + peak


def branch_sums(token_values: Tensor, branches: Tensor, count: int) -> Tensor:
    """(count,) sums of `token_values` (T,) over the tokens of each branch."""
    return token_values.new_zeros(count).index_add(0, branches, token_values)


def trie_choices(
    trees: Sequence[FlatTree], trie: TitleTrie, completions: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], Choices]:
    """Which predicted tokens have more than one continuation in the trie, and which these are.

    Returns, for each tree, the indices (into its predicted tokens) that are kept, and the Choices
    of all kept tokens in order.
    """
    walks: dict[int, np.ndarray] = {}
    kept, nodes, reached = [], [], []
    for tree in trees:
        before = np.empty(len(tree.labels), np.int64)
        after = np.empty(len(tree.labels), np.int64)
        for target in np.unique(tree.targets):
            if int(target) not in walks:
                walks[int(target)] = trie.walk(completions[target])
            mine = tree.targets == target
            before[mine] = walks[int(target)][tree.steps[mine]]
            after[mine] = walks[int(target)][tree.steps[mine] + 1]
        keep = np.flatnonzero(trie.child_count(before) > 1)
        kept.append(keep)
        nodes.append(before[keep])
        reached.append(after[keep])
    parents, true_child = np.concatenate(nodes), np.concatenate(reached)
    children, owner = trie.children_of(parents)
    chosen = np.flatnonzero(children == true_child[owner])  # one of each parent's children
    return kept, Choices(
        torch.from_numpy(trie.tokens[children].astype(np.int64)),
        torch.from_numpy(owner.astype(np.int64)),
        torch.from_numpy(chosen.astype(np.int64)),
    )


def log_threshold(log_truth: Tensor, alpha: float, temperature: float | None = None) -> Tensor:
    """() log of eta, which a share of about `alpha` of the true items' probabilities stay below.

    log_truth (B,): log-probability of the true item of each example. Hard: the quantile of order
    alpha (1 + 1/B), at most 1, the higher of two neighbours, without gradient. Smooth: the mean of
    all values, weighted by how near they are to that quantile.
    """
    count = len(log_truth)
    order = min(1.0, alpha * (1.0 + 1.0 / count))
    place = min(count - 1, math.ceil(order * (count - 1) - 1e-9))
    picked = torch.sort(log_truth).values[place]
    if temperature is None:
        return picked.detach()
    weights = torch.softmax(-(((log_truth - picked) / temperature) ** 2), dim=0)
    return (weights * log_truth).sum()


def membership(log_p: Tensor, log_eta: Tensor, temperature: float | None = None) -> Tensor:
    """(B, N) how far an item is in its example's set, p > eta: 0 or 1; smooth: between them."""
    if temperature is None:
        return (log_p > log_eta).to(log_p.dtype)
    return torch.sigmoid((log_p - log_eta) / temperature)


def set_size(log_p: Tensor, log_eta: Tensor, temperature: float | None = None) -> Tensor:
    """() mean over examples of the sum over items of: 1 inside the set, the probability outside.

    log_p (B, N), -inf for an item that is no candidate; log_eta (): see `log_threshold`.
    """
    inside = membership(log_p, log_eta, temperature)
    return (inside + (1.0 - inside) * log_p.exp()).sum(dim=1).mean()


def set_distance(
    log_p: Tensor,
    log_eta: Tensor,
    similarity: Tensor,
    is_label: Tensor,
    nearest: int,
    temperature: float | None = None,
) -> Tensor:
    """() mean over examples of 1 minus the mean similarity of the set's `nearest` most similar.

    log_p (B, N); similarity (B, N): cosine of each item to the example's true one; is_label (B, N):
    the true item itself, which does not count. An example whose set holds nothing else adds 0.
    Smooth: items count as far as they are members, an example as far as the surest
    of those that count.
    """
    inside = membership(log_p, log_eta, temperature).masked_fill(is_label, 0.0)
    # Similarities are shifted above 0, so that every member comes before what is none.
    order = (inside * (similarity + 2.0)).detach()
    chosen = order.topk(min(nearest, order.shape[1]), dim=1).indices
    weights, values = inside.gather(1, chosen), similarity.gather(1, chosen)
    total = weights.sum(dim=1)
    # The clamp is far below any weight that is told from 0, and keeps 0 / 0 away.
    mean = (weights * values).sum(dim=1) / total.clamp(min=1e-30)
    return (weights.amax(dim=1) * (1.0 - mean)).clamp(min=0.0).mean()


@dataclass(frozen=True)
class Objective:
    """`sft`: softmax over the vocabulary; `msl`: over the trie's continuations, over `tau`.

    `kind_weights`: what the kinds of targets weigh where no curriculum says otherwise.
    """

    kind_weights: ClassVar[tuple[float, ...]] = (1.0, 1.0)  # real ones, a model's own answers

    name: str
    trie: TitleTrie
    completions: Sequence[np.ndarray] = field(repr=False)
    tau: float = 1.0

    def prepare(self, rows: Sequence[FlatTree]) -> dict[str, Any]:
        """The batch of some rows, as tensors; `kinds` (G,) are those of its G targets."""
        branches, begin = [], 0
        for row in rows:
            branches.append(row.branches + begin)
            begin += row.branch_count
        if self.name == "msl":
            kept, choices = trie_choices(rows, self.trie, self.completions)
            extra = {"tokens": choices.tokens, "owner": choices.owner, "chosen": choices.chosen}
        else:
            kept = [np.arange(len(row.labels)) for row in rows]
            extra = {
                "labels": torch.from_numpy(np.concatenate([r.labels for r in rows]).astype(int))
            }
        batch = collate(rows, [row.predictors[k] for row, k in zip(rows, kept, strict=True)])
        of_token = np.concatenate([b[k] for b, k in zip(branches, kept, strict=True)])
        return {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            "mask": batch.mask,
            "at": batch.at,
            "branches": torch.from_numpy(of_token.astype(np.int64)),
            "kinds": torch.from_numpy(np.concatenate([row.kinds for row in rows]).astype(int)),
            **extra,
        }

    def branch_log_probabilities(self, model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
        """(G,) log-probability of each target of a prepared batch."""
        trees = TreeBatch(batch["input_ids"], batch["position_ids"], batch["mask"], batch["at"])
        logits = forward_logits(model, trees)
        if self.name == "msl":
            choices = Choices(batch["tokens"], batch["owner"], batch["chosen"])
            values = restricted_log_probabilities(logits, choices, self.tau)
        else:
            values = log_probabilities(logits, batch["labels"])
        return branch_sums(values, batch["branches"], len(batch["kinds"]))
