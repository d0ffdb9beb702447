"""The head for the tokens of titles alone: the same answers as the whole head, and nothing else is
computed."""

import numpy as np
import pytest
import torch

from llmrec.decoding.shared_prompt import Head, SharedPrompt
from llmrec.inference.engine import Engine
from llmrec.recipe import shipped
from llmrec.recipe.decoding import Decode
from llmrec.text.encoding import PromptEncoder
from llmrec.text.templates import PromptTemplate

HISTORIES = [[0, 1, 2], [3], [5, 4], [0, 7, 1, 6]]


@pytest.fixture
def asked(tokenizer):
    titles = ["The Man", "The Man II", "Dark City", "Dark Star", "A Star", "Last Dance", "Love"]
    template = PromptTemplate(shipped.prompt_text("next_item/movie"), "next_item/movie")
    encoder = PromptEncoder(template, tokenizer, [*titles, "Sun"])
    histories = [np.array(h, np.int32) for h in HISTORIES]
    return encoder, [encoder.prompt(h).ids for h in HISTORIES], histories


def engines(model, encoder, **decode):
    """One that narrows its head, and one that must not."""
    narrow, whole = (Engine(model, encoder, Decode(**decode)) for _ in range(2))
    narrow._head = Head.of(encoder.trie.tokens[1:], next(model.parameters()).device)
    whole._head = None
    return narrow, whole


@pytest.mark.parametrize(
    "decode",
    [
        {"search": "best_first", "top_k": 5},
        {"beams": 4, "top_k": 4},
        {"search": "certified", "beams": 4, "top_k": 4},
    ],
)
def test_rankings_and_likelihoods_are_those_of_the_whole_head(tiny_llama, asked, decode):
    encoder, prompts, closed = asked
    targets = np.array([4, 4, 0, 3], np.int32)
    found = [
        engine.rank(prompts, closed, targets=targets)
        for engine in engines(tiny_llama, encoder, **decode)
    ]
    for ours, theirs in zip(*(one.rankings for one in found), strict=True):
        assert ours.positions.tolist() == theirs.positions.tolist()
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-6)
    np.testing.assert_allclose(found[0].nll, found[1].nll, atol=1e-6)
    nll = [e.nll(prompts, closed, targets) for e in engines(tiny_llama, encoder, **decode)]
    np.testing.assert_allclose(*nll, atol=1e-6)


def test_no_other_logit_is_computed_where_probabilities_are_over_open_tokens(
    tiny_llama, asked, monkeypatch
):
    encoder, prompts, closed = asked
    real, widths = torch.nn.functional.linear, []
    vocabulary = tiny_llama.config.vocab_size
    tokens = len(np.unique(encoder.trie.tokens[1:]))
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda x, w, b=None: widths.append(len(w)) or real(x, w, b)
    )
    for renormalise in (True, False):
        widths.clear()
        engine, _ = engines(tiny_llama, encoder, beams=3, top_k=3, renormalise=renormalise)
        engine.rank(prompts, closed)
        assert (vocabulary in widths) != renormalise
        assert (tokens in widths) == renormalise
    widths.clear()
    engine.choose(prompts, np.tile(np.arange(4), (4, 1)))
    assert tokens not in widths


def test_logits_of_a_head_are_columns_of_all(tiny_llama):
    prompts = [np.array([4, 5, 6]), np.array([7, 8])]
    head = Head.of(np.array([9, 3, 9, 20]), torch.device("cpu"))
    few, every = (SharedPrompt(tiny_llama, prompts, head=h) for h in (head, None))
    tokens = np.array([20, 3, 9])
    torch.testing.assert_close(
        few.logits[:, few.columns(tokens)],
        every.logits[:, every.columns(tokens)],
        atol=1e-6,
        rtol=0,
    )
    assert few.logits.shape == (2, 3)
