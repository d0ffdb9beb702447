"""Batches hold everything once, like beside like, and no more than they may."""

import numpy as np
import pytest

from llmrec.data.batching import batches


@pytest.mark.parametrize("tokens", [None, 1, 25, 1000])
def test_every_index_stands_once_in_a_batch_that_fits(tokens):
    lengths = np.random.default_rng(0).integers(1, 40, 57).tolist()
    found = batches(lengths, 8, tokens)
    assert sorted(np.concatenate(found).tolist()) == list(range(57))
    ordered = [lengths[i] for batch in found for i in batch]
    assert ordered == sorted(lengths, reverse=True)
    for number, batch in enumerate(found):
        held = len(batch) * max(lengths[i] for i in batch)
        assert 1 <= len(batch) <= 8
        assert tokens is None or held <= tokens or len(batch) == 1
        if number < len(found) - 1 and len(batch) < 8:  # one more would not have fitted
            assert held + lengths[batch[0]] > tokens


def test_nothing_to_answer_is_no_batch():
    assert batches([], 8, 100) == []


@pytest.mark.parametrize("tokens", [1, 25, 60, 1000])
def test_by_tokens_alone_the_shortest_can_come_first(tokens):
    lengths = np.random.default_rng(1).integers(1, 40, 57).tolist()
    found = batches(lengths, tokens=tokens, shortest_first=True)
    ordered = [lengths[i] for batch in found for i in batch]
    assert ordered == sorted(lengths)
    assert sorted(np.concatenate(found).tolist()) == list(range(57))
    for number, batch in enumerate(found):
        assert len(batch) * lengths[batch[-1]] <= tokens or len(batch) == 1
        if number < len(found) - 1:  # the next one would not have fitted
            assert (len(batch) + 1) * lengths[found[number + 1][0]] > tokens
