"""Best-first search finds the true best items, whatever it expands at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.decoding.beam import Scoring, beam_search
from llmrec.decoding.best_first import best_first
from llmrec.decoding.candidates import candidate_scores
from llmrec.decoding.likelihood import path_scores
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.text.trie import TitleTrie

NOTHING = np.zeros(0, np.int32)
TOKENS = st.lists(st.integers(3, 6), min_size=1, max_size=6)


def exact(model, prompts, sequences, closed, renormalise, q=None, weight=1.0):
    """(U, N) log-probabilities of all items, each title read alone; -inf for the closed."""
    count, rows = len(sequences), []
    ids = [np.array(s, np.int32) for s in sequences]
    trie = TitleTrie.from_sequences(sequences)
    for u, prompt in enumerate(prompts):
        shared = SharedPrompt(model, [prompt] * count)
        if renormalise or weight < 1.0:
            masses = None if q is None else np.repeat(q[u][None], count, 0)
            paths = path_scores(
                shared, ids, range(count), OpenItems(trie, [closed[u]] * count, masses)
            )
            row = np.log(np.maximum(paths.sharing, 1)) - paths.nll(weight)
        else:
            row = candidate_scores(
                SharedPrompt(model, [prompt]), ids, np.arange(count)[None], False
            )[0]
        row[closed[u]] = -np.inf
        rows.append(row)
    return np.array(rows)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_the_list_is_the_exact_one(tiny_llama, data):
    drawn = data.draw(st.lists(TOKENS, min_size=1, max_size=14))
    sequences = [[*s, 0] for s in drawn]
    prompts = [
        np.array(p, np.int32)
        for p in data.draw(
            st.lists(st.lists(st.integers(10, 40), min_size=1, max_size=5), min_size=1, max_size=3)
        )
    ]
    some = st.sets(st.integers(0, len(sequences) - 1))
    closed = [np.array(sorted(data.draw(some)), np.int32) for _ in prompts]
    renormalise, top_k = data.draw(st.booleans()), data.draw(st.integers(1, 16))
    found = best_first(
        SharedPrompt(tiny_llama, prompts),
        OpenItems(TitleTrie.from_sequences(sequences), closed),
        top_k=top_k,
        scoring=Scoring(renormalise),
        expand=data.draw(st.integers(1, 5)),
    )
    truth = exact(tiny_llama, prompts, sequences, closed, renormalise)
    for ranking, row in zip(found.rankings, truth, strict=True):
        size = min(top_k, int(np.isfinite(row).sum()))
        assert len(ranking.positions) == len(set(ranking.positions.tolist())) == size
        np.testing.assert_allclose(ranking.scores, np.sort(row)[::-1][:size], atol=1e-4)
        np.testing.assert_allclose(ranking.scores, row[ranking.positions], atol=1e-4)


@pytest.mark.parametrize("weight", [0.6, 0.0])
def test_guidance_counts(tiny_llama, weight):
    rng = np.random.default_rng(0)
    sequences = [[*rng.integers(3, 6, rng.integers(1, 5)), 0] for _ in range(20)]
    sequences = [list(s) for s in sorted({tuple(int(t) for t in s) for s in sequences})]
    q = rng.dirichlet(np.ones(len(sequences)), 2)
    prompts = [np.array([20, 21], np.int32), np.array([30], np.int32)]
    closed = [NOTHING, NOTHING]
    found = best_first(
        SharedPrompt(tiny_llama, prompts),
        OpenItems(TitleTrie.from_sequences(sequences), closed, q),
        top_k=5,
        scoring=Scoring(True, weight),
    )
    truth = exact(tiny_llama, prompts, sequences, closed, True, q, weight)
    for ranking, row in zip(found.rankings, truth, strict=True):
        assert ranking.positions.tolist() == np.argsort(-row, kind="stable")[:5].tolist()


def test_as_many_as_the_catalog_holds_gives_all_and_their_probabilities_sum_to_one(tiny_llama):
    rng = np.random.default_rng(1)
    sequences = [list(s) for s in {(*rng.integers(3, 9, rng.integers(1, 7)), 0) for _ in range(99)}]
    [ranking] = best_first(
        SharedPrompt(tiny_llama, [np.array([20, 21], np.int32)]),
        OpenItems(TitleTrie.from_sequences(sequences), [NOTHING]),
        top_k=len(sequences),
        scoring=Scoring(True),
        expand=1000,
    ).rankings
    assert sorted(ranking.positions.tolist()) == list(range(len(sequences)))
    assert np.exp(ranking.scores.astype(float)).sum() == pytest.approx(1.0, abs=1e-5)


def test_beams_can_miss_what_it_finds_and_never_find_better(tiny_llama):
    rng = np.random.default_rng(2)
    sequences = [list(s) for s in {(*rng.integers(3, 30, 4), 0) for _ in range(400)}]
    open_items = OpenItems(TitleTrie.from_sequences(sequences), [NOTHING] * 20)
    shared = SharedPrompt(tiny_llama, [rng.integers(3, 60, 6).astype(np.int32) for _ in range(20)])
    beams = beam_search(shared, open_items, beams=3, top_k=3, scoring=Scoring(False))
    found = best_first(shared, open_items, top_k=3, scoring=Scoring(False))
    worse = 0
    for beam, best in zip(beams, found.rankings, strict=True):
        assert (best.scores >= beam.scores - 1e-4).all()
        worse += best.positions.tolist() != beam.positions.tolist()
    assert worse > 0
    assert found.passes > 0
    assert (found.columns >= 3).all()


def test_it_reads_less_than_the_catalog(tiny_llama):
    rng = np.random.default_rng(3)
    sequences = [list(s) for s in {(*rng.integers(3, 60, 3), 0) for _ in range(2000)}]
    trie = TitleTrie.from_sequences(sequences)
    shared = SharedPrompt(tiny_llama, [np.array([5, 6, 7], np.int32)])
    found = best_first(shared, OpenItems(trie, [NOTHING]), top_k=1, scoring=Scoring(True), expand=1)
    assert found.columns.sum() < len(trie.tokens) / 4


@pytest.mark.parametrize("renormalise", [True, False])
def test_bounded_it_reads_little_more_and_what_it_certifies_is_true(tiny_llama, renormalise):
    rng = np.random.default_rng(4)
    sequences = [[*s, 0] for s in sorted({tuple(rng.integers(3, 9, 5)) for _ in range(900)})]
    prompts = [rng.integers(3, 60, 5).astype(np.int32) for _ in range(12)]
    closed, top_k, expand = [NOTHING] * len(prompts), 4, 2
    asked = OpenItems(TitleTrie.from_sequences(sequences), closed)
    shared, scoring = SharedPrompt(tiny_llama, prompts), Scoring(renormalise)
    whole = best_first(shared, asked, top_k=top_k, scoring=scoring, expand=expand)
    truth, certified = exact(tiny_llama, prompts, sequences, closed, renormalise), []
    for most in (0, 15, 40, int(whole.columns.max())):
        found = best_first(shared, asked, top_k=top_k, scoring=scoring, expand=expand, most=most)
        # The pass in which it is reached, then at most four places for each token of a title.
        assert (found.columns < most + 6 * expand + 6 * top_k).all()
        for ranking, row in zip(found.rankings, truth, strict=True):
            assert len(set(ranking.positions.tolist())) == top_k
            np.testing.assert_allclose(ranking.scores, row[ranking.positions], atol=1e-4)
            if ranking.certified:
                np.testing.assert_allclose(ranking.scores, np.sort(row)[::-1][:top_k], atol=1e-4)
        certified.append(sum(ranking.certified for ranking in found.rankings))
    assert certified[0] < certified[-1] == len(prompts)
    assert all(ranking.certified for ranking in whole.rankings)


@pytest.mark.parametrize(("top_k", "expand"), [(0, 1), (1, 0)])
def test_nothing_to_find_or_expand_is_refused(tiny_llama, top_k, expand):
    shared = SharedPrompt(tiny_llama, [np.array([5], np.int32)])
    open_items = OpenItems(TitleTrie.from_sequences([[3, 0]]), [NOTHING])
    with pytest.raises(ValueError, match="at least 1"):
        best_first(shared, open_items, top_k=top_k, scoring=Scoring(True), expand=expand)
