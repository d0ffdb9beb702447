"""Target likelihood: how probable the constrained decoder finds what the user really chose.

A proper score over the catalog: at each step of the target's path the softmax runs over the
tokens that lead to items open to the user, so the probabilities of all of them sum to 1. One
forward pass a user, the head only where there is a choice. Knows neither files nor metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from llmrec.decoding.open_items import OpenItems, child_log_probabilities
from llmrec.model.forward import collate, forward_logits
from llmrec.text.tree import Segment, TokenTree

Longs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PathScores:
    """The choices on the paths of U users' targets: R choices among C children in all.

    user (R,) whose; first (R,) where a choice's children begin, chosen (R,) index into C of the
    true one; logits (C,) the language model's, children (C,) their nodes. `sharing` (U,): open
    items with the target's very tokens, among which probability is divided. `reachable` (U,):
    False where the target is not open to the user (already seen).
    """

    user: Longs
    owner: Longs
    chosen: Longs
    logits: Doubles
    children: Longs
    sharing: Longs
    reachable: npt.NDArray[np.bool_]
    open_items: OpenItems

    def nll(self, guidance: float = 1.0) -> Doubles:
        """(U,) minus log-probability of the target, in nats; infinite where it is not open.

        `guidance` below 1 mixes in the baseline's probabilities as the guided search does.
        """
        log_p = child_log_probabilities(
            self.logits, self.owner, self.open_items, self.user[self.owner], self.children, guidance
        )
        total = np.bincount(self.user, -log_p[self.chosen], minlength=len(self.sharing))
        total = total + np.log(np.maximum(self.sharing, 1))
        return np.where(self.reachable, total, np.inf)


@torch.inference_mode()
def path_scores(
    model: nn.Module,
    prompts: Sequence[npt.NDArray[np.int32]],
    completions: Sequence[npt.NDArray[np.int32]],
    targets: Sequence[int],
    open_items: OpenItems,
) -> PathScores:
    """Read each user's prompt and target once.

    prompts: U id arrays; completions: all N items' ids; targets: U positions.
    """
    device = next(model.parameters()).device
    trie = open_items.trie
    flats, predictors, users, children, owners, chosen = [], [], [], [], [], []
    sharing = np.zeros(len(prompts), np.int64)
    rows = total = 0
    for u, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        ids = completions[target]
        nodes = trie.walk(ids).astype(np.int64)
        sharing[u] = len(open_items.items_at(u, int(nodes[-1])))
        flat = TokenTree((Segment(prompt), Segment(ids, 0, int(target)))).flatten()
        whose = np.full(len(ids), u)
        child, owner = open_items.children(whose, nodes[:-1])
        keep = np.flatnonzero(np.bincount(owner, minlength=len(ids)) > 1)
        keep = keep if int(target) in open_items.items_at(u, int(nodes[-1])) else keep[:0]
        mine = np.isin(owner, keep)
        flats.append(flat)
        predictors.append(flat.predictors[keep])
        users.append(np.full(len(keep), u))
        children.append(child[mine])
        owners.append(rows + np.searchsorted(keep, owner[mine]))
        chosen.append(total + np.flatnonzero(np.isin(child[mine], nodes[1:][keep])))
        rows, total = rows + len(keep), total + int(mine.sum())
    owner, child = np.concatenate(owners), np.concatenate(children)
    logits = np.zeros(0)
    if rows:
        output = forward_logits(model, collate(flats, predictors).to(device))
        tokens = torch.from_numpy(trie.tokens[child].astype(np.int64)).to(device)
        picked = output[torch.from_numpy(owner).to(device), tokens]
        logits = picked.double().cpu().numpy()
    reachable = np.array([t in open_items.items_at(u, int(trie.walk(completions[t])[-1]))
                          for u, t in enumerate(targets)])  # fmt: skip
    return PathScores(np.concatenate(users), owner, np.concatenate(chosen), logits, child,
                      sharing, reachable, open_items)  # fmt: skip
