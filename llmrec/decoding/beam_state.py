"""The book-keeping of a beam search: beams, what continues them, what is kept and what is given up.

Array code over all users at once. What has been read is a table of places, and a beam on a run of
forced tokens may have places ahead of it. Knows the trie's nodes by number and no model.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmrec.decoding.open_items import OpenItems

Longs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
NOWHERE = -1  # as a place: not read; as a node: none


@dataclass
class Beams:
    """U users x K beams. `place` is where the model has read a beam's node, and `tail` the last
    place read on the run that it is on; a beam of score minus infinity is none."""

    node: Longs
    score: Doubles
    place: Longs
    tail: Longs
    sees: Bools  # (U, K, G) columns on the beam's path, up to its tail

    @staticmethod
    def at_prompts(users: int, beams: int, root: int) -> "Beams":
        """One live beam for each user, at places 0 to U - 1."""
        score = np.full((users, beams), -np.inf)
        score[:, 0] = 0.0
        place = np.tile(np.arange(users)[:, None], (1, beams))
        return Beams(
            np.full((users, beams), root, np.int64),
            score,
            place,
            place.copy(),
            np.zeros((users, beams, 0), bool),
        )


@dataclass
class Places:
    """R trie nodes that the model has read. `node` (R,), `depth` (R,) as `SharedPrompt.read` has
    it, `ahead` (R,) the place read on from this one, which is then its only continuation.

    The open continuations of place r are `child` and `step`, their log-probabilities, from
    `first[r]` to `first[r] + size[r]` - 1.
    """

    node: Longs
    depth: Longs
    ahead: Longs
    first: Longs
    size: Longs
    child: Longs
    step: Doubles

    @staticmethod
    def of(node: Longs, depth: Longs, owner: Longs, child: Longs, step: Doubles) -> "Places":
        """Places from their continuations (C,), `owner` (C,) ascending."""
        size = np.bincount(owner, minlength=len(node)).astype(np.int64)
        return Places(
            node, depth, np.full(len(node), NOWHERE), np.cumsum(size) - size, size, child, step
        )

    def add(self, more: "Places") -> None:
        """Number further places after these."""
        self.first = np.concatenate([self.first, len(self.child) + more.first])
        self.node = np.concatenate([self.node, more.node])
        self.depth = np.concatenate([self.depth, more.depth])
        self.ahead = np.concatenate([self.ahead, more.ahead])
        self.size = np.concatenate([self.size, more.size])
        self.child = np.concatenate([self.child, more.child])
        self.step = np.concatenate([self.step, more.step])

    def continuations(self, places: Longs) -> tuple[Longs, Longs, Doubles]:
        """Those of B places end to end: (C,) index in B, (C,) child nodes, (C,) steps."""
        size = self.size[places]
        owner = np.repeat(np.arange(len(places)), size)
        inside = np.arange(len(owner)) - np.repeat(np.cumsum(size) - size, size)
        at = self.first[places][owner] + inside
        return owner, self.child[at], self.step[at]


@dataclass(frozen=True)
class Candidates:
    """C continuations of live beams, users ascending: user, beam, node, score, each (C,)."""

    user: Longs
    beam: Longs
    node: Longs
    score: Doubles

    def take(self, at: Longs | Bools) -> "Candidates":
        """Some of them."""
        return Candidates(self.user[at], self.beam[at], self.node[at], self.score[at])


def best(found: Candidates, keep: int, given_up: Doubles) -> tuple[Candidates, Longs]:
    """The `keep` best candidates of each user, best first, ties by node; and their ranks.

    `given_up` (U,) rises to the best score of what was cut.
    """
    at = _contenders(found, keep)
    order = at[np.lexsort((found.node[at], -found.score[at], found.user[at]))]
    user = found.user[order]
    rank = np.arange(len(order)) - np.searchsorted(user, user)
    cut = order[rank == keep]
    np.maximum.at(given_up, found.user[cut], found.score[cut])
    return found.take(order[rank < keep]), rank[rank < keep]


def _contenders(found: Candidates, keep: int) -> Longs:
    """Candidates that can be among the `keep` + 1 best of a user: sorting 20,000 to keep 20 is slow
    beside a step of a small model."""
    kept = np.ones(len(found.user), bool)
    sizes = np.bincount(found.user)
    ends = np.cumsum(sizes)
    for user in np.flatnonzero(sizes > 8 * keep):
        mine = slice(ends[user] - sizes[user], ends[user])
        bound = np.partition(found.score[mine], -keep - 1)[-keep - 1]
        kept[mine] = ~(found.score[mine] < bound)
    return np.flatnonzero(kept)


def finish(
    score: Doubles,
    node: Longs,
    found: Candidates,
    ends: Bools,
    given_up: Doubles,
    rank: Longs,
    beams: int,
) -> None:
    """Merge candidates that end into each user's finished beams, `score` and `node` (U, K).

    Only those among the user's `beams` best count, as in Hugging Face's search; the others are
    given up. A finished beam that a better one pushes out is worse than all that stay.
    """
    late = ends & (rank >= beams)
    np.maximum.at(given_up, found.user[late], found.score[late])
    ends = ends & ~late
    for user in np.unique(found.user[ends]):
        mine = ends & (found.user == user)
        scores = np.concatenate([score[user], found.score[mine]])
        nodes = np.concatenate([node[user], found.node[mine]])
        order = np.argsort(-scores, kind="stable")[: score.shape[1]]
        score[user], node[user] = scores[order], nodes[order]


def survivors(state: Beams, places: Places, going: Candidates, given_up: Doubles) -> Beams:
    """The best of the candidates that go on, as the next beams; the others are given up."""
    users, beams = state.node.shape
    rank = np.arange(len(going.user)) - np.searchsorted(going.user, going.user)
    cut = going.take(rank >= beams)
    np.maximum.at(given_up, cut.user, cut.score)
    going, rank = going.take(rank < beams), rank[rank < beams]
    at = (going.user, going.beam)
    place = state.place[at]
    place = np.where(place >= 0, places.ahead[place], NOWHERE)
    shape = (users, beams)
    following = Beams(
        np.zeros(shape, np.int64),
        np.full(shape, -np.inf),
        np.full(shape, NOWHERE),
        np.full(shape, NOWHERE),
        np.zeros_like(state.sees),
    )
    to = (going.user, rank)
    following.node[to], following.score[to], following.place[to] = going.node, going.score, place
    following.tail[to] = np.where(place >= 0, state.tail[at], NOWHERE)
    following.sees[to] = state.sees[at]
    return following


@dataclass(frozen=True)
class Reading:
    """T tokens to read in one pass, row by row of U users: `run` (T,) is the row of `on` whose run
    a token is on, `level` (T,) how far along, `column` (T,) its column, `node`, `depth` (T,).

    `on` (2, R): user and beam of each run; `tails` (R,): the place each goes on from, or NOWHERE.
    """

    on: Longs
    tails: Longs
    run: Longs
    level: Longs
    column: Longs
    node: Longs
    depth: Longs

    @property
    def user(self) -> Longs:
        """(T,) whose row each token stands in; ascending."""
        return self.on[0][self.run]


def plan(
    state: Beams,
    places: Places,
    open_items: OpenItems,
    users: Longs,
    wanted: Bools,
    depth: int,
    room: int,
) -> Reading | None:
    """What to read next; None if the model has read all that is asked for.

    `wanted` (U, K): beams whose node must be read, at `depth`. A row is as wide as the most that a
    user needs, or as makes `room` columns in all; what is left of it is filled with the tokens that
    the user's beams are forced to take next, so that later steps find them read.
    """
    must = wanted & (state.place < 0)
    if not must.any():
        return None
    width = max(int(must.sum(axis=1).max()), room // len(must))
    user, beam = np.nonzero(wanted)
    new, tails = must[user, beam], np.where(must, NOWHERE, state.tail)[user, beam]
    start = np.where(new, state.node[user, beam], NOWHERE)
    start[~new] = only_child(open_items, users[user[~new]], places.node[tails[~new]])
    begins = np.where(new, depth, places.depth[tails] + 1)
    runs = [start]
    while len(runs) < width and (runs[-1] >= 0).any():
        going = np.flatnonzero(runs[-1] >= 0)
        following = np.full(len(start), NOWHERE)
        following[going] = only_child(open_items, users[user[going]], runs[-1][going])
        runs.append(following)
    nodes = np.stack(runs, axis=1)
    run, level = np.nonzero(nodes >= 0)
    order = np.lexsort((beam[run], level, ~(new[run] & (level == 0)), user[run]))
    run, level = run[order], level[order]
    column = np.arange(len(run)) - np.searchsorted(user[run], user[run])
    run, level, column = (x[column < width] for x in (run, level, column))
    return Reading(
        np.stack([user, beam]), tails, run, level, column, nodes[run, level], begins[run] + level
    )


def only_child(open_items: OpenItems, users: Longs, nodes: Longs) -> Longs:
    """(C,) the one open child of each of C nodes; NOWHERE if there are several or an item ends."""
    child, owner = open_items.children(users, nodes)
    alone = np.bincount(owner, minlength=len(nodes))[owner] == 1
    on = alone & (open_items.trie.child_count(child) > 0)
    only = np.full(len(nodes), NOWHERE)
    only[owner[on]] = child[on]
    return only


def seen(state: Beams, reading: Reading) -> Bools:
    """(U, W, G + W) which columns each token to be read looks at: its path and itself.

    The beams' own `sees` grow by the new columns of their runs.
    """
    before = state.sees.shape[2]
    width = int(reading.column.max()) + 1
    sees = np.zeros((len(state.node), width, before + width), bool)
    sees[:, range(width), range(before, before + width)] = True  # padding sees itself
    grown = np.zeros((*state.node.shape, before + width), bool)
    grown[..., :before] = state.sees
    for level in range(int(reading.level.max()) + 1):
        now = reading.level == level
        user, beam = reading.on[:, reading.run[now]]
        grown[user, beam, before + reading.column[now]] = True
        sees[user, reading.column[now]] = grown[user, beam]
    state.sees = grown
    return sees


def settle(state: Beams, places: Places, reading: Reading, more: Places) -> None:
    """Enter the places that were read, `more` in the order of `reading`, and link the runs."""
    number = len(places.node) + np.arange(len(reading.run))
    places.add(more)
    order = np.lexsort((reading.level, reading.run))
    number, run, level = number[order], reading.run[order], reading.level[order]
    before = np.where(level > 0, np.append(NOWHERE, number[:-1]), reading.tails[run])
    known = before >= 0
    places.ahead[before[known]] = number[known]
    user, beam = reading.on[:, run]
    begins = ~known
    state.place[user[begins], beam[begins]] = number[begins]
    state.tail[user, beam] = number  # the last of a run stands
