"""Constrained beam search: beams follow the TitleTrie, a leaf is an item.

A step sends each user's live beams as new columns behind that user's prompt, so nothing is
reordered. Which beams live, when
they finish and when the search stops is what Hugging Face's beam search does with an allowed-token
mask and length penalty 0. Under scores renormalised over the allowed tokens a beam whose rest is
forced costs no forward pass. No state outlives a call. Knows neither text nor metrics.
"""

from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt
import torch

from llmrec.decoding.open_items import OpenItems, child_log_probabilities
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.text.trie import TREE_ROOT

Longs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


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
    """One user's items, best first: `positions` (L,) int32, `scores` (L,) float32."""

    positions: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]


@dataclass
class _Beams:
    """U users x K beams. `slot` is the beam's row in the last forward pass, -1 for none."""

    node: Longs
    score: Doubles
    slot: Longs
    sees: npt.NDArray[np.bool_]  # (U, K, G) generated columns on the beam's path


@torch.inference_mode()
def beam_search(
    prompts: SharedPrompt,
    open_items: OpenItems,
    *,
    beams: int,
    top_k: int,
    scoring: Scoring,
) -> list[Ranking]:
    """The `top_k` best open items of each of U users, as found by `beams` beams.

    A user with fewer open items gets them all if the beams suffice, never anything else.
    """
    if top_k > beams:
        raise ValueError(f"top_k = {top_k} items cannot come out of {beams} beams")
    users = len(prompts)
    prompts.restart()
    state = _Beams(
        node=np.zeros((users, beams), np.int64),
        score=np.full((users, beams), -np.inf),
        slot=np.tile(np.arange(users)[:, None], (1, beams)),
        sees=np.zeros((users, beams, 0), bool),
    )
    state.score[:, 0] = 0.0
    finished_score = np.full((users, beams), -np.inf)
    finished_node = np.full((users, beams), -1, np.int64)
    logits = prompts.logits
    for depth in count():
        user, beam, child, score = _candidates(state, open_items, logits, scoring)
        user, beam, child, score, place = _best(user, beam, child, score, keep=2 * beams)
        ends = open_items.trie.child_count(child) == 0
        _finish(finished_score, finished_node, user, child, score, ends & (place < beams))
        state = _survivors(state, user, beam, child, score, ends)
        # A path's score only falls, so a user whose finished beams beat every running one is done.
        done = finished_score.min(axis=1) >= state.score[:, 0]
        state.score[done] = -np.inf
        if not np.isfinite(state.score).any():
            return [
                _ranking(open_items, u, finished_node[u], finished_score[u], top_k)
                for u in range(users)
            ]
        logits = _advance(state, open_items, prompts, depth, scoring)
    raise AssertionError("unreachable: every beam ends")


def _candidates(
    state: _Beams, open_items: OpenItems, logits: torch.Tensor, scoring: Scoring
) -> tuple[Longs, Longs, Longs, Doubles]:
    """All open continuations of all live beams: user, beam, child node, score, each (C,)."""
    user, beam = np.nonzero(np.isfinite(state.score))
    child, owner = open_items.children(user, state.node[user, beam])
    slots = state.slot[user, beam][owner]
    read = slots >= 0
    step = np.zeros(len(child))
    if read.any():
        rows = torch.from_numpy(slots[read]).to(logits.device)
        tokens = torch.from_numpy(open_items.trie.tokens[child[read]].astype(np.int64))
        values = logits[rows, tokens.to(logits.device)].float()
        if scoring.over_children:
            step[read] = child_log_probabilities(
                values.double().cpu().numpy(), owner[read], open_items, user[owner[read]],
                child[read], scoring.guidance,
            )  # fmt: skip
        else:
            normaliser = torch.logsumexp(logits.float(), dim=-1)
            step[read] = (values - normaliser[rows]).double().cpu().numpy()
    return user[owner], beam[owner], child, state.score[user, beam][owner] + step


def _best(
    user: Longs, beam: Longs, child: Longs, score: Doubles, keep: int
) -> tuple[Longs, Longs, Longs, Doubles, Longs]:
    """The `keep` best candidates of each user, best first, ties by node; and their places."""
    order = np.lexsort((child, -score, user))
    sorted_user = user[order]
    place = np.arange(len(order)) - np.searchsorted(sorted_user, sorted_user)
    order, place = order[place < keep], place[place < keep]
    return user[order], beam[order], child[order], score[order], place


def _finish(
    finished_score: Doubles, finished_node: Longs, user: Longs, child: Longs, score: Doubles,
    ends: npt.NDArray[np.bool_],
) -> None:  # fmt: skip
    """Merge candidates that end into each user's finished beams, keeping the best."""
    width = finished_score.shape[1]
    for u in np.unique(user[ends]):
        mine = ends & (user == u)
        scores = np.concatenate([finished_score[u], score[mine]])
        nodes = np.concatenate([finished_node[u], child[mine]])
        order = np.argsort(-scores, kind="stable")[:width]
        finished_score[u], finished_node[u] = scores[order], nodes[order]


def _survivors(
    state: _Beams, user: Longs, beam: Longs, child: Longs, score: Doubles,
    ends: npt.NDArray[np.bool_],
) -> _Beams:  # fmt: skip
    """The best candidates that go on, as the next beams."""
    users, beams = state.node.shape
    user, beam, child, score = (x[~ends] for x in (user, beam, child, score))
    place = np.arange(len(user)) - np.searchsorted(user, user)
    kept = place < beams
    user, beam, child, score, place = (x[kept] for x in (user, beam, child, score, place))
    following = _Beams(
        node=np.full((users, beams), TREE_ROOT, np.int64),
        score=np.full((users, beams), -np.inf),
        slot=np.full((users, beams), -1, np.int64),
        sees=np.zeros_like(state.sees),
    )
    following.node[user, place] = child
    following.score[user, place] = score
    following.sees[user, place] = state.sees[user, beam]
    return following


def _advance(
    state: _Beams, open_items: OpenItems, prompts: SharedPrompt, depth: int, scoring: Scoring
) -> torch.Tensor:
    """Read the token of every live beam that needs it; sets their slots and columns."""
    needed = np.isfinite(state.score)
    if scoring.over_children:
        user, beam = np.nonzero(needed)
        needed[user, beam] = open_items.count(user, state.node[user, beam]) > 1
    user, beam = np.nonzero(needed)
    if len(user) == 0:
        return torch.zeros(0)
    column = np.arange(len(user)) - np.searchsorted(user, user)
    width, users = int(column.max()) + 1, len(state.node)
    tokens = np.zeros((users, width), np.int64)
    tokens[user, column] = open_items.trie.tokens[state.node[user, beam]]
    sees = np.zeros((users, width, state.sees.shape[2] + width), bool)
    sees[:, range(width), range(state.sees.shape[2], state.sees.shape[2] + width)] = True
    sees[user, column, : state.sees.shape[2]] = state.sees[user, beam]
    grown = np.zeros((*state.node.shape, sees.shape[2]), bool)
    grown[..., : state.sees.shape[2]] = state.sees
    grown[user, beam] = sees[user, column]
    state.sees = grown
    state.slot[user, beam] = np.arange(len(user))
    return prompts.read(tokens, depth, sees, user * width + column)


def _ranking(
    open_items: OpenItems, user: int, nodes: Longs, scores: Doubles, top_k: int
) -> Ranking:
    """Finished nodes as items; nodes that hold several open items give them all, lowest first."""
    positions: list[int] = []
    values: list[float] = []
    for node, score in zip(nodes, scores, strict=True):
        if np.isfinite(score):
            items = open_items.items_at(user, int(node))
            positions += items.tolist()
            values += [score] * len(items)
    return Ranking(np.array(positions[:top_k], np.int32), np.array(values[:top_k], np.float32))
