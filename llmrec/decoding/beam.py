"""Constrained beam search: beams follow the TitleTrie, a leaf is an item.

A pass of the model reads tokens of the beams as new columns behind their user's prompt, so nothing
is reordered, and with them tokens that the beams are forced to take next. Which beams live, when
they finish and when the search stops is what Hugging Face's beam search does with an allowed-token
mask and length penalty 0. Under scores renormalised over the allowed tokens a beam whose rest is
forced costs no forward pass. No state outlives a call. Knows neither text nor metrics.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, pairwise

import numpy as np
import numpy.typing as npt
import torch

from llmrec.decoding.beam_state import (
    NOWHERE,
    Beams,
    Candidates,
    Places,
    best,
    finish,
    plan,
    seen,
    settle,
    survivors,
)
from llmrec.decoding.open_items import OpenItems, child_log_probabilities
from llmrec.decoding.shared_prompt import SharedPrompt, normalisers
from llmrec.model.in_flight import fetched
from llmrec.text.trie import TREE_ROOT

Longs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
ROOM = 128  # columns of all users that a pass may have before more of them cost more than they save


@dataclass(frozen=True)
class Scoring:
    """How a beam is scored.

    `renormalise`: token probabilities over the allowed tokens, else over the whole vocabulary.
    `guidance`: weight of the language model against the baseline's probabilities, 1 = unguided;
    below 1 probabilities are over the allowed tokens.
    """

    renormalise: bool = True
    guidance: float = 1.0

    @property
    def over_children(self) -> bool:
        """Whether probabilities are over a node's open children, so that forced tokens are free."""
        return self.renormalise or self.guidance < 1.0


@dataclass(frozen=True)
class Ranking:
    """One user's items, best first: `positions` (L,) int32, `scores` (L,) float32.

    `certified`: proven to be the best of all open items, by their scores; where the last of them
    has its equals among the others, any of these.
    """

    positions: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    certified: bool = False


def beam_search(
    prompts: SharedPrompt, open_items: OpenItems, *, beams: int, top_k: int, scoring: Scoring
) -> list[Ranking]:
    """The `top_k` best open items of each of U users, as found by `beams` beams.

    A user with fewer open items gets them all if the beams suffice, never anything else. A list is
    certified if nothing that the beams gave up was more probable than its last item.
    """
    users = np.arange(len(prompts))
    return _search(prompts, open_items, users, beams, top_k, scoring)


def certified_search(
    prompts: SharedPrompt,
    open_items: OpenItems,
    *,
    beams: int,
    top_k: int,
    scoring: Scoring,
    widest: int,
) -> list[Ranking]:
    """`beam_search` with twice the beams, again and again, for users whose list is not certified.

    Ends when all are, or with `widest` beams; the lists that then are not certified say so.
    """
    rankings = beam_search(prompts, open_items, beams=beams, top_k=top_k, scoring=scoring)
    while beams < widest:
        users = np.flatnonzero([not ranking.certified for ranking in rankings])
        if len(users) == 0:
            break
        beams = min(2 * beams, widest)
        part = prompts.of(users) if len(users) < len(prompts) else prompts
        found = _search(part, open_items, users, beams, top_k, scoring)
        for user, ranking in zip(users, found, strict=True):
            rankings[user] = ranking
    return rankings


@torch.inference_mode()
def _search(
    prompts: SharedPrompt,
    open_items: OpenItems,
    users: Longs,
    beams: int,
    top_k: int,
    scoring: Scoring,
) -> list[Ranking]:
    """Beam search for some `users` (U,) of `open_items`, whose prompts are those of `prompts`."""
    if not 1 <= top_k <= beams:
        raise ValueError(f"top_k = {top_k} items cannot come out of {beams} beams")
    prompts.restart()
    state = Beams.at_prompts(len(users), beams, TREE_ROOT)
    roots = np.full(len(users), TREE_ROOT)
    before = np.full(len(users), -1)
    places = _places(
        open_items, users, roots, before, scoring, lambda at: prompts.logits[at], prompts.columns
    )
    finished_score = np.full((len(users), top_k), -np.inf)
    finished_node = np.full((len(users), top_k), NOWHERE)
    given_up = np.full(len(users), -np.inf)
    for depth in count():
        found = _candidates(state, places, open_items, users)
        found, rank = best(found, 2 * beams, given_up)
        ends = open_items.trie.child_count(found.node) == 0
        finish(finished_score, finished_node, found, ends, given_up, rank, beams)
        state = survivors(state, places, found.take(~ends), given_up)
        # A path's score only falls: who has top_k finished beams that beat every running one is
        # done, and the running ones could not have changed the list.
        state.score[finished_score[:, -1] >= state.score[:, 0]] = -np.inf
        if not np.isfinite(state.score).any():
            return _rankings(open_items, users, finished_node, finished_score, given_up, top_k)
        _advance(state, places, open_items, users, prompts, depth, scoring)
    raise AssertionError("unreachable: every beam ends")


def _candidates(state: Beams, places: Places, open_items: OpenItems, users: Longs) -> Candidates:
    """All open continuations of all live beams; those of a beam that was not read are forced."""
    user, beam = np.nonzero(np.isfinite(state.score))
    place = state.place[user, beam]
    read, free = np.flatnonzero(place >= 0), np.flatnonzero(place < 0)
    owner, child, step = places.continuations(place[read])
    forced, forced_owner = open_items.children(users[user[free]], state.node[user, beam][free])
    owner = np.concatenate([read[owner], free[forced_owner]])
    child = np.concatenate([child, forced])
    step = np.concatenate([step, np.zeros(len(forced))])
    order = np.argsort(owner, kind="stable")
    owner = owner[order]
    score = state.score[user, beam][owner] + step[order]
    return Candidates(user[owner], beam[owner], child[order], score)


def _advance(
    state: Beams,
    places: Places,
    open_items: OpenItems,
    users: Longs,
    prompts: SharedPrompt,
    depth: int,
    scoring: Scoring,
) -> None:
    """Read what the live beams need, if anything, and what there is room for."""
    wanted = np.isfinite(state.score)
    if scoring.over_children:
        user, beam = np.nonzero(wanted)
        wanted[user, beam] = open_items.count(users[user], state.node[user, beam]) > 1
    reading = plan(state, places, open_items, users, wanted, depth, ROOM)
    if reading is None:
        return
    sees = seen(state, reading)
    tokens, depths = np.zeros((2, len(users), sees.shape[1]), np.int64)
    at = (reading.user, reading.column)
    tokens[at], depths[at] = open_items.trie.tokens[reading.node], reading.depth
    flat = reading.user * sees.shape[1] + reading.column
    more = _places(
        open_items,
        users[reading.user],
        reading.node,
        reading.depth,
        scoring,
        lambda at: prompts.read(tokens, depths, sees, flat[at]),
        prompts.columns,
    )
    settle(state, places, reading, more)


def _places(
    open_items: OpenItems,
    users: Longs,
    nodes: Longs,
    depth: Longs,
    scoring: Scoring,
    read: Callable[[Longs], torch.Tensor],
    columns: Callable[[Longs], torch.Tensor],
) -> Places:
    """The open continuations of R nodes of `users` (R,); `read` gives the logits after some, and
    `columns` where in them tokens stand."""
    child, owner = open_items.children(users, nodes)
    asked = np.bincount(owner, minlength=len(nodes)) > (1 if scoring.over_children else 0)
    logits = read(np.flatnonzero(asked))
    among = asked[owner]
    rows = torch.from_numpy((np.cumsum(asked) - 1)[owner[among]]).to(logits.device)
    tokens = open_items.trie.tokens[child[among]].astype(np.int64)
    values = logits[rows, columns(tokens)].float()
    step = np.zeros(len(child))
    if scoring.over_children:
        step[among] = child_log_probabilities(
            fetched(values),
            owner[among],
            open_items,
            users[owner[among]],
            child[among],
            scoring.guidance,
        )
    else:
        step[among] = fetched(values - normalisers(logits)[rows])
    # No probability is above 1, whatever float32 rounds to: what is given up relies on it.
    return Places.of(nodes, depth, owner, child, np.minimum(step, 0.0))


def _rankings(
    open_items: OpenItems,
    users: Longs,
    nodes: Longs,
    scores: Doubles,
    given_up: Doubles,
    top_k: int,
) -> list[Ranking]:
    """(U, B) finished nodes as items; nodes that hold several open items give them all, lowest
    first."""
    rows, columns = np.nonzero(np.isfinite(scores))
    positions, owner = open_items.items_at(users[rows], nodes[rows, columns])
    values, rows = scores[rows, columns][owner], rows[owner]
    bounds = np.searchsorted(rows, np.arange(len(users) + 1))
    found = []
    for row, (low, high) in enumerate(pairwise(bounds.tolist())):
        stop = min(high, low + top_k)
        last = values[stop - 1] if stop == low + top_k else -np.inf
        found.append(
            Ranking(
                positions[low:stop].astype(np.int32),
                values[low:stop].astype(np.float32),
                bool(last >= given_up[row]),
            )
        )
    return found
