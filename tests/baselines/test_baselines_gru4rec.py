"""GRU4Rec: learning, causality, determinism."""

import numpy as np
import pytest
import torch

from llmrec.baselines.gru4rec import GRU4Rec
from llmrec.data.records import Examples, Interactions, concatenated, offsets_of

CYCLE = 8


def cycles(users, length=15):
    """Users who walk round and round the items, and what each chooses next."""
    histories = [((np.arange(length) + u) % CYCLE).astype(np.int32) for u in range(users)]
    rows, names = np.arange(users * length), np.arange(users).astype(object)
    flat, flags = concatenated(histories), np.zeros(users, dtype=bool)
    train = Interactions(
        np.repeat(np.arange(users), length).astype(np.int32), flat, rows, rows, names
    )
    targets = np.array([(h[-1] + 1) % CYCLE for h in histories], np.int32)
    return train, Examples(
        names, offsets_of(histories), flat, targets, np.zeros(users, np.int64), flags, flags
    )


@pytest.fixture(scope="module")
def fitted():
    train, valid = cycles(60)
    model = GRU4Rec(hidden=16, max_length=10, dropout=0.0, learning_rate=0.02, max_epochs=10)
    nobody = valid.take(np.arange(0))  # all epochs: the first few rank the cycle right already
    return model.fit(train, CYCLE + 1, nobody, filter_seen=False, seed=0)


def test_learns_a_deterministic_cycle(fitted):
    histories = [np.array(h, np.int32) for h in ([0, 1, 2], [6, 7], [2, 3, 4, 5, 6, 7, 0])]
    p = fitted.probabilities(histories, filter_seen=False)
    assert p.argmax(axis=1).tolist() == [3, 0, 1]
    assert p.max(axis=1).min() > 0.5  # chance is 1 in 9


@torch.no_grad()
def test_a_later_item_changes_nothing_before_it(fitted):
    before = fitted.network(torch.tensor([[0, 1, 2, 3, 4]]))
    after = fitted.network(torch.tensor([[0, 1, 2, 7, 4]]))
    torch.testing.assert_close(before[:, :3], after[:, :3], rtol=0, atol=1e-6)
    assert (before[:, 3:] - after[:, 3:]).abs().amax(dim=2).min() > 1e-3


def test_an_earlier_item_changes_what_follows(fitted):
    p = fitted.probabilities([np.array(h, np.int32) for h in ([0, 3], [6, 3])], filter_seen=False)
    assert np.abs(p[0] - p[1]).max() > 1e-4


def test_a_user_alone_gets_what_the_user_gets_among_others(fitted):
    histories = [np.array(h, np.int32) for h in ([0, 1, 2], [], [5], [1] * 30)]
    together = fitted.probabilities(histories, filter_seen=False)
    alone = [fitted.probabilities([h], filter_seen=False)[0] for h in histories]
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2])
def test_same_seed_same_bytes_and_torch_is_left_alone(layers):
    train, valid = cycles(4)
    model = GRU4Rec(hidden=8, layers=layers, max_length=5, dropout=0.3, max_epochs=2)
    history = [np.array([3, 4], np.int32)]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = model.fit(train, CYCLE, valid, False, seed=1).probabilities(history)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    two = model.fit(train, CYCLE, valid, False, seed=1).probabilities(history)
    other = model.fit(train, CYCLE, valid, False, seed=2).probabilities(history)
    assert one.tobytes() == two.tobytes()
    assert not np.array_equal(one, other)
