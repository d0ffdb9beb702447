"""The softmax of tokens against loops written here."""

import copy
import math

import numpy as np
import torch

from llmrec.model.loading import Lora, with_new_lora
from llmrec.model.softmax import (
    MaskedSoftmax,
    restricted_log_probabilities,
    segment_logsumexp,
    trie_choices,
)
from llmrec.text.tree import Segment, TokenTree
from llmrec.text.trie import TitleTrie

COMPLETIONS = [np.array(s, np.int32) for s in ([5, 6, 2], [5, 7, 2], [5, 7, 8, 2], [9, 6, 2])]
TRIE = TitleTrie.from_sequences(COMPLETIONS)


def flat(*targets):
    prompt = Segment(np.array([3, 4], np.int32))
    branches = [Segment(COMPLETIONS[t], 0, t) for t in targets]
    return TokenTree((prompt, *branches)).flatten()


def test_msl_equals_a_loop_over_the_trie():
    rows = [flat(2, 0), flat(3)]
    kept, choices = trie_choices(rows, TRIE, COMPLETIONS)
    logits = torch.randn(sum(map(len, kept)), 12, generator=torch.Generator().manual_seed(0))
    values = restricted_log_probabilities(logits, choices, tau=2.0)
    expected, row = [], 0
    for target in (2, 0, 3):
        ids = COMPLETIONS[target]
        for step in range(len(ids)):
            allowed = TRIE.allowed(ids[:step]).tolist()
            if len(allowed) > 1:
                z = [float(logits[row, token]) / 2.0 for token in allowed]
                total = math.log(sum(map(math.exp, z)))
                expected.append(z[allowed.index(int(ids[step]))] - total)
                row += 1
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-5)


def test_a_token_with_one_continuation_needs_no_logits():
    kept, choices = trie_choices([flat(3)], TRIE, COMPLETIONS)
    assert kept[0].tolist() == [0]  # 9 against 5; after 9 all is forced
    assert choices.tokens.tolist() == [5, 9]


def test_an_inline_title_starts_inside_its_completion():
    tree = TokenTree(
        (Segment(np.array([3], np.int32)), Segment(COMPLETIONS[2][1:3], 0, target=2, start=1))
    ).flatten()
    kept, choices = trie_choices([tree], TRIE, COMPLETIONS)
    assert kept[0].tolist() == [0, 1]
    assert choices.tokens.tolist() == [6, 7, 2, 8]
    assert choices.chosen.tolist() == [1, 3]


def test_segment_logsumexp_is_stable():
    values = torch.tensor([1000.0, 1000.0, -1000.0, 3.0])
    result = segment_logsumexp(values, torch.tensor([0, 0, 1, 1]), 2)
    torch.testing.assert_close(result, torch.tensor([1000.0 + math.log(2), 3.0]))


def test_a_head_of_the_titles_tokens_alone_gives_the_same_values_and_gradients(tiny_model):
    """For each family, all weights trained and under an adapter; within rounding."""
    rows = [flat(2, 0), flat(3, 1)]
    whole = MaskedSoftmax(TRIE, COMPLETIONS, tau=1.5)
    narrow = MaskedSoftmax(TRIE, COMPLETIONS, tau=1.5, narrow=True)
    adapted = with_new_lora(copy.deepcopy(tiny_model), Lora(r=4), seed=0)
    for model in (copy.deepcopy(tiny_model), adapted):
        found, widths = [], []
        head = model.get_output_embeddings()

        def watch(_, __, out, widths=widths):
            widths.append(out.shape[-1])

        for softmax in (whole, narrow):
            handle = head.register_forward_hook(watch)
            model.zero_grad()
            values = softmax.branch_log_probabilities(model, softmax.prepare(rows))
            values.sum().backward()
            handle.remove()
            gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            found.append((values.detach(), torch.cat(gradients)))
        assert widths == [model.config.vocab_size, 6]  # 5 to 9, and the end
        torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-6, atol=1e-6)
        scale = float(found[0][1].abs().max())
        torch.testing.assert_close(found[1][1] / scale, found[0][1] / scale, rtol=0, atol=1e-6)
        assert "forward" not in head.__dict__


def test_a_head_that_is_no_plain_layer_is_read_whole(fresh_llama):
    class Other(torch.nn.Linear):
        pass

    head = fresh_llama.get_output_embeddings()
    values = [
        softmax.branch_log_probabilities(fresh_llama, softmax.prepare([flat(2, 0)])).detach()
        for softmax in (MaskedSoftmax(TRIE, COMPLETIONS), MaskedSoftmax(TRIE, COMPLETIONS, 1, True))
    ]
    head.__class__ = Other
    softmax = MaskedSoftmax(TRIE, COMPLETIONS, narrow=True)
    values.append(softmax.branch_log_probabilities(fresh_llama, softmax.prepare([flat(2, 0)])))
    torch.testing.assert_close(values[2], values[0], rtol=0, atol=0)
