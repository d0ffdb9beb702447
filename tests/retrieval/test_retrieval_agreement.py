"""Rating agreement against loops over the raw rows."""

from dataclasses import replace

import numpy as np
import pytest

from llmrec.data.records import Interactions
from llmrec.retrieval.agreement import mean_agreement, rating_agreement
from llmrec.retrieval.snapshots import queries_of, snapshots_of

rng = np.random.default_rng(4)


def a_log():
    """12 users of 8 choices among 9 items, each choice rated from 1 to 5."""
    users = np.repeat(np.arange(12), 8).astype(np.int32)
    positions = np.concatenate([rng.permutation(9)[:8] for _ in range(12)]).astype(np.int32)
    return Interactions(
        users,
        positions,
        np.tile(np.arange(8), 12) * 10 + users,
        np.arange(96),
        np.array([f"u{u}" for u in range(12)], object),
        rng.integers(1, 6, 96).astype(np.float32),
    )


def test_agreement_is_counted_item_by_item():
    log = a_log()
    snapshots = snapshots_of(log, 4)
    rows = [np.flatnonzero(log.user == u)[:5] for u in range(12)]
    histories = [log.position[r] for r in rows]
    queries = queries_of([f"u{u}" for u in range(12)], histories, [100] * 12, log, 4)
    found = rng.integers(-1, len(snapshots), 12)
    found[0] = -1
    by_hand = []
    for user, at in enumerate(found):
        if at < 0:
            by_hand.append(np.nan)
            continue
        other = int(snapshots.user[at])
        gave = {
            who: {
                int(p): float(r)
                for u, p, r in zip(log.user, log.position, log.rating, strict=True)
                if u == who
            }
            for who in (user, other)
        }
        both = set(histories[user][-4:].tolist()) & set(snapshots.history(int(at)).tolist())
        apart = [abs(gave[user][p] - gave[other][p]) / 4 for p in both]
        by_hand.append(1 - np.mean(apart) if apart else np.nan)
    values = rating_agreement(log, queries, snapshots, found)
    np.testing.assert_allclose(values, by_hand, atol=1e-6)
    there = [v for v in by_hand if np.isfinite(v)]
    assert mean_agreement(values) == (pytest.approx(np.mean(there)), len(there))
    assert len(there) > 3
    nothing = rating_agreement(replace(log, rating=None), queries, snapshots, found)
    assert np.isnan(nothing).all()
    assert np.isnan(mean_agreement(nothing)[0])
