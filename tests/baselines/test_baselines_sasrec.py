"""SASRec: causality, learning, determinism, windows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.baselines import catalog_loss
from llmrec.baselines.rows import spans
from llmrec.baselines.sasrec import SASRec
from llmrec.baselines.sequential import RunningMean
from llmrec.data.records import Examples, Interactions, concatenated, offsets_of

CYCLE = 8
SMALL = SASRec(
    hidden=16, max_length=10, dropout=0.0, learning_rate=0.02, batch_size=12, max_epochs=10
)


def cycles(users: int = 12, length: int = 15) -> tuple[Interactions, Examples]:
    """Users who walk round and round the items, and what each chooses next."""
    histories = [((np.arange(length) + u) % CYCLE).astype(np.int32) for u in range(users)]
    rows = np.arange(users * length)
    train = Interactions(
        np.repeat(np.arange(users), length).astype(np.int32),
        concatenated(histories),
        rows,
        rows,
        np.arange(users).astype(object),
    )
    flags = np.zeros(users, dtype=bool)
    targets = np.array([(h[-1] + 1) % CYCLE for h in histories], np.int32)
    return train, Examples(
        np.arange(users).astype(object),
        offsets_of(histories),
        concatenated(histories),
        targets,
        np.zeros(users, np.int64),
        flags,
        flags,
    )


@pytest.fixture(scope="module")
def fitted():
    train, valid = cycles(60)
    return SMALL.fit(train, CYCLE + 1, valid, filter_seen=False, seed=0)


def test_learns_a_deterministic_cycle(fitted):
    histories = [np.array(h, np.int32) for h in ([0, 1, 2], [6, 7], [2, 3, 4, 5, 6, 7, 0])]
    p = fitted.probabilities(histories, filter_seen=False)
    assert p.argmax(axis=1).tolist() == [3, 0, 1]
    assert p.max(axis=1).min() > 0.3  # chance is 1 in 9


def test_probabilities(fitted):
    histories = [np.array([0, 1], np.int32), np.zeros(0, np.int32), np.arange(8, dtype=np.int32)]
    p = fitted.probabilities(histories)
    assert p.dtype == np.float64
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-12)
    assert (p[0, :2] == 0).all()
    assert (p[0, 2:] > 0).all()
    np.testing.assert_allclose(p[2], np.eye(9)[8])  # the only item never seen


def test_a_temperature_above_1_flattens_without_reordering(fitted):
    history = [np.array([0, 1], np.int32)]
    sharp = fitted.probabilities(history)[0]
    soft = replace(fitted, temperature=3.0).probabilities(history)[0]
    assert soft.max() < sharp.max()
    assert np.argsort(soft).tolist() == np.argsort(sharp).tolist()


def test_a_user_alone_gets_what_the_user_gets_among_others(fitted):
    histories = [np.array(h, np.int32) for h in ([0, 1, 2], [], [5], [1] * 30)]
    together = fitted.probabilities(histories, filter_seen=False)
    alone = [fitted.probabilities([h], filter_seen=False)[0] for h in histories]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_only_the_last_items_are_read(fitted):
    recent = np.arange(10, dtype=np.int32) % CYCLE
    longer = np.concatenate([np.full(20, 7, np.int32), recent])
    np.testing.assert_array_equal(
        fitted.probabilities([longer], filter_seen=False),
        fitted.probabilities([recent], filter_seen=False),
    )


@torch.no_grad()
def test_a_later_item_changes_nothing_before_it(fitted):
    before = fitted.network(torch.tensor([[0, 1, 2, 3, 4]]))
    after = fitted.network(torch.tensor([[0, 1, 2, 7, 4]]))
    torch.testing.assert_close(before[:, :3], after[:, :3], rtol=0, atol=1e-6)
    assert (before[:, 3:] - after[:, 3:]).abs().max() > 1e-3


def test_same_seed_same_bytes_and_torch_is_left_alone():
    train, valid = cycles(4)
    model = SASRec(hidden=8, max_length=5, max_epochs=2)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = model.fit(train, CYCLE, valid, False, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    two = model.fit(train, CYCLE, valid, False, seed=1)
    other = model.fit(train, CYCLE, valid, False, seed=2)
    history = [np.array([3, 4], np.int32)]
    assert one.probabilities(history).tobytes() == two.probabilities(history).tobytes()
    assert not np.array_equal(one.probabilities(history), other.probabilities(history))


def test_the_number_of_threads_changes_no_byte():
    train, valid = cycles(60, 60)  # sums long enough for torch to divide them
    model = SASRec(hidden=64, max_length=50, max_epochs=1, dropout=0.3)
    history, before, found = [np.array([3, 4], np.int32)], torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            fitted = model.fit(train, CYCLE, valid, False, seed=1)
            found.append(fitted.probabilities(history).tobytes())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1


def test_what_is_kept_is_a_running_mean_of_the_weights():
    network = SMALL.network(CYCLE)
    mean, kept = RunningMean(network), network.bias.detach().double().clone()
    for step in range(1, 31):
        with torch.no_grad():
            network.bias.fill_(float(step))
        mean.follow(network, 5)
        share = max(1 / 5, 9 / (9 + step))
        kept += share * (step - kept)
        torch.testing.assert_close(mean.network.bias.double(), kept, atol=1e-4, rtol=0)
    assert 25 < kept[0] < 30


def test_pieces_of_a_batch_give_the_gradients_of_the_batch(monkeypatch):
    train, valid = cycles(6)
    model = SASRec(hidden=8, max_length=5, max_epochs=1, dropout=0.0)
    history = [np.array([3, 4], np.int32)]
    whole = model.fit(train, CYCLE, valid, False, seed=1).probabilities(history)
    monkeypatch.setattr(catalog_loss, "CELLS", 3 * CYCLE)
    np.testing.assert_allclose(
        model.fit(train, CYCLE, valid, False, seed=1).probabilities(history), whole, atol=1e-5
    )


def test_without_validation_the_last_epoch_is_kept():
    train, valid = cycles(3)
    model = SASRec(hidden=8, max_length=5, max_epochs=3, patience=1)
    assert model.fit(train, CYCLE, valid.take(np.arange(0)), True, seed=0).epoch == 3


lengths = st.lists(st.integers(1, 30), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 7), st.integers(0, 9))
def test_every_transition_stands_in_one_window(sizes, max_length, seed):
    rows = spans(np.array(sizes), max_length, np.random.default_rng(seed)).tolist()
    assert all(2 <= stop - start <= max_length + 1 for _, start, stop in rows)
    found = sorted((number, at) for number, start, stop in rows for at in range(start, stop - 1))
    assert found == [(number, at) for number, size in enumerate(sizes) for at in range(size - 1)]


def test_windows_begin_elsewhere_from_epoch_to_epoch():
    rng = np.random.default_rng(0)
    first = {int(spans(np.array([30]), 10, rng)[0, 2]) for _ in range(50)}
    assert len(first) > 5
