"""Texts in one array are what they are in as many."""

import numpy as np
import pytest

from llmrec.text import flat
from llmrec.text.flat import FlatIds


@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize(("before", "after"), [([], []), ([7], [8, 9]), ([1, 2, 3], [])])
def test_texts_are_those_that_were_put_together(monkeypatch, block, before, after):
    monkeypatch.setattr(flat, "BLOCK", block)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 50, size).astype(np.int32) for size in (3, 0, 1, 5, 2, 0, 4)]
    made = FlatIds.of(iter(texts))
    around = made.between(np.array(before, np.int32), np.array(after, np.int32))
    enclosed = [np.concatenate([before, text, after]).astype(np.int32) for text in texts]
    assert (made.longest, around.longest) == (5, 5 + len(before) + len(after))
    for found, expected in ((made, texts), (around, enclosed), (around.flat(), enclosed)):
        assert len(found) == len(texts)
        assert [ids.tolist() for ids in found] == [ids.tolist() for ids in expected]
        assert [found[i].tolist() for i in range(-7, 7)] == [
            expected[i].tolist() for i in range(-7, 7)
        ]
        assert [ids.tolist() for ids in found[1:5]] == [ids.tolist() for ids in expected[1:5]]
        assert found[np.int32(3)].dtype == np.int32
        with pytest.raises(IndexError):
            found[7]


def test_no_texts_are_none():
    none = FlatIds.of([])
    assert len(none.between(np.zeros(1, np.int32), np.zeros(0, np.int32))) == len(none) == 0
