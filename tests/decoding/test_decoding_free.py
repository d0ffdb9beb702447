"""Free beam search writes what Hugging Face's beam search writes, in the same order."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from llmrec.decoding.free import free_beam_search
from llmrec.decoding.shared_prompt import SharedPrompt

END = 0
PROMPTS = [
    np.array(ids, np.int32)
    for ids in (
        [31, 40, 52, 60, 77, 81, 90],
        [45],
        [33, 34, 35],
        [100, 101, 102, 103, 104],
        [60, 61],
    )
]


def of_hugging_face(model, prompt, beams, end, limit, penalty):
    """Answers without the end token, and their scores, by transformers' own search."""
    out = model.generate(
        torch.from_numpy(prompt.astype(np.int64))[None],
        do_sample=False,
        num_beams=beams,
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_return_sequences=beams,
        max_new_tokens=limit,
        eos_token_id=end,
        pad_token_id=end,
        length_penalty=penalty,
        early_stopping=False,
        return_dict_in_generate=True,
        output_scores=True,
        use_cache=True,
    )
    answers = []
    for sequence in out.sequences[:, len(prompt) :].tolist():
        answers.append(sequence[: sequence.index(end)] if end in sequence else sequence)
    return answers, out.sequences_scores.numpy()


@contextmanager
def often_ending(model, below):
    """While open, the end token's logit lies `below` the highest at every position."""

    def lift(_, __, logits):
        logits = logits.clone()
        logits[..., END] = logits.max(-1).values - below
        return logits

    handle = model.get_output_embeddings().register_forward_hook(lift)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture
def ending_llama(tiny_llama):
    """A model that may end anywhere and does not want to too much."""
    with often_ending(tiny_llama, 0.5):
        yield tiny_llama


def assert_equal_to_hugging_face(model, prompts, beams, end, limit, penalty):
    ours = free_beam_search(
        SharedPrompt(model, prompts),
        beams=beams,
        end=end,
        max_new_tokens=limit,
        length_penalty=penalty,
    )
    for prompt, mine in zip(prompts, ours, strict=True):
        answers, scores = of_hugging_face(model, prompt, beams, end, limit, penalty)
        assert [w.tokens.tolist() for w in mine] == answers
        np.testing.assert_allclose([w.score for w in mine], scores, rtol=1e-5, atol=1e-4)
    return ours


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("limit", [1, 2, 12])
@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("below", [0.1, 0.5, 1.5])
def test_equals_hugging_face_in_answers_order_and_scores(tiny_model, below, beams, limit, penalty):
    with often_ending(tiny_model, below):
        assert_equal_to_hugging_face(tiny_model, PROMPTS, beams, END, limit, penalty)


def test_the_models_of_these_tests_end_some_answers_and_are_cut_in_others(ending_llama):
    ours = assert_equal_to_hugging_face(ending_llama, PROMPTS, 4, END, 7, 1.0)
    lengths = {len(w.tokens) for mine in ours for w in mine}
    assert 7 in lengths
    assert len(lengths) >= 3


@pytest.mark.real_model
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_equals_hugging_face_on_smollm2(smollm2, penalty):
    model, tokenizer = smollm2
    texts = ["Complete with one film title: The Lord of the", "Q: 2 + 2 = ?\nA:", "Yes or no? "]
    prompts = [np.array(tokenizer(text)["input_ids"], np.int32) for text in texts]
    [newline] = tokenizer("\n")["input_ids"]
    ours = assert_equal_to_hugging_face(model, prompts, 4, newline, 12, penalty)
    assert any(len(w.tokens) < 11 for mine in ours for w in mine)


def test_one_beam_without_length_penalty_is_greedy(ending_llama):
    ours = free_beam_search(
        SharedPrompt(ending_llama, PROMPTS), beams=1, end=END, max_new_tokens=9, length_penalty=0.0
    )
    for prompt, [written] in zip(PROMPTS, ours, strict=True):
        ids = prompt.tolist()
        while ids[-1] != END and len(ids) < len(prompt) + 9:
            with torch.no_grad():
                ids.append(int(ending_llama(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert written.tokens.tolist() == [t for t in ids[len(prompt) :] if t != END]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_score_is_the_mean_or_the_sum_of_its_tokens_log_probabilities(ending_llama, penalty):
    shared = SharedPrompt(ending_llama, PROMPTS[:1])
    [mine] = free_beam_search(shared, beams=4, end=END, max_new_tokens=6, length_penalty=penalty)
    for written in mine:
        tokens = written.tokens.tolist() + [END] * (len(written.tokens) < 6)
        ids = torch.tensor([PROMPTS[0].tolist() + tokens])
        with torch.no_grad():
            log_p = torch.log_softmax(ending_llama(input_ids=ids).logits[0].float(), -1)
        places = torch.arange(len(PROMPTS[0]), ids.shape[1])
        total = float(log_p[places - 1, ids[0, places]].sum())
        assert written.score == pytest.approx(total / len(tokens) ** penalty, abs=1e-4)


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_the_batch_changes_nothing(ending_llama, batch):

    def written(size):
        found = []
        for i in range(0, len(PROMPTS), size):
            found += free_beam_search(
                SharedPrompt(ending_llama, PROMPTS[i : i + size]),
                beams=4,
                end=END,
                max_new_tokens=12,
            )
        return found

    for alone, together in zip(written(1), written(batch), strict=True):
        assert [w.tokens.tolist() for w in alone] == [w.tokens.tolist() for w in together]
        np.testing.assert_allclose([w.score for w in alone], [w.score for w in together], atol=1e-4)


def test_prompts_can_be_searched_again_and_search_stops_when_all_are_done(
    ending_llama, monkeypatch
):
    shared, steps = SharedPrompt(ending_llama, PROMPTS), []
    read = SharedPrompt.read
    monkeypatch.setattr(SharedPrompt, "read", lambda *a: steps.append(a) or read(*a))
    first = free_beam_search(shared, beams=2, end=END, max_new_tokens=200, length_penalty=0.0)
    assert 0 < len(steps) < 100
    again = free_beam_search(shared, beams=2, end=END, max_new_tokens=200, length_penalty=0.0)
    assert [[w.tokens.tolist() for w in m] for m in first] == [
        [w.tokens.tolist() for w in m] for m in again
    ]


@pytest.mark.parametrize(("beams", "limit"), [(0, 3), (2, 0)])
def test_no_beams_and_no_tokens_are_refused(ending_llama, beams, limit):
    with pytest.raises(ValueError, match="at least 1"):
        free_beam_search(
            SharedPrompt(ending_llama, PROMPTS), beams=beams, end=END, max_new_tokens=limit
        )
