"""Candidates read as branches score as when each is read alone, whatever the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.candidates import candidate_nll
from llmrec.decoding import candidates as module
from llmrec.decoding import shared_prompt
from llmrec.decoding.candidates import candidate_ranking, candidate_scores
from llmrec.decoding.likelihood import path_scores
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.recipe import shipped
from llmrec.text.encoding import PromptEncoder
from llmrec.text.templates import PromptTemplate
from llmrec.text.trie import TitleTrie

MOVIE = PromptTemplate(shipped.prompt_text("next_item/movie"), "next_item/movie")
TITLES = [
    "The Man",
    "The Man II",
    "The Man III",
    "Dark City",
    "Dark Star",
    "A Star",
    "Last Summer",
    "Last Dance",
    "Love",
    "River: the End",
    "Night of the Dead",
    "Day of the Dead",
    "Blue",
    "Red",
    "The World",
    "The Big House",
    "Little House",
    "Return of the King",
    "The King",
    "Black, White",
    "The Man",
    "Love, Love, Love, Love, Love, Love",
]
HISTORIES = [[3, 9, 1], [0], [5, 6, 7, 8, 14], [19, 2], [11, 12], [4], [16, 17, 18], [8, 10]]


def drawn(users, count, seed=0):
    """(users, count) distinct positions, other ones for every user."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(len(TITLES))[:count] for _ in range(users)])


def alone(model, prompt, completion):
    """(L, V) log-probabilities before each token of a completion, read alone with its prompt."""
    ids = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))[None]
    with torch.inference_mode():
        return model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1).numpy()


def expected(read_alone, sequences, renormalise):
    """Scores of one user's candidates from what was read alone, in plain loops."""
    scores = []
    for log_p, mine in zip(read_alone, sequences, strict=True):
        total = 0.0
        for place, token in enumerate(mine):
            total += log_p[place, token]
            if renormalise:
                begun = list(mine[:place])
                open_tokens = {s[place] for s in sequences if list(s[:place]) == begun}
                total -= np.log(sum(np.exp(log_p[place, t]) for t in open_tokens))
        if renormalise:
            total -= np.log(sum(list(s) == list(mine) for s in sequences))
        scores.append(total)
    return np.array(scores)


def assert_equal_to_separate_passes(model, prompts, completions, candidates, rtol=1e-5, atol=1e-5):
    shared = SharedPrompt(model, prompts)
    sequences = [[completions[c].tolist() for c in row] for row in candidates]
    read_alone = [
        [alone(model, prompt, s) for s in mine]
        for prompt, mine in zip(prompts, sequences, strict=True)
    ]
    for renormalise in (False, True, False):  # one reading leaves nothing behind for the next
        found = candidate_scores(shared, completions, candidates, renormalise)
        assert found.dtype == np.float64
        for u, mine in enumerate(sequences):
            np.testing.assert_allclose(
                found[u], expected(read_alone[u], mine, renormalise), rtol=rtol, atol=atol
            )
            if renormalise:
                assert np.exp(found[u]).sum() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("count", [1, 5, 20])
def test_equals_a_forward_pass_for_each_candidate(tiny_model, tokenizer, count):
    encoder = PromptEncoder(MOVIE, tokenizer, TITLES)
    prompts = [encoder.prompt(h).ids for h in HISTORIES[:4]]
    assert_equal_to_separate_passes(tiny_model, prompts, encoder.completions, drawn(4, count))


@pytest.mark.real_model
def test_equals_a_forward_pass_for_each_candidate_on_smollm2(smollm2):
    model, tokenizer = smollm2
    encoder = PromptEncoder(MOVIE, tokenizer, TITLES)
    prompts = [encoder.prompt(h).ids for h in HISTORIES[:2]]
    assert_equal_to_separate_passes(
        model, prompts, encoder.completions, drawn(2, 20), rtol=1e-5, atol=1e-4
    )


def test_renormalised_equals_the_constrained_decoder_with_all_else_closed(tiny_model, tokenizer):
    encoder = PromptEncoder(MOVIE, tokenizer, TITLES)
    prompts = [encoder.prompt(h).ids for h in HISTORIES]
    candidates = drawn(len(prompts), 9)
    scores = candidate_scores(
        SharedPrompt(tiny_model, prompts), encoder.completions, candidates, renormalise=True
    )
    closed = [np.setdiff1d(np.arange(len(TITLES)), mine) for mine in candidates]
    for c in range(candidates.shape[1]):
        paths = path_scores(
            SharedPrompt(tiny_model, prompts),
            encoder.completions,
            candidates[:, c].tolist(),
            OpenItems(encoder.trie, closed),
        )
        np.testing.assert_allclose(-scores[:, c], paths.nll(), rtol=1e-5, atol=1e-5)
    # They sum to 1, so a softmax over them changes nothing.
    targets = candidates[:, 4]
    np.testing.assert_allclose(candidate_nll(scores, candidates, targets), -scores[:, 4])


@pytest.mark.parametrize("batch", [1, 8])
def test_among_the_tokens_of_the_catalog_a_score_is_that_of_the_title_alone(
    tiny_model, tokenizer, batch
):
    """In plain loops over what was read alone; the other candidates change nothing."""
    encoder = PromptEncoder(MOVIE, tokenizer, TITLES)
    prompts = [encoder.prompt(h).ids for h in HISTORIES]
    candidates = drawn(len(prompts), 6)
    found = np.concatenate(
        [
            candidate_scores(
                SharedPrompt(tiny_model, prompts[i : i + batch]),
                encoder.completions,
                candidates[i : i + batch],
                True,
                trie=encoder.trie,
            )
            for i in range(0, len(prompts), batch)
        ]
    )
    for prompt, mine, scores in zip(prompts, candidates, found, strict=True):
        for position, score in zip(mine, scores, strict=True):
            ids = encoder.completions[position]
            log_p, total = alone(tiny_model, prompt, ids), 0.0
            for place, token in enumerate(ids):
                allowed = encoder.trie.allowed(ids[:place])
                total += log_p[place, token] - np.log(np.exp(log_p[place, allowed]).sum())
            assert score == pytest.approx(total, abs=1e-4)
    assert (np.exp(found).sum(axis=1) < 1).all()


@pytest.mark.parametrize("batch", [2, 3, 8])
@pytest.mark.parametrize("renormalise", [False, True])
def test_the_batch_changes_nothing(tiny_llama, tokenizer, batch, renormalise):
    encoder = PromptEncoder(MOVIE, tokenizer, TITLES)
    prompts = [encoder.prompt(h).ids for h in HISTORIES]
    candidates = drawn(len(prompts), 12)

    def scored(size):
        return np.concatenate(
            [
                candidate_scores(
                    SharedPrompt(tiny_llama, prompts[i : i + size]),
                    encoder.completions,
                    candidates[i : i + size],
                    renormalise,
                )
                for i in range(0, len(prompts), size)
            ]
        )

    np.testing.assert_allclose(scored(batch), scored(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("columns", [1, 3, 7])
def test_columns_read_in_parts_score_the_same(
    tiny_llama, tokenizer, monkeypatch, columns, renormalise
):
    encoder = PromptEncoder(MOVIE, tokenizer, TITLES)
    prompts = [encoder.prompt(h).ids for h in HISTORIES[:3]]
    shared, candidates = SharedPrompt(tiny_llama, prompts), drawn(3, 20)
    whole = candidate_scores(shared, encoder.completions, candidates, renormalise)
    widths = []
    read = shared.read

    def counted(tokens, *rest):
        widths.append(tokens.shape[1])
        return read(tokens, *rest)

    monkeypatch.setattr(shared, "read", counted)
    monkeypatch.setattr(module, "HELD", columns * shared.logits.numel())
    monkeypatch.setattr(shared_prompt, "ROWS", 2)
    parts = candidate_scores(shared, encoder.completions, candidates, renormalise)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)
    assert max(widths) == columns
    assert len(widths) > 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_catalogs_with_shared_beginnings_and_equal_titles(tiny_llama, data):
    sequence = st.lists(st.integers(3, 6), min_size=1, max_size=4)
    sequences = data.draw(st.lists(sequence, min_size=1, max_size=10))
    completions = [np.array([*s, 0], np.int32) for s in sequences]
    users, count = data.draw(st.integers(1, 3)), data.draw(st.integers(1, len(sequences)))
    order = st.permutations(range(len(sequences)))
    candidates = np.array([data.draw(order)[:count] for _ in range(users)])
    prompts = [np.array([20, 21, 22, 30 + u][u:], np.int32) for u in range(users)]
    assert_equal_to_separate_passes(tiny_llama, prompts, completions, candidates, atol=1e-4)


def test_shared_beginnings_are_read_once_and_forced_ends_not_at_all(tiny_llama, monkeypatch):
    completions = [np.array(s, np.int32) for s in ([3, 4, 5, 0], [3, 4, 6, 0], [7, 8, 9, 0])]
    shared = SharedPrompt(tiny_llama, [np.array([20, 21], np.int32)])
    seen = []
    read = shared.read

    def noted(tokens, *rest):
        seen.append(sorted(tokens.ravel().tolist()))
        return read(tokens, *rest)

    monkeypatch.setattr(shared, "read", noted)
    candidate_scores(shared, completions, np.array([[0, 1, 2]]), renormalise=False)
    candidate_scores(shared, completions, np.array([[0, 1, 2]]), renormalise=True)
    candidate_scores(shared, completions, np.array([[0, 2]]), renormalise=True)
    assert seen == [[3, 4, 5, 6, 7, 8, 9], [3, 4]]  # the last reads nothing behind the prompt


def test_equal_titles_share_one_probability_only_when_renormalised(tiny_llama):
    completions = [np.array(s, np.int32) for s in ([3, 0], [4, 0], [3, 0])]
    shared = SharedPrompt(tiny_llama, [np.array([20, 21], np.int32)])
    rows = np.array([[0, 1, 2]])
    [plain] = candidate_scores(shared, completions, rows, renormalise=False)
    [divided] = candidate_scores(shared, completions, rows, renormalise=True)
    assert plain[0] == plain[2]
    assert divided[0] == divided[2]
    [single] = candidate_scores(shared, completions, rows[:, :2], renormalise=True)
    assert divided[0] == pytest.approx(single[0] - np.log(2))
    trie = TitleTrie.from_sequences(completions)
    [nll] = path_scores(shared, completions, [2], OpenItems(trie, [np.zeros(0, int)])).nll()
    assert divided[2] == pytest.approx(-nll, abs=1e-6)


def test_the_ranking_is_best_first_and_ties_go_to_the_lower_position():
    ranking = candidate_ranking(np.array([7, 3, 9, 5, 2]), np.array([-2.0, -1.0, -2.0, -9.0, -2.0]))
    assert ranking.positions.tolist() == [3, 2, 7, 9, 5]
    assert ranking.scores.tolist() == [-1.0, -2.0, -2.0, -2.0, -9.0]
    assert ranking.positions.dtype == np.int32
    assert ranking.scores.dtype == np.float32


def test_other_users_than_prompts_are_refused(tiny_llama):
    shared = SharedPrompt(tiny_llama, [np.array([20, 21], np.int32)])
    with pytest.raises(ValueError, match="2 users and 1 prompts"):
        candidate_scores(shared, [np.array([3, 0])], np.array([[0], [0]]), renormalise=False)
