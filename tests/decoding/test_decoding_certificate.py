"""A certified list is the true best of all open items; lists of both kinds occur."""

import numpy as np
import pytest
import torch

from llmrec.decoding import beam
from llmrec.decoding.beam import Scoring, beam_search, certified_search
from llmrec.decoding.beam_state import Candidates, best
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.text.trie import TitleTrie

SCORINGS = [Scoring(True), Scoring(False), Scoring(True, 0.6), Scoring(True, 0.0)]


def drawn(seed, items=12):
    """Sequences closed by 0, three users' prompts, closed positions and a baseline's rows."""
    rng = np.random.default_rng(seed)
    sequences = [[*rng.integers(3, 7, rng.integers(1, 6)).tolist(), 0] for _ in range(items)]
    prompts = [rng.integers(20, 200, rng.integers(2, 6)).astype(np.int32) for _ in range(3)]
    closed = [rng.permutation(items)[: rng.integers(0, 4)].astype(np.int32) for _ in prompts]
    q = rng.dirichlet(np.ones(items), len(prompts))
    for row, shut in zip(q, closed, strict=True):
        row[shut] = 0.0
    return sequences, prompts, closed, q / q.sum(axis=1, keepdims=True)


def exact_scores(model, prompt, sequences, closed, q, scoring):
    """Score of each open item, token by token: the model reads each path by itself."""
    still = [i for i in range(len(sequences)) if i not in closed]
    after, scores = {}, {}
    for item in still:
        total = 0.0
        for place, token in enumerate(sequences[item]):
            path = tuple(sequences[item][:place])
            if path not in after:
                with torch.inference_mode():
                    tokens = torch.tensor([[*map(int, prompt), *path]])
                    after[path] = model(tokens).logits[0, -1].double().numpy()
            if scoring.over_children:
                below = {}  # mass of the baseline by next token
                for i in still:
                    if tuple(sequences[i][:place]) == path:
                        next_token = sequences[i][place]
                        below[next_token] = below.get(next_token, 0.0) + q[i]
                weight = {
                    t: np.exp(scoring.guidance * after[path][t])
                    * max(mass, 1e-15) ** (1.0 - scoring.guidance)
                    for t, mass in below.items()
                }
                total += np.log(weight[token] / sum(weight.values()))
            else:
                total += after[path][token] - np.log(np.exp(after[path]).sum())
        scores[item] = total
    return scores


def assert_is_the_best(ranking, exact, top_k):
    expected = sorted(exact.values(), reverse=True)[:top_k]
    np.testing.assert_allclose(ranking.scores, expected, atol=2e-4)
    mine = [exact[int(position)] for position in ranking.positions]
    np.testing.assert_allclose(mine, expected, atol=2e-4)  # equal scores may stand either way
    assert len(set(ranking.positions.tolist())) == len(expected)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_certified_lists_are_the_exact_best(tiny_llama, scoring):
    outcomes = []
    for seed in range(6):
        sequences, prompts, closed, q = drawn(seed)
        trie = TitleTrie.from_sequences(sequences)
        shared, asked = SharedPrompt(tiny_llama, prompts), OpenItems(trie, closed, q)
        exact = [
            exact_scores(tiny_llama, *row, scoring)
            for row in zip(prompts, [sequences] * 3, closed, q, strict=True)
        ]
        for beams, top_k in ((1, 1), (2, 2), (3, 2), (6, 4)):
            found = beam_search(shared, asked, beams=beams, top_k=top_k, scoring=scoring)
            for ranking, scores in zip(found, exact, strict=True):
                outcomes.append(ranking.certified)
                if ranking.certified:
                    assert_is_the_best(ranking, scores, top_k)
    assert 0 < sum(outcomes) < len(outcomes)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_wider_and_wider_beams_certify_every_list(tiny_llama, scoring):
    narrow = 0
    for seed in range(4):
        sequences, prompts, closed, q = drawn(seed)
        asked = OpenItems(TitleTrie.from_sequences(sequences), closed, q)
        shared = SharedPrompt(tiny_llama, prompts)
        found = certified_search(shared, asked, beams=3, top_k=3, scoring=scoring, widest=64)
        first = beam_search(shared, asked, beams=3, top_k=3, scoring=scoring)
        for user, ranking in enumerate(found):
            assert ranking.certified
            exact = exact_scores(
                tiny_llama, prompts[user], sequences, closed[user], q[user], scoring
            )
            assert_is_the_best(ranking, exact, 3)
        narrow += sum(not ranking.certified for ranking in first)
    assert narrow > 0


def test_no_search_is_wider_than_the_widest(tiny_llama, monkeypatch):
    sequences, prompts, closed, _ = drawn(1)
    widths = []
    search = beam._search
    monkeypatch.setattr(beam, "_search", lambda *a: widths.append((len(a[2]), a[3])) or search(*a))
    nothing = beam.Ranking(np.zeros(0), np.zeros(0))
    monkeypatch.setattr(beam, "_rankings", lambda _, users, *__: [nothing] * len(users))
    certified_search(
        SharedPrompt(tiny_llama, prompts),
        OpenItems(TitleTrie.from_sequences(sequences), closed),
        beams=2,
        top_k=2,
        scoring=Scoring(),
        widest=7,
    )
    assert widths == [(3, 2), (3, 4), (3, 7)]


def test_a_user_whose_open_items_were_all_reached_is_certified(tiny_llama):
    trie = TitleTrie.from_sequences([[3, 0], [4, 0], [5, 0]])
    [few, none] = beam_search(
        SharedPrompt(tiny_llama, [np.array([20, 21], np.int32)] * 2),
        OpenItems(trie, [np.array([1]), np.array([0, 1, 2])]),
        beams=5,
        top_k=5,
        scoring=Scoring(),
    )
    assert few.certified
    assert sorted(few.positions.tolist()) == [0, 2]
    assert none.certified
    assert none.positions.tolist() == []


@pytest.mark.parametrize("seed", range(30))
def test_the_best_of_a_wide_node_are_those_of_a_full_sort(seed):
    rng = np.random.default_rng(seed)
    keep = int(rng.integers(1, 12))
    sizes = rng.integers(0, 400, 4)
    user = np.repeat(np.arange(4), sizes)
    score = rng.integers(-30, 0, len(user)) / 7.0  # many ties
    score[rng.random(len(user)) < 0.1] = -np.inf
    node = rng.permutation(len(user))
    found = Candidates(user, rng.integers(0, 9, len(user)), node, score)
    given_up = np.full(4, -np.inf)
    kept, rank = best(found, keep, given_up)
    got = list(zip(kept.user, kept.node, kept.score, kept.beam, rank, strict=True))
    expected = []
    for u in range(4):
        mine = sorted((-score[i], node[i], i) for i in range(len(user)) if user[i] == u)
        for place, (_, _, i) in enumerate(mine[:keep]):
            expected.append((u, node[i], score[i], found.beam[i], place))
        assert given_up[u] == (-mine[keep][0] if len(mine) > keep else -np.inf)
    assert got == expected
