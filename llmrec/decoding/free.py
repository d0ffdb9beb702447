"""Free beam search: what the model writes by itself behind a prompt, any tokens until the end.

A step sends each user's live beams as new columns behind that user's prompt, which is read once.
What lives, what finishes and when a user's search stops is what Hugging Face's beam search does
with `early_stopping=False`. No state outlives a call. Knows neither text nor items.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.model.in_flight import fetched

Longs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Written:
    """One answer: `tokens` (L,) int32 without the end token, and its `score`.

    The score is the sum of its tokens' log-probabilities, the end token's among them, over their
    number to the power of the length penalty.
    """

    tokens: npt.NDArray[np.int32]
    score: float


@dataclass
class _Beams:
    """U users x K beams, each user's best first; a beam that does not live scores -inf."""

    written: npt.NDArray[np.int32]  # (U, K, L) tokens so far
    score: Doubles
    sees: npt.NDArray[np.bool_]  # (U, K, G) generated columns on the beam's path


@dataclass(frozen=True)
class _Candidates:
    """C continuations by one token, by user and best first; `place` counts from 0 in each user."""

    user: Longs
    beam: Longs
    token: Longs
    score: Doubles
    place: Longs


@torch.inference_mode()
def free_beam_search(
    prompts: SharedPrompt, *, beams: int, end: int, max_new_tokens: int, length_penalty: float = 1.0
) -> list[list[Written]]:
    """The `beams` best answers to each of U prompts, best first.

    An answer ends with token `end` or after `max_new_tokens` tokens (that `end` counted). Scores
    are in nats. Raises ValueError for fewer than one beam or token.
    """
    if beams < 1 or max_new_tokens < 1:
        raise ValueError(f"{beams} beams and {max_new_tokens} new tokens; both must be at least 1")
    users = len(prompts)
    prompts.restart()
    state = _Beams(
        written=np.zeros((users, beams, 0), np.int32),
        score=np.full((users, beams), -np.inf),
        sees=np.zeros((users, beams, 0), bool),
    )
    state.score[:, 0] = 0.0
    finished: list[list[Written]] = [[] for _ in range(users)]
    logits = prompts.logits
    for length in range(1, max_new_tokens + 1):
        # At most one in each beam's candidates ends, so twice the beams leave enough to go on.
        found = _candidates(state, logits, keep=2 * beams)
        ends = (found.token == end) | (length == max_new_tokens)
        for c in np.flatnonzero(ends & (found.place < beams)):
            before = state.written[found.user[c], found.beam[c]]
            tokens = np.append(before, found.token[c]) if found.token[c] != end else before
            score = float(found.score[c]) / length**length_penalty
            finished[found.user[c]].append(Written(tokens.astype(np.int32), score))
        finished = [sorted(mine, key=lambda w: -w.score)[:beams] for mine in finished]
        state = _survivors(state, found, ends)
        # The rule that Hugging Face calls a heuristic: no beam is credited with a later length.
        best = state.score[:, 0] / length**length_penalty
        for u, mine in enumerate(finished):
            if len(mine) == beams and mine[-1].score >= best[u]:
                state.score[u] = -np.inf
        live = np.isfinite(state.score)
        if not live.any():
            break
        own = np.broadcast_to(np.eye(beams, dtype=bool), (users, beams, beams))
        state.sees = np.concatenate([state.sees, own], axis=2)
        tokens = np.where(live, state.written[:, :, -1], 0).astype(np.int64)
        logits = prompts.read(tokens, length - 1, state.sees, np.flatnonzero(live))
    return finished


def _candidates(state: _Beams, logits: torch.Tensor, keep: int) -> _Candidates:
    """The `keep` best continuations of each user's beams; `logits` has a row for each live beam."""
    user, beam = np.nonzero(np.isfinite(state.score))
    values, tokens = logits.float().topk(min(keep, logits.shape[-1]), dim=-1)
    log_p = values - torch.logsumexp(logits.float(), dim=-1, keepdim=True)
    score = (state.score[user, beam][:, None] + fetched(log_p)).ravel()
    token = tokens.cpu().numpy().ravel()
    user, beam = (np.repeat(x, tokens.shape[1]) for x in (user, beam))
    order = np.lexsort((token, beam, -score, user))
    place = np.arange(len(order)) - np.searchsorted(user[order], user[order])
    kept = (place < keep) & np.isfinite(score[order])
    order = order[kept]
    return _Candidates(user[order], beam[order], token[order], score[order], place[kept])


def _survivors(state: _Beams, found: _Candidates, ends: npt.NDArray[np.bool_]) -> _Beams:
    """The best candidates that go on, as the next beams."""
    users, beams = state.score.shape
    user, beam, token, score = (
        x[~ends] for x in (found.user, found.beam, found.token, found.score)
    )
    place = np.arange(len(user)) - np.searchsorted(user, user)
    kept = place < beams
    user, beam, token, score, place = (x[kept] for x in (user, beam, token, score, place))
    following = _Beams(
        written=np.zeros((users, beams, state.written.shape[2] + 1), np.int32),
        score=np.full((users, beams), -np.inf),
        sees=np.zeros_like(state.sees),
    )
    following.written[user, place, :-1] = state.written[user, beam]
    following.written[user, place, -1] = token
    following.score[user, place] = score
    following.sees[user, place] = state.sees[user, beam]
    return following
