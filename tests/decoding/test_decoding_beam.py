"""Constrained beam search equals Hugging Face's, reaches every item and gives nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.decoding import beam
from llmrec.decoding.beam import Scoring, beam_search
from llmrec.decoding.likelihood import path_scores
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.recipe import shipped
from llmrec.text.encoding import PromptEncoder
from llmrec.text.templates import PromptTemplate
from llmrec.text.trie import TitleTrie, UnreachablePrefixError

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
]
NOTHING = np.zeros(0, np.int32)


def of_hugging_face(model, prompt, trie, completions, beams, renormalise, end):
    """Items and scores of transformers' own beam search under an allowed-token function."""

    def allowed(_, ids):
        try:
            return trie.allowed(ids[len(prompt) :].tolist()).tolist() or [end]
        except UnreachablePrefixError:  # its filler beams of probability 0
            return [end]

    out = model.generate(
        torch.from_numpy(prompt.astype(np.int64))[None],
        max_new_tokens=max(map(len, completions)),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        length_penalty=0.0,
        pad_token_id=end,
        eos_token_id=end,
        prefix_allowed_tokens_fn=allowed,
        renormalize_logits=renormalise,
        return_dict_in_generate=True,
        output_scores=True,
    )
    item_of = {tuple(ids.tolist()): i for i, ids in enumerate(completions)}
    items = []
    for sequence in out.sequences[:, len(prompt) :].tolist():
        cut = sequence.index(end) + 1 if end in sequence else None
        items.append(item_of.get(tuple(sequence[:cut])))
    return items, out.sequences_scores.numpy()


def assert_equal_to_hugging_face(model, encoder, histories, beams, renormalise):
    prompts = [encoder.prompt(h).ids for h in histories]
    open_items = OpenItems(encoder.trie, [NOTHING] * len(prompts))
    ours = beam_search(
        SharedPrompt(model, prompts),
        open_items,
        beams=beams,
        top_k=beams,
        scoring=Scoring(renormalise),
    )
    end = encoder.tokenizer.eos_token_id
    for prompt, ranking in zip(prompts, ours, strict=True):
        items, scores = of_hugging_face(
            model, prompt, encoder.trie, encoder.completions, beams, renormalise, end
        )
        assert ranking.positions.tolist() == items
        # 1e-4, and for totals of -50 nats what float32 forgets over a long title.
        np.testing.assert_allclose(ranking.scores, scores, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("beams", [2, 4, 8])
def test_equals_hugging_face_in_items_order_and_scores(tiny_model, tokenizer, beams, renormalise):
    encoder = PromptEncoder(MOVIE, tokenizer, TITLES)
    histories = [[3, 9, 1], [0], [5, 6, 7, 8, 14], [19, 2]]
    assert_equal_to_hugging_face(tiny_model, encoder, histories, beams, renormalise)


@pytest.mark.parametrize("renormalise", [False, True])
def test_equals_hugging_face_for_many_random_histories(tiny_model, tokenizer, renormalise):
    """84 users for each family and softmax, 504 in all, in batches of 21."""
    short = [title for title in TITLES if len(title) < 12]
    encoder = PromptEncoder(MOVIE, tokenizer, short)
    rng = np.random.default_rng(5)
    for _ in range(4):
        histories = [rng.integers(0, len(short), rng.integers(1, 5)) for _ in range(21)]
        assert_equal_to_hugging_face(tiny_model, encoder, histories, 4, renormalise)


@pytest.mark.parametrize("room", [20, 10**6])
@pytest.mark.parametrize("scoring", [Scoring(True), Scoring(False), Scoring(True, 0.6)])
def test_tokens_read_ahead_change_passes_and_nothing_else(
    tiny_llama, tokenizer, monkeypatch, scoring, room
):
    encoder = PromptEncoder(MOVIE, tokenizer, TITLES)
    prompts = [encoder.prompt(h).ids for h in ([3, 9, 1], [0], [5, 6, 7, 8, 14])]
    q = np.random.default_rng(0).dirichlet(np.ones(len(TITLES)), len(prompts))
    read = SharedPrompt.read

    def searched(room):
        passes = []
        monkeypatch.setattr(beam, "ROOM", room)
        monkeypatch.setattr(SharedPrompt, "read", lambda *a: passes.append(a[1].size) or read(*a))
        found = beam_search(
            SharedPrompt(tiny_llama, prompts),
            OpenItems(encoder.trie, [NOTHING] * len(prompts), q),
            beams=5,
            top_k=5,
            scoring=scoring,
        )
        return found, passes

    one_by_one, most = searched(0)
    ahead, fewer = searched(room)
    assert len(fewer) < len(most)
    for mine, other in zip(ahead, one_by_one, strict=True):
        assert mine.positions.tolist() == other.positions.tolist()
        np.testing.assert_allclose(mine.scores, other.scores, atol=1e-4)
        assert mine.certified == other.certified


@pytest.mark.real_model
@pytest.mark.parametrize("renormalise", [False, True])
def test_equals_hugging_face_on_smollm2(smollm2, renormalise):
    model, tokenizer = smollm2
    encoder = PromptEncoder(MOVIE, tokenizer, TITLES)
    histories = [[3, 9, 1, 12], [0], [5, 6]]
    assert_equal_to_hugging_face(model, encoder, histories, 5, renormalise)


def all_scores(model, encoder, history, closed, probabilities=None, guidance=1.0):
    """Log-probability of every item, by reading each title behind the prompt."""
    count = len(encoder.titles)
    prompt = encoder.prompt(history).ids
    q = None if probabilities is None else np.repeat(probabilities[None], count, 0)
    paths = path_scores(
        SharedPrompt(model, [prompt] * count),
        encoder.completions,
        range(count),
        OpenItems(encoder.trie, [closed] * count, q),
    )
    return -paths.nll(guidance)


@pytest.mark.parametrize("guidance", [1.0, 0.6, 0.0])
def test_with_beams_for_all_items_the_ranking_is_the_exact_one(tiny_llama, tokenizer, guidance):
    encoder = PromptEncoder(MOVIE, tokenizer, TITLES)
    history = np.array([3, 9, 1], np.int32)
    q = np.random.default_rng(0).dirichlet(np.ones(len(TITLES)))
    q[history] = 0.0
    q /= q.sum()
    exact = all_scores(tiny_llama, encoder, history, history, q, guidance)
    assert np.exp(exact[np.isfinite(exact)]).sum() == pytest.approx(1.0, abs=1e-5)
    assert np.isneginf(exact[history]).all()
    [ranking] = beam_search(
        SharedPrompt(tiny_llama, [encoder.prompt(history).ids]),
        OpenItems(encoder.trie, [history], q[None]),
        beams=40,
        top_k=40,
        scoring=Scoring(True, guidance),
    )
    order = np.argsort(-exact, kind="stable")[: len(TITLES) - 3]
    assert ranking.positions.tolist() == order.tolist()
    np.testing.assert_allclose(ranking.scores, exact[order], atol=1e-4)
    if guidance == 0.0:
        np.testing.assert_allclose(ranking.scores, np.log(q[order]), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("renormalise", [False, True])
def test_the_batch_changes_nothing(tiny_llama, tokenizer, batch, renormalise):
    encoder = PromptEncoder(MOVIE, tokenizer, TITLES)
    histories = [[3, 9, 1], [0], [5, 6, 7, 8, 14], [19, 2], [11, 12, 13]]
    prompts = [encoder.prompt(h).ids for h in histories]

    def ranked(size):
        found = []
        for i in range(0, len(prompts), size):
            part = prompts[i : i + size]
            found += beam_search(
                SharedPrompt(tiny_llama, part),
                OpenItems(encoder.trie, [NOTHING] * len(part)),
                beams=6,
                top_k=6,
                scoring=Scoring(renormalise),
            )
        return found

    for alone, together in zip(ranked(1), ranked(batch), strict=True):
        assert alone.positions.tolist() == together.positions.tolist()
        np.testing.assert_allclose(alone.scores, together.scores, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_catalogs_reach_every_open_item_and_no_other(tiny_llama, data):
    sequence = st.lists(st.integers(3, 9), min_size=1, max_size=4)
    sequences = [[*s, 0] for s in data.draw(st.lists(sequence, min_size=1, max_size=12))]
    closed = np.array(sorted(data.draw(st.sets(st.integers(0, len(sequences) - 1)))), np.int32)
    renormalise = data.draw(st.booleans())
    trie = TitleTrie.from_sequences(sequences)
    [ranking] = beam_search(
        SharedPrompt(tiny_llama, [np.array([20, 21, 22], np.int32)]),
        OpenItems(trie, [closed]),
        beams=64,
        top_k=64,
        scoring=Scoring(renormalise),
    )
    expected = set(range(len(sequences))) - set(closed.tolist())
    assert sorted(ranking.positions.tolist()) == sorted(expected)
    assert (np.diff(ranking.scores) <= 1e-6).all()


def test_more_beams_than_items_and_a_catalog_of_one(tiny_llama, tokenizer):
    encoder = PromptEncoder(MOVIE, tokenizer, ["Love"])
    [ranking] = beam_search(
        SharedPrompt(tiny_llama, [encoder.prompt([0]).ids]),
        OpenItems(encoder.trie, [NOTHING]),
        beams=10,
        top_k=10,
        scoring=Scoring(),
    )
    assert ranking.positions.tolist() == [0]
    assert ranking.scores.tolist() == [0.0]
    [none] = beam_search(
        SharedPrompt(tiny_llama, [encoder.prompt([0]).ids]),
        OpenItems(encoder.trie, [np.array([0])]),
        beams=10,
        top_k=10,
        scoring=Scoring(),
    )
    assert len(none.positions) == 0


def test_more_items_than_beams_is_refused(tiny_llama):
    trie = TitleTrie.from_sequences([[3, 0]])
    with pytest.raises(ValueError, match="top_k = 5"):
        beam_search(
            SharedPrompt(tiny_llama, [np.array([4])]),
            OpenItems(trie, [NOTHING]),
            beams=2,
            top_k=5,
            scoring=Scoring(),
        )


def test_items_with_equal_tokens_share_their_probability(tiny_llama):
    sequences = [np.array(s, np.int32) for s in ([3, 0], [4, 0], [3, 0])]
    trie = TitleTrie.from_sequences(sequences)
    prompt = np.array([20, 21], np.int32)
    paths = path_scores(
        SharedPrompt(tiny_llama, [prompt] * 3), sequences, [0, 1, 2], OpenItems(trie, [NOTHING] * 3)
    )
    nll = paths.nll()
    assert nll[0] == pytest.approx(nll[2])
    assert np.exp(-nll).sum() == pytest.approx(1.0, abs=1e-6)
