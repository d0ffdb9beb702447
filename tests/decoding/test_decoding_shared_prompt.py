"""Prompts read together give the logits of each prompt read alone, whatever they begin with."""

import numpy as np
import pytest
import torch

from llmrec.decoding import shared_prompt
from llmrec.decoding.shared_prompt import SharedPrompt, normalisers


def drawn(lengths, beginning=0, seed=0):
    rng = np.random.default_rng(seed)
    begin = rng.integers(3, 300, beginning)
    rests = [rng.integers(3, 300, n) for n in lengths]
    for rest, number in zip(rests, range(3, 300), strict=False):
        rest[:1] = number  # no two go on alike
    return [np.concatenate([begin, rest]).astype(np.int32) for rest in rests]


def alone(model, tokens):
    with torch.inference_mode():
        return model(torch.tensor([list(map(int, tokens))])).logits[0, -1]


def behind(shared, model, prompts, read):
    """Two rounds of reading behind the prompts: a chain of 2 tokens, then 1 behind the first."""
    users = len(prompts)
    chain = np.tile(np.array(read[:2]), (users, 1))
    sees = np.broadcast_to(np.tri(2, dtype=bool), (users, 2, 2))
    first = shared.read(chain, np.arange(2), sees, np.arange(users) * 2 + 1)
    sees = np.broadcast_to(np.array([True, False, True]), (users, 1, 3))
    second = shared.read(np.full((users, 1), read[2]), 1, sees, np.arange(users))
    for user, prompt in enumerate(prompts):
        torch.testing.assert_close(first[user], alone(model, [*prompt, *read[:2]]),
                                   atol=2e-4, rtol=1e-4)  # fmt: skip
        torch.testing.assert_close(second[user], alone(model, [*prompt, read[0], read[2]]),
                                   atol=2e-4, rtol=1e-4)  # fmt: skip


@pytest.mark.parametrize("beginning", [0, 8, 40])
@pytest.mark.parametrize("lengths", [(5,), (4, 9, 1), (1, 1, 1, 12)])
def test_prompts_with_a_common_beginning_are_read_as_alone(tiny_model, lengths, beginning):
    prompts = drawn(lengths, beginning)
    shared = SharedPrompt(tiny_model, prompts)
    for prompt, logits in zip(prompts, shared.logits, strict=True):
        torch.testing.assert_close(logits, alone(tiny_model, prompt), atol=2e-4, rtol=1e-4)
    behind(shared, tiny_model, prompts, (30, 31, 32))
    shared.restart()
    behind(shared, tiny_model, prompts, (40, 41, 42))


@pytest.mark.parametrize(
    ("lengths", "beginning", "tokens"),
    [((3, 4, 5), 40, 40 + 3 * 5), ((3, 4, 5), 4, 3 * 9), ((7,), 40, 47), ((0, 0), 80, 79 + 2)],
)
def test_a_common_beginning_is_read_once_where_that_saves_enough(
    tiny_llama, monkeypatch, lengths, beginning, tokens
):
    read = []
    forward = shared_prompt.forward_logits

    def counted(model, batch, cache):
        read.append(batch.input_ids.numel())
        return forward(model, batch, cache)

    monkeypatch.setattr(shared_prompt, "forward_logits", counted)
    prompts = drawn(lengths, beginning)
    shared = SharedPrompt(tiny_llama, prompts)
    assert sum(read) == tokens
    for prompt, logits in zip(prompts, shared.logits, strict=True):
        torch.testing.assert_close(logits, alone(tiny_llama, prompt), atol=2e-4, rtol=1e-4)


def test_some_of_the_prompts_are_taken_without_reading_again(tiny_model, monkeypatch):
    prompts = drawn((4, 9, 2, 6), 30)
    shared = SharedPrompt(tiny_model, prompts)
    behind(shared, tiny_model, prompts, (30, 31, 32))
    monkeypatch.setattr(shared_prompt, "WORTH", 10**9)
    part = shared.of(np.array([3, 1]))
    assert len(part) == 2
    mine = [prompts[3], prompts[1]]
    for prompt, logits in zip(mine, part.logits, strict=True):
        torch.testing.assert_close(logits, alone(tiny_model, prompt), atol=2e-4, rtol=1e-4)
    behind(part, tiny_model, mine, (50, 51, 52))
    shared.restart()
    behind(shared, tiny_model, prompts, (60, 61, 62))  # untouched by what the part read


def test_much_can_be_read_behind_a_short_prompt(tiny_llama):
    prompt = np.array([20, 21, 22], np.int32)
    shared = SharedPrompt(tiny_llama, [prompt])
    written = []
    for depth, token in enumerate(range(30, 70)):
        sees = np.ones((1, 1, depth + 1), bool)
        logits = shared.read(np.array([[token]]), depth, sees, np.zeros(1, np.int64))
        written.append(token)
        torch.testing.assert_close(logits[0], alone(tiny_llama, [*prompt, *written]),
                                   atol=2e-4, rtol=1e-4)  # fmt: skip


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 100])
def test_normalisers_are_those_of_each_row(rows):
    logits = torch.randn(rows, 50, generator=torch.Generator().manual_seed(rows)) * 9
    expected = [np.log(np.exp(row.double().numpy()).sum()) for row in logits]
    np.testing.assert_allclose(normalisers(logits).numpy(), expected, rtol=1e-6)
