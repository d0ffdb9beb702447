"""Best-first search: the true best items under a language model, with proof.

Probabilities only fall along a path, so the search always reads on at the most probable places and
stops when as many items are found as are asked for, each at least as probable as anything not yet
read. Places of all users are read in one pass, each as further columns of its user's row, and a
run of tokens without a choice at once. With `top_k` as large as the catalog every item gets its
score. Where a model is so unsure that much of the trie would be read, memory can be bounded, and
the list then says whether it is proven. No state outlives a call. Knows neither text nor metrics.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from llmrec.decoding.beam import Ranking, Scoring
from llmrec.decoding.open_items import OpenItems, child_log_probabilities
from llmrec.decoding.shared_prompt import SharedPrompt, normalisers
from llmrec.model.in_flight import fetched
from llmrec.text.trie import TREE_ROOT

Longs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
PROMPT = -1  # as a column: the last token of the prompt


@dataclass(frozen=True)
class _Places:
    """R trie nodes of several users: `score` their log-probability, `column` where the token before
    their own stands in the user's row, `depth` how many tokens stand between the prompt and it."""

    user: Longs
    node: Longs
    score: Doubles
    column: Longs
    depth: Longs

    def take(self, at: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> "_Places":
        return _Places(
            self.user[at], self.node[at], self.score[at], self.column[at], self.depth[at]
        )

    def and_(self, other: "_Places") -> "_Places":
        pairs = (
            (self.user, other.user),
            (self.node, other.node),
            (self.score, other.score),
            (self.column, other.column),
            (self.depth, other.depth),
        )
        return _Places(*(np.concatenate(pair) for pair in pairs))


@dataclass(frozen=True)
class Found:
    """The `rankings` of U users and what they cost: tokens read behind each prompt, `columns` (U,),
    and `passes` of the model, that of the prompts not counted."""

    rankings: list[Ranking]
    columns: Longs
    passes: int


@torch.inference_mode()
def best_first(
    prompts: SharedPrompt,
    open_items: OpenItems,
    *,
    top_k: int,
    scoring: Scoring,
    expand: int = 16,
    most: int | None = None,
) -> Found:
    """The `top_k` most probable open items of each of U users; all of them if there are fewer.

    Scores are those of `beam_search`. In one pass of the model at most `expand` places of a user
    are read on from; it changes the cost, not what is found. Equal scores stand in the order of the
    trie; which of several items of one score come last in a list that cannot hold them all is open.

    `most`: once so many tokens are read behind a prompt, only the best places are followed to their
    ends, as many as `top_k` or `expand`, and the others are given up. The list is certified if none
    of these was more probable than its last item.
    """
    if top_k < 1 or expand < 1:
        raise ValueError(f"top_k = {top_k} and expand = {expand} must be at least 1")
    users = len(prompts)
    prompts.restart()
    root = np.zeros(users, np.int64)
    frontier, ended = _branched(
        _Places(np.arange(users), root + TREE_ROOT, root.astype(float), root + PROMPT, root),
        prompts.logits,
        prompts.columns,
        open_items,
        scoring,
    )
    parents = np.zeros((users, 0), np.int64)  # of each column of a user's row
    columns, passes = np.zeros(users, np.int64), 0
    given_up = np.full(users, -np.inf)
    while True:
        ended = _best(ended, top_k)
        bounds = _bounds(ended, users, top_k)
        frontier = frontier.take(frontier.score > bounds[frontier.user])
        frontier = frontier.take(np.lexsort((-frontier.score, frontier.user)))
        place = np.arange(len(frontier.user)) - np.searchsorted(frontier.user, frontier.user)
        spent = columns >= (np.inf if most is None else most)
        now = place < np.where(spent, max(expand, top_k), expand)[frontier.user]
        lost = spent[frontier.user] & ~now
        np.maximum.at(given_up, frontier.user[lost], frontier.score[lost])
        chosen, frontier = frontier.take(now), frontier.take(~now & ~lost)
        if len(chosen.user) == 0:
            break
        at, logits, parents = _read(chosen, parents, prompts, open_items, scoring)
        further, finished = _branched(at, logits, prompts.columns, open_items, scoring)
        frontier, ended = frontier.and_(further), ended.and_(finished)
        columns += np.bincount(chosen.user, at.depth - chosen.depth, users).astype(np.int64)
        passes += 1
    proven = bounds >= given_up
    return Found(
        [
            _ranking(ended.take(ended.user == user), open_items, bool(proven[user]))
            for user in range(users)
        ],
        columns,
        passes,
    )


def _best(ended: _Places, top_k: int) -> _Places:
    """The `top_k` best of each user, best first, ties in the order of the trie."""
    order = np.lexsort((ended.node, -ended.score, ended.user))
    user = ended.user[order]
    return ended.take(order[np.arange(len(order)) - np.searchsorted(user, user) < top_k])


def _bounds(ended: _Places, users: int, top_k: int) -> Doubles:
    """(U,) score that a place must pass to matter: the last of a full list, else none."""
    bounds = np.full(users, -np.inf)
    full = np.bincount(ended.user, minlength=users) == top_k
    last = np.searchsorted(ended.user, np.arange(users), side="right") - 1
    bounds[full] = ended.score[last[full]]
    return bounds


def _read(
    chosen: _Places, parents: Longs, prompts: SharedPrompt, open_items: OpenItems, scoring: Scoring
) -> tuple[_Places, torch.Tensor, Longs]:
    """Read from each place to the next choice or to where an item ends.

    Returns the last places read, their `column` and `depth` now those of the token behind them;
    the (R, V) logits after them; and the columns' parents with the new ones.
    """
    runs = _runs(chosen, open_items)  # (R, L), -1 behind the end of a run
    read = runs >= 0
    length = read.sum(axis=1)
    users, before = parents.shape
    begin = np.cumsum(length) - length
    begin -= begin[np.searchsorted(chosen.user, chosen.user)]
    width = int((begin + length).max())
    row, step = np.nonzero(read)
    user, column = chosen.user[row], begin[row] + step
    tokens, depth = np.zeros((2, users, width), np.int64)
    tokens[user, column] = open_items.trie.tokens[runs[row, step]]
    depth[user, column] = chosen.depth[row] + step
    grown = np.full((users, before + width), PROMPT, np.int64)
    grown[:, :before] = parents
    grown[user, before + column] = np.where(step > 0, before + column - 1, chosen.column[row])
    ends = np.flatnonzero(step == length[row] - 1)
    # What a run leads through has probability 1 over the allowed tokens: only its end is asked.
    asked = ends if scoring.over_children else np.arange(len(row))
    logits = prompts.read(tokens, depth, _sees(grown, before), (user * width + column)[asked])
    score = chosen.score.copy()
    if not scoring.over_children:
        inner = np.setdiff1d(asked, ends)
        following = open_items.trie.tokens[runs[row[inner], step[inner] + 1]]
        score += np.bincount(row[inner], _of_vocabulary(logits, inner, following), len(score))
        logits = logits[torch.from_numpy(ends).to(logits.device)]
    at = _Places(
        chosen.user,
        runs[row[ends], step[ends]],
        score,
        before + column[ends],
        chosen.depth + length,
    )
    return at, logits, grown


def _runs(chosen: _Places, open_items: OpenItems) -> Longs:
    """(R, L) nodes from each place on while one open child follows that ends no item."""
    runs = [chosen.node]
    going = np.arange(len(chosen.node))
    while len(going):
        child, owner = open_items.children(chosen.user[going], runs[-1][going])
        alone = np.bincount(owner, minlength=len(going))[owner] == 1
        on = alone & (open_items.trie.child_count(child) > 0)
        going, child = going[owner[on]], child[on]
        following = np.full(len(chosen.node), -1, np.int64)
        following[going] = child
        runs.append(following)
    return np.stack(runs[:-1], axis=1)


def _sees(parents: Longs, before: int) -> npt.NDArray[np.bool_]:
    """(U, W, G + W) which columns each of the W newest sees: its ancestors and itself."""
    users, count = parents.shape
    sees = np.zeros((users, count - before, count), bool)
    user, row = np.indices((users, count - before))
    current = np.broadcast_to(np.arange(before, count), (users, count - before))
    alive = current >= 0
    while alive.any():
        sees[user[alive], row[alive], current[alive]] = True
        current = np.where(alive, parents[user, np.maximum(current, 0)], PROMPT)
        alive = current >= 0
    return sees


def _branched(
    at: _Places,
    logits: torch.Tensor,
    columns: Callable[[Longs], torch.Tensor],
    open_items: OpenItems,
    scoring: Scoring,
) -> tuple[_Places, _Places]:
    """The open children of R places, given the (R, V) logits after them and where in these tokens
    stand: those to read on from, and those where items end, once for each item.

    `column` and `depth` of `at` are those that its children get.
    """
    node, owner = open_items.children(at.user, at.node)
    tokens = open_items.trie.tokens[node]
    if scoring.over_children:
        device = logits.device
        values = logits[torch.from_numpy(owner).to(device), columns(tokens.astype(np.int64))]
        step = child_log_probabilities(
            fetched(values), owner, open_items, at.user[owner], node, scoring.guidance
        )
    else:
        step = _of_vocabulary(logits, owner, tokens)
    user = at.user[owner]
    below = open_items.count(user, node)
    if scoring.over_children:  # what is left of a single item has probability 1
        only = below == 1
        node[only] = _end_below(user[only], node[only], open_items)
    children = _Places(user, node, at.score[owner] + step, at.column[owner], at.depth[owner])
    ends = open_items.trie.child_count(node) == 0
    return children.take(~ends), children.take(np.repeat(np.flatnonzero(ends), below[ends]))


def _end_below(user: Longs, node: Longs, open_items: OpenItems) -> Longs:
    """(C,) where the item ends that is the only open one below each of C nodes."""
    node = node.copy()
    going = np.flatnonzero(open_items.trie.child_count(node) > 0)
    while len(going):
        node[going], _ = open_items.children(user[going], node[going])
        going = going[open_items.trie.child_count(node[going]) > 0]
    return node


def _of_vocabulary(
    logits: torch.Tensor, rows: npt.NDArray[np.integer], tokens: npt.NDArray[np.integer]
) -> Doubles:
    """(C,) log-probabilities of `tokens` (C,) after `rows` (C,) of logits (R, V)."""
    row = torch.from_numpy(rows.astype(np.int64)).to(logits.device)
    token = torch.from_numpy(tokens.astype(np.int64)).to(logits.device)
    # No probability is above 1, whatever float32 rounds to: the proof relies on it.
    values = (logits[row, token].float() - normalisers(logits)[row]).clamp(max=0.0)
    return fetched(values)


def _ranking(ended: _Places, open_items: OpenItems, proven: bool) -> Ranking:
    """One user's items; those of one node lowest first."""
    _, first = np.unique(ended.node, return_index=True)
    first.sort()
    positions, _ = open_items.items_at(ended.user[first], ended.node[first])
    positions = positions[: len(ended.node)]
    return Ranking(positions.astype(np.int32), ended.score.astype(np.float32), proven)
