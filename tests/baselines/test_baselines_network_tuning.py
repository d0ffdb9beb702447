"""Tuning a network: which settings are tried, the best of them kept, nothing trained twice."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from llmrec.baselines import network_tuning
from llmrec.baselines.network_tuning import CHANGES, Store, Task, settings_to_try, tune
from llmrec.baselines.sasrec import SASRec
from llmrec.baselines.sequential import Sequential
from llmrec.data.records import Examples, Interactions, concatenated, offsets_of

CYCLE = 8
START = SASRec(hidden=6, heads=3, max_length=5, max_epochs=2)


def cycles(users, length=9):
    """Users who walk round and round the items, and what each chooses next."""
    histories = [((np.arange(length) + u) % CYCLE).astype(np.int32) for u in range(users)]
    rows, names = np.arange(users * length), np.arange(users).astype(object)
    user = np.repeat(np.arange(users), length).astype(np.int32)
    train = Interactions(user, concatenated(histories), rows, rows, names)
    flags, targets = np.zeros(users, bool), np.array([(h[-1] + 1) % CYCLE for h in histories])
    valid = Examples(
        names,
        offsets_of(histories),
        concatenated(histories),
        targets.astype(np.int32),
        np.zeros(users, np.int64),
        flags,
        flags,
    )
    return train, valid


def test_settings_are_the_start_and_then_distinct_ones_that_a_network_can_be_made_of():
    tried = settings_to_try(START, 99)
    assert tried[0] == START
    assert len(set(tried)) == len(tried) == len(CHANGES) + 1
    assert settings_to_try(START, 2) == tried[:2]
    for settings in tried:
        assert settings.network(CYCLE)(torch.tensor([[1, 2]])).shape[-1] == settings.hidden
        same = {"layers", "heads", "max_length", "batch_size", "weight_decay", "patience"}
        assert {k: v for k, v in asdict(settings).items() if k in same} == {
            k: v for k, v in asdict(START).items() if k in same
        }
    assert {s.dropout for s in tried} == {0.1, 0.3, 0.5, 0.7}
    assert {s.hidden for s in tried} == {6, 12}


@pytest.fixture
def fits(monkeypatch):
    """Every training, by its settings."""
    real, seen = Sequential.fit, []

    def recording(self, *given):
        seen.append(self)
        return real(self, *given)

    monkeypatch.setattr(Sequential, "fit", recording)
    return seen


def test_the_best_in_validation_is_kept_and_a_longer_search_goes_on(tmp_path, fits):
    train, valid = cycles(6)
    task = Task(train, CYCLE, valid, False, 0, Store(tmp_path))
    two = tune(settings_to_try(START, 2), task)
    assert fits == settings_to_try(START, 2)
    three = tune(settings_to_try(START, 3), task)
    assert fits == settings_to_try(START, 3)  # only the third was new
    assert [t[:3] for t in three.trials[:2]] == [t[:3] for t in two.trials]
    for found in (two, three):
        best = max(found.trials, key=lambda trial: trial[1])
        assert (found.settings, found.ndcg) == best[:2]
        assert found.fitted.ndcg(valid, False) == pytest.approx(found.ndcg, abs=1e-12)
        assert found.fitted.epoch == best[2]


@pytest.mark.parametrize("change", ["seed", "filter_seen", "train", "valid", "items"])
def test_other_content_is_another_network(tmp_path, fits, change):
    train, valid = cycles(6)
    given = {"train": train, "items": CYCLE, "valid": valid, "filter_seen": False, "seed": 0}
    others = {
        "seed": 1,
        "filter_seen": True,
        "train": train.take(np.arange(len(train) - 1)),
        "valid": valid.take(np.arange(len(valid) - 1)),
        "items": CYCLE + 1,
    }
    tune([START], Task(**given, store=Store(tmp_path)))
    tune([START], Task(**given, store=Store(tmp_path)))
    assert len(fits) == 1
    tune([START], Task(**given | {change: others[change]}, store=Store(tmp_path)))
    assert len(fits) == 2


def test_a_damaged_network_is_trained_again(tmp_path, fits):
    train, valid = cycles(6)
    task = Task(train, CYCLE, valid, False, 0, Store(tmp_path))
    before = tune([START], task)
    [weights] = tmp_path.glob(f"*/{network_tuning.WEIGHTS}")
    weights.write_bytes(weights.read_bytes()[:-3])
    after = tune([START], task)
    assert len(fits) == 2
    history = [np.array([3, 4], np.int32)]
    assert before.fitted.probabilities(history).tobytes() == (
        after.fitted.probabilities(history).tobytes()
    )


def test_without_validation_the_start_alone_is_trained(fits):
    train, valid = cycles(6)
    nobody = valid.take(np.arange(0))
    found = tune(settings_to_try(START, 3), Task(train, CYCLE, nobody, False, 0))
    assert fits == [START]
    assert found.fitted.epoch == START.max_epochs


def test_settings_trained_at_the_same_time_are_those_trained_one_by_one(tmp_path, fits, caplog):
    train, valid = cycles(6)
    tries, task = settings_to_try(START, 3), Task(train, CYCLE, valid, False, 0)
    one_by_one = tune(tries, replace(task, store=Store(tmp_path / "one")))
    fits.clear()
    with caplog.at_level("INFO", "llmrec"):
        together = tune(tries, replace(task, store=Store(tmp_path / "two")), at_once=2)
    assert not fits  # all of it elsewhere
    assert "sasrec epoch 2" in caplog.text
    assert [t[:3] for t in together.trials] == [t[:3] for t in one_by_one.trials]
    for name, weight in one_by_one.fitted.network.state_dict().items():
        assert torch.equal(together.fitted.network.state_dict()[name], weight), name
