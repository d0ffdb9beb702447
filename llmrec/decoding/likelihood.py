"""Target likelihood: how probable the constrained decoder finds what the user really chose.

A proper score over the catalog: at each step of the target's path the softmax runs over the
tokens that lead to items open to the user, so the probabilities of all of them sum to 1. The head
is computed only where there is a choice. Knows neither files nor metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from llmrec.decoding.open_items import OpenItems, child_log_probabilities
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.model.in_flight import fetched

Longs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PathScores:
    """The choices on the paths of U users' targets: R choices among C children in all.

    user (R,) whose a choice is; owner (C,) which choice a child belongs to; chosen (R,) index into
    C of the true one; logits (C,) the language model's, children (C,) their nodes. `sharing` (U,):
    open items with the target's very tokens, among which probability is divided. `reachable` (U,):
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


def path_scores(
    prompts: SharedPrompt,
    completions: Sequence[npt.NDArray[np.int32]],
    targets: Sequence[int],
    open_items: OpenItems,
    evenly: bool = False,
) -> PathScores:
    """Read each user's target behind the prompt.

    completions: token ids of all N items; targets: U positions. `evenly`: the model is called once
    even where no path has a choice behind its first token.
    """
    trie, users = open_items.trie, len(targets)
    walks = [trie.walk(completions[target]).astype(np.int64) for target in targets]
    last = np.array([walk[-1] for walk in walks], np.int64)
    ending, of = open_items.items_at(np.arange(users), last)
    sharing = np.bincount(of, minlength=users)
    reachable = np.zeros(users, bool)
    reachable[of[ending == np.asarray(targets)[of]]] = True
    # Every step of every path that can be answered, and among them those with a choice.
    lengths = np.array([len(w) - 1 if ok else 0 for w, ok in zip(walks, reachable, strict=True)])
    user = np.repeat(np.arange(users), lengths)
    step = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    nodes = np.array([walks[u][s] for u, s in zip(user, step, strict=True)], np.int64)
    following = np.array([walks[u][s + 1] for u, s in zip(user, step, strict=True)], np.int64)
    children, owner = open_items.children(user, nodes)
    open_choice = np.bincount(owner, minlength=len(user)) > 1
    kept = open_choice[owner]
    children, owner = children[kept], (np.cumsum(open_choice) - 1)[owner[kept]]
    user, step, following = user[open_choice], step[open_choice], following[open_choice]
    logits = _logits(prompts, completions, targets, user, step, evenly)
    tokens = prompts.columns(trie.tokens[children].astype(np.int64))
    picked = fetched(logits[torch.from_numpy(owner).to(logits.device), tokens])
    chosen = np.flatnonzero(children == following[owner])
    return PathScores(user, owner, chosen, picked, children, sharing, reachable, open_items)


def _logits(
    prompts: SharedPrompt,
    completions: Sequence[npt.NDArray[np.int32]],
    targets: Sequence[int],
    user: Longs,
    step: Longs,
    evenly: bool,
) -> torch.Tensor:
    """(R, V) logits that predict token `step[r]` of the target of `user[r]`; users ascending."""
    read = step > 0
    if not read.any():
        if evenly:
            prompts.read_nothing()
        return prompts.logits[torch.from_numpy(user).to(prompts.logits.device)]
    width = int(step.max())
    tokens = np.zeros((len(targets), width), np.int64)
    for u, target in enumerate(targets):
        begin = completions[target][:width]
        tokens[u, : len(begin)] = begin
    prompts.restart()
    sees = np.broadcast_to(np.tri(width, dtype=bool), (len(targets), width, width))
    later = prompts.read(tokens, np.arange(width), sees, user[read] * width + step[read] - 1)
    logits = later.new_empty((len(user), later.shape[1]))
    at = torch.from_numpy(read).to(later.device)
    logits[at] = later
    logits[~at] = prompts.logits[torch.from_numpy(user[~read]).to(later.device)]
    return logits
