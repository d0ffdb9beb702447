"""Prompts read together give the logits of each prompt read alone, whatever they begin with."""

from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch

from llmrec.decoding.beginning import beginning_of
from llmrec.decoding.shared_prompt import SharedPrompt, normalisers
from llmrec.model.loading import Lora, adapter_off, with_new_lora


@contextmanager
def tokens_read(model):
    """Notes (rows, columns) of each pass of the model."""
    read = []
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda _, given, __: read.append(given[0].shape))
    try:
        yield read
    finally:
        handle.remove()


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
        torch.testing.assert_close(
            first[user], alone(model, [*prompt, *read[:2]]), atol=2e-4, rtol=1e-4
        )
        torch.testing.assert_close(
            second[user], alone(model, [*prompt, read[0], read[2]]), atol=2e-4, rtol=1e-4
        )


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
    tiny_llama, lengths, beginning, tokens
):
    prompts = drawn(lengths, beginning)
    with tokens_read(tiny_llama) as read:
        shared = SharedPrompt(tiny_llama, prompts)
    assert sum(rows * columns for rows, columns in read) == tokens
    for prompt, logits in zip(prompts, shared.logits, strict=True):
        torch.testing.assert_close(logits, alone(tiny_llama, prompt), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("batches", [[[0, 1, 2, 3, 4]], [[3, 1], [0, 2, 4]], [[4], [0]]])
def test_batches_take_over_a_beginning_that_is_read_once(tiny_model, batches):
    prompts = drawn((3, 9, 1, 5, 2), 40)
    with tokens_read(tiny_model) as read:
        beginning = beginning_of(tiny_model, prompts)
        shared = [SharedPrompt(tiny_model, [prompts[i] for i in b], beginning) for b in batches]
    widths = [max(len(prompts[i]) for i in b) - 40 for b in batches]
    assert read == [(1, 40), *((len(b), w) for b, w in zip(batches, widths, strict=True))]
    for one, numbers in zip(shared, batches, strict=True):
        mine = [prompts[i] for i in numbers]
        for prompt, logits in zip(mine, one.logits, strict=True):
            torch.testing.assert_close(logits, alone(tiny_model, prompt), atol=2e-4, rtol=1e-4)
        behind(one, tiny_model, mine, (30, 31, 32))
    for one, numbers in zip(shared, batches, strict=True):  # no batch wrote into another's
        one.restart()
        behind(one, tiny_model, [prompts[i] for i in numbers], (40, 41, 42))


def test_a_beginning_is_read_with_the_adapter_as_it_is(fresh_llama):
    tuned = with_new_lora(fresh_llama, Lora(r=4), seed=3).eval()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(5))
    prompts = drawn((3, 6), 70)
    found = []
    for switch in (nullcontext, lambda: adapter_off(tuned)):
        with switch():
            shared = SharedPrompt(tuned, prompts[:1], beginning_of(tuned, prompts))
            found.append(shared.logits[0])
            torch.testing.assert_close(found[-1], alone(tuned, prompts[0]), atol=2e-4, rtol=1e-4)
            behind(shared, tuned, prompts[:1], (30, 31, 32))
    assert (found[0] - found[1]).abs().max() > 0.1


def test_prompts_that_do_not_go_on_behind_a_beginning_are_refused(tiny_llama):
    prompts = drawn((3, 6), 70)
    beginning = beginning_of(tiny_llama, prompts)
    other = prompts[1].copy()
    other[69] += 1
    for wrong in (other, prompts[1][:70], prompts[1][:20]):
        with pytest.raises(ValueError, match="prompt 1 of 2 does not go on behind the 70 tokens"):
            SharedPrompt(tiny_llama, [prompts[0], wrong], beginning)


@pytest.mark.parametrize(
    ("lengths", "beginning", "tokens"),
    [
        ((3, 4), 64, 64),
        ((3, 4), 63, None),
        ((3,), 200, None),
        ((3,) * 9, 8, 8),
        ((), 0, None),
        ((0, 0), 80, 79),
        ((3,) * 99, 0, None),
    ],
)
def test_a_beginning_is_read_where_that_saves_enough(tiny_llama, lengths, beginning, tokens):
    prompts = drawn(lengths, beginning)
    with tokens_read(tiny_llama) as read:
        found = beginning_of(tiny_llama, prompts)
    assert read == ([] if tokens is None else [(1, tokens)])
    if tokens is None:
        assert found is None
    else:
        np.testing.assert_array_equal(found.tokens, prompts[0][:tokens])


def test_some_of_the_prompts_are_taken_without_reading_again(tiny_model):
    prompts = drawn((4, 9, 2, 6), 30)
    shared = SharedPrompt(tiny_model, prompts)
    behind(shared, tiny_model, prompts, (30, 31, 32))
    with tokens_read(tiny_model) as read:
        part = shared.of(np.array([3, 1]))
    assert read == []
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
        torch.testing.assert_close(
            logits[0], alone(tiny_llama, [*prompt, *written]), atol=2e-4, rtol=1e-4
        )


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 100])
def test_normalisers_are_those_of_each_row(rows):
    logits = torch.randn(rows, 50, generator=torch.Generator().manual_seed(rows)) * 9
    expected = [np.log(np.exp(row.double().numpy()).sum()) for row in logits]
    np.testing.assert_allclose(normalisers(logits).numpy(), expected, rtol=1e-6)
