"""Lists of several systems together: who knows the target counts, who does not weighs nothing."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

PATH = Path(__file__).parents[2] / "tools" / "pooled_lists.py"
SPEC = importlib.util.spec_from_file_location("pooled_lists", PATH)
pooled_lists = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pooled_lists)


def test_who_knows_is_weighed_and_a_miss_stays_one():
    rng = np.random.default_rng(0)
    users = np.arange(200)
    candidates = np.stack([rng.permutation(50)[:8] for _ in users]).astype(np.int32)
    targets = candidates[:, 3].copy()
    targets[::4] = 99
    noise, knows = rng.normal(size=(2, 200, 8))
    knows[:, 3] += 6
    log_p = np.stack([log_softmax(x, axis=1) for x in (noise, knows)], axis=2)
    together = pooled_lists.pooled(log_p, candidates, targets, users)
    alone = pooled_lists.pooled(log_p[:, :, 1:], candidates, targets, users)
    assert together.weights[0] < 0.2 < together.weights[1]
    assert together.ndcg.mean() == pytest.approx(0.75, abs=0.02)
    assert alone.ndcg.mean() == pytest.approx(together.ndcg.mean(), abs=0.02)
    assert np.isnan(together.nll[::4]).all()
    assert not together.ndcg[::4].any()
    none = pooled_lists.pooled(log_p[:, :, :1], candidates, targets, users)
    assert none.ndcg.mean() < 0.6


def test_the_weights_are_the_likeliest():
    rng = np.random.default_rng(1)
    log_p = log_softmax(rng.normal(size=(300, 5, 2)), axis=1)
    places = rng.integers(0, 5, 300)
    log_p[np.arange(300), places] += 1
    best = pooled_lists.fitted(log_p, places)

    def nll(weights):
        log_q = log_softmax(log_p @ weights, axis=1)
        return pooled_lists.PENALTY * weights @ weights - log_q[np.arange(300), places].mean()

    for step in ([0.05, 0], [-0.05, 0], [0, 0.05], [0, -0.05]):
        assert nll(best) <= nll(best + step)
