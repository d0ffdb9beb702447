"""The softmax under which a completion's tokens are learned, and batches for it.

`FullSoftmax` runs over the vocabulary. `MaskedSoftmax` runs over the tokens that continue some
title (Masked Softmax Loss, arXiv 2504.04178): what the constrained decoder will use; a
`CandidateSoftmax` over those that continue one of the row's candidates. A token with one
continuation costs nothing there, so its logits are never computed. Each turns rows into tensors and
gives the log-probability of each branch of them; what is made of these is a `Loss`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

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


class Softmax(ABC):
    """What the kinds of softmax share: rows as tensors, and a branch as the sum of its tokens."""

    def prepare(self, rows: Sequence[FlatTree]) -> dict[str, Any]:
        """The batch of some rows, as tensors; `kinds` (G,) are those of its G branches."""
        branches, begin = [], 0
        for row in rows:
            branches.append(row.branches + begin)
            begin += row.branch_count
        kept, extra = self._predicted(rows)
        batch = collate(rows, [row.predictors[k] for row, k in zip(rows, kept, strict=True)])
        of_token = np.concatenate([b[k] for b, k in zip(branches, kept, strict=True)])
        return {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            "spans": batch.spans,
            "at": batch.at,
            "branches": torch.from_numpy(of_token.astype(np.int64)),
            "kinds": torch.from_numpy(np.concatenate([row.kinds for row in rows]).astype(int)),
            **extra,
        }

    def branch_log_probabilities(self, model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
        """(G,) log-probability of each branch of a prepared batch."""
        trees = TreeBatch(batch["input_ids"], batch["position_ids"], batch["spans"], batch["at"])
        logits = forward_logits(model, trees, tokens=batch.get("head"))
        values = self._of_tokens(logits, batch)
        return branch_sums(values, batch["branches"], len(batch["kinds"]))

    @abstractmethod
    def _predicted(self, rows: Sequence[FlatTree]) -> tuple[list[np.ndarray], dict[str, Tensor]]:
        """For each row which of its tokens need logits, and what `_of_tokens` needs to know."""

    @abstractmethod
    def _of_tokens(self, logits: Tensor, batch: dict[str, Any]) -> Tensor:
        """(T,) log-probability of each token that needed logits (T, V)."""


@dataclass(frozen=True)
class FullSoftmax(Softmax):
    """Over the whole vocabulary."""

    def _predicted(self, rows: Sequence[FlatTree]) -> tuple[list[np.ndarray], dict[str, Tensor]]:
        labels = np.concatenate([row.labels for row in rows]).astype(int)
        kept = [np.arange(len(row.labels)) for row in rows]
        return kept, {"labels": torch.from_numpy(labels)}

    def _of_tokens(self, logits: Tensor, batch: dict[str, Any]) -> Tensor:
        return log_probabilities(logits, batch["labels"])


@dataclass(frozen=True)
class MaskedSoftmax(Softmax):
    """Over the continuations in `trie`, logits divided by `tau`; a target names a completion.

    `narrow`: of the model's head the tokens that occur in the trie are computed and no others,
    which gives the same values but for rounding.
    """

    trie: TitleTrie
    completions: Sequence[np.ndarray] = field(repr=False)
    tau: float = 1.0
    narrow: bool = False

    @cached_property
    def _vocabulary(self) -> np.ndarray:
        found = np.unique(self.trie.tokens)
        return found[found >= 0]  # the root stands for no token

    def _predicted(self, rows: Sequence[FlatTree]) -> tuple[list[np.ndarray], dict[str, Tensor]]:
        kept, choices = trie_choices(rows, self.trie, self.completions)
        extra = {"tokens": choices.tokens, "owner": choices.owner, "chosen": choices.chosen}
        if self.narrow:
            places = np.searchsorted(self._vocabulary, choices.tokens.numpy())
            extra["tokens"] = torch.from_numpy(places)
            extra["head"] = torch.from_numpy(self._vocabulary.astype(np.int64))
        return kept, extra

    def _of_tokens(self, logits: Tensor, batch: dict[str, Any]) -> Tensor:
        choices = Choices(batch["tokens"], batch["owner"], batch["chosen"])
        return restricted_log_probabilities(logits, choices, self.tau)


@dataclass(frozen=True)
class CandidateSoftmax(Softmax):
    """Over the tokens that continue one of a row's own candidates, logits divided by `tau`.

    What is learned is how likely the target is among them: their probabilities sum to 1. `among` of
    each row are the positions of its candidates, its targets are of them.
    """

    completions: Sequence[np.ndarray] = field(repr=False)
    tau: float = 1.0

    def _predicted(self, rows: Sequence[FlatTree]) -> tuple[list[np.ndarray], dict[str, Tensor]]:
        kept: list[np.ndarray] = []
        tokens: list[int] = []
        owner: list[int] = []
        chosen: list[int] = []
        for row in rows:
            mine = []
            for number, (target, step) in enumerate(
                zip(row.targets.tolist(), row.steps.tolist(), strict=True)
            ):
                going = self._continuations(row.among, target, step)
                if len(going) < 2:
                    continue
                truth = int(self.completions[target][step])
                chosen.append(len(tokens) + going.index(truth))
                owner += [len(chosen) - 1] * len(going)
                tokens += going
                mine.append(number)
            kept.append(np.array(mine, np.int64))
        named = {"tokens": tokens, "owner": owner, "chosen": chosen}
        return kept, {name: torch.tensor(ids, dtype=torch.int64) for name, ids in named.items()}

    def _continuations(self, among: Sequence[int], target: int, step: int) -> list[int]:
        """The tokens that follow the target's first `step` ones in some candidate."""
        path = self.completions[target][:step]
        found = {
            int(self.completions[item][step])
            for item in among
            if len(self.completions[item]) > step
            and np.array_equal(self.completions[item][:step], path)
        }
        return sorted(found)

    def _of_tokens(self, logits: Tensor, batch: dict[str, Any]) -> Tensor:
        choices = Choices(batch["tokens"], batch["owner"], batch["chosen"])
        return restricted_log_probabilities(logits, choices, self.tau)
