"""Ranking given candidates: every candidate is a branch behind its user's prompt.

The prompt is read once, and where a user's candidates begin alike they are read once too, as one
small tree of columns. Which items are candidates is decided elsewhere (`llmrec.data.candidates`).
Knows neither text nor metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from llmrec.decoding.beam import Ranking
from llmrec.decoding.open_items import segment_log_softmax
from llmrec.decoding.shared_prompt import SharedPrompt, normalisers
from llmrec.model.in_flight import fetched
from llmrec.model.softmax import segment_logsumexp
from llmrec.text.trie import TitleTrie

Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]
HELD = 2**27  # logits held at a time, 512 MiB in float32


@dataclass(frozen=True)
class _Forest:
    """One tree of candidates for each of U users, M nodes in all, parents before children.

    Node u < U is the root of user u; the others follow user by user. user, parent (-1 for roots),
    token, depth (M,): whose a node is, what it hangs on, the token that leads to it and how many
    tokens stand between the prompt and that one. `ends` (U, C): where the candidates end.
    `catalog` (M,): the node of the catalog's trie that has the same tokens; 0 without one.
    """

    user: Longs
    parent: Longs
    token: Longs
    depth: Longs
    ends: Longs
    catalog: Longs


@dataclass(frozen=True)
class _Columns:
    """The R nodes that are read, each as column `column[r]` of its user's row; users ascending."""

    node: Longs
    column: Longs
    tokens: Longs  # (U, W), 0 where a user has fewer columns
    depth: Longs  # (U, W)
    sees: Bools  # (U, W, W)


@torch.inference_mode()
def candidate_scores(
    prompts: SharedPrompt,
    completions: Sequence[npt.NDArray[np.int32]],
    candidates: npt.NDArray[np.integer],
    renormalise: bool,
    passes: int = 0,
    trie: TitleTrie | None = None,
) -> Doubles:
    """(U, C) log-probabilities, in nats, of each user's candidates behind the user's prompt.

    completions: token ids of all N items, the end token last; candidates (U, C): positions. Not
    `renormalise`: a candidate's tokens under the whole vocabulary, as when prompt and completion
    are read alone. `renormalise`: each token among those that continue one of the user's
    candidates; a user's probabilities sum to 1, candidates of equal tokens share theirs, and only
    what leads to a choice is read. With a `trie` of all completions besides: each token among those
    that continue any of them, as lists of the whole catalog have it. `passes` of the model behind
    the prompts are done at least. Raises ValueError where users and prompts are not as many.
    """
    if len(candidates) != len(prompts):
        raise ValueError(f"candidates for {len(candidates)} users and {len(prompts)} prompts")
    within = trie if renormalise else None
    forest = _forest(completions, candidates, within)
    users = len(candidates)
    children = np.bincount(forest.parent[users:], minlength=len(forest.parent))
    asked = children > (1 if renormalise and within is None else 0)
    if within is not None:
        asked &= within.child_count(forest.catalog) > 1
    step = _steps(prompts, forest, asked, renormalise, passes, within)
    total = np.zeros(len(step))
    for node in range(users, len(step)):
        total[node] = total[forest.parent[node]] + step[node]
    scores = total[forest.ends]
    if renormalise and within is None:
        scores -= np.log(np.bincount(forest.ends.ravel())[forest.ends])
    return scores


def passes_at_most(
    completions: Sequence[npt.NDArray[np.int32]],
    candidates: npt.NDArray[np.integer],
    vocabulary: int,
) -> int:
    """Passes behind the prompts that `candidate_scores` of U users (U, C) may need.

    `vocabulary`: how many logits the model gives.
    """
    inner = np.array([len(ids) - 1 for ids in completions])
    columns = int(inner[candidates].sum(axis=1).max())
    return -(-columns // _slab(len(candidates) * vocabulary))


def _slab(logits: int) -> int:
    """How many columns are read in a pass, each of which gives so many logits."""
    return max(1, HELD // logits)


def candidate_ranking(positions: npt.NDArray[np.integer], scores: Doubles) -> Ranking:
    """One user's C candidates, best first, ties by position; positions and scores (C,)."""
    order = np.lexsort((positions, -scores))
    return Ranking(positions[order].astype(np.int32), scores[order].astype(np.float32))


def _forest(
    completions: Sequence[npt.NDArray[np.int32]],
    candidates: npt.NDArray[np.integer],
    trie: TitleTrie | None,
) -> _Forest:
    users = len(candidates)
    catalog = [0] * users
    user, parent, token, depth = list(range(users)), [-1] * users, [-1] * users, [-1] * users
    ends = np.empty(candidates.shape, np.int64)
    for u, row in enumerate(candidates.tolist()):
        known: dict[tuple[int, int], int] = {}
        for c, position in enumerate(row):
            node = u
            tokens = completions[position]
            walk = trie.walk(tokens)[1:].tolist() if trie is not None else [0] * len(tokens)
            for place, t in enumerate(tokens.tolist()):
                child = known.setdefault((node, t), len(user))
                if child == len(user):
                    user.append(u)
                    parent.append(node)
                    token.append(t)
                    depth.append(place)
                    catalog.append(walk[place])
                node = child
            ends[u, c] = node
    nodes = (np.array(x, np.int64) for x in (user, parent, token, depth))
    return _Forest(*nodes, ends, np.array(catalog, np.int64))


def _steps(
    prompts: SharedPrompt,
    forest: _Forest,
    asked: Bools,
    renormalise: bool,
    passes: int,
    trie: TitleTrie | None,
) -> Doubles:
    """(M,) log-probability of each node's token after its parent; 0 where that is not `asked`."""
    users = len(prompts)
    logits = np.zeros(len(asked))  # at a node's token, after its parent
    normaliser = np.zeros(len(asked))  # over the vocabulary or what continues titles, after a node
    of_asked = np.flatnonzero(np.append(np.zeros(users, bool), asked[forest.parent[users:]]))
    of_asked = of_asked[np.argsort(forest.parent[of_asked], kind="stable")]
    parents = forest.parent[of_asked]

    def take(nodes: Longs, rows: torch.Tensor) -> None:
        """Keep what is needed of rows (T, V), the logits after `nodes` (T,), ascending."""
        mine = np.isin(parents, nodes)
        row = torch.from_numpy(np.searchsorted(nodes, parents[mine])).to(rows.device)
        tokens = torch.from_numpy(forest.token[of_asked[mine]]).to(rows.device)
        logits[of_asked[mine]] = fetched(rows[row, tokens])
        if trie is not None and len(nodes):
            children, owner = trie.children_of(forest.catalog[nodes])
            continuing = torch.from_numpy(trie.tokens[children].astype(np.int64)).to(rows.device)
            of = torch.from_numpy(owner).to(rows.device)
            found = segment_logsumexp(rows[of, continuing].double(), of, len(nodes))
            normaliser[nodes] = fetched(found)
        elif not renormalise and len(nodes):
            normaliser[nodes] = fetched(normalisers(rows))

    take(np.arange(users), prompts.logits)
    columns = _columns(forest, asked)
    prompts.restart()
    width = columns.tokens.shape[1]
    slab = _slab(prompts.logits.numel())
    for begin in range(0, width, slab):  # the columns of earlier passes stay in place
        end = min(begin + slab, width)
        inside = (columns.column >= begin) & (columns.column < end) & asked[columns.node]
        nodes = columns.node[inside]
        at = forest.user[nodes] * (end - begin) + columns.column[inside] - begin
        take(
            nodes,
            prompts.read(
                columns.tokens[:, begin:end],
                columns.depth[:, begin:end],
                columns.sees[:, begin:end, :end],
                at,
            ),
        )
    for _ in range(-(-width // slab), passes):
        prompts.read_nothing()
    step = np.zeros(len(asked))
    if renormalise and trie is None:
        step[of_asked] = segment_log_softmax(logits[of_asked], parents)
    else:
        step[of_asked] = logits[of_asked] - normaliser[parents]
    return step


def _columns(forest: _Forest, asked: Bools) -> _Columns:
    """The nodes behind the prompts that are asked, and those on the way to them, as columns."""
    users = len(forest.ends)
    read = asked.copy()
    for node in range(len(read) - 1, users - 1, -1):
        read[forest.parent[node]] |= read[node]
    read[:users] = False  # the prompts are read already
    node = np.flatnonzero(read)
    user = forest.user[node]
    column = np.arange(len(node)) - np.searchsorted(user, user)
    width = int(column.max(initial=-1)) + 1
    tokens, depth = np.zeros((2, users, width), np.int64)
    tokens[user, column], depth[user, column] = forest.token[node], forest.depth[node]
    sees = np.zeros((users, width, width), bool)
    sees[:, range(width), range(width)] = True  # padding sees itself
    column_of = np.full(len(read), -1)
    column_of[node] = column
    for u, mine, above in zip(user, column, column_of[forest.parent[node]], strict=True):
        if above >= 0:
            sees[u, mine] |= sees[u, above]
    return _Columns(node, column, tokens, depth, sees)
