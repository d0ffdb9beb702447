"""Hits, fitted weights and the rows of the comparison against loops."""

import itertools

import numpy as np
import pytest

from llmrec.data.records import Interactions
from llmrec.retrieval.fitting import compare_retrievers, fit_weights, next_item_hits
from llmrec.retrieval.retriever import NOBODY, Neighbours, Retriever
from llmrec.retrieval.similarity import MEASURES
from llmrec.retrieval.snapshots import Snapshots, queries_of, snapshots_of
from llmrec.retrieval.vectors import cooccurrence_factors


def log_of(users: list[list[int]]) -> Interactions:
    """The users' histories one after the other in time."""
    user = np.repeat(np.arange(len(users)), [len(u) for u in users]).astype(np.int32)
    position = np.array([p for u in users for p in u], np.int32)
    rows = np.arange(len(user))
    return Interactions(
        user, position, rows, rows, np.array([f"u{i}" for i in range(len(users))], object)
    )


def drawn(seed: int) -> tuple:
    rng = np.random.default_rng(seed)
    log = log_of([rng.integers(0, 9, rng.integers(2, 8)).tolist() for _ in range(40)])
    histories = [rng.integers(0, 9, n).astype(np.int32) for n in rng.integers(0, 6, 25)]
    queries = queries_of(["x"] * 25, histories, rng.integers(0, len(log), 25), log, 4)
    return log, snapshots_of(log, 4), queries, rng.integers(0, 9, 25).astype(np.int32)


def place_of(found: list[int], snapshots: Snapshots, target: int) -> int | None:
    for place, i in enumerate(found):
        if i != NOBODY and snapshots.chosen[i] == target:
            return place
    return None


def test_hits_equal_a_loop():
    _, snapshots, _, targets = drawn(0)
    found = np.random.default_rng(1).integers(-1, len(snapshots), (25, 6))
    hits = next_item_hits(
        Neighbours(found, np.zeros(found.shape, np.float32)), snapshots, targets, (1, 3, 6)
    )
    for row in range(25):
        place = place_of(found[row].tolist(), snapshots, targets[row])
        assert hits[row].tolist() == [place is not None and place < k for k in (1, 3, 6)]
    assert hits.any()
    assert not hits.all()


def test_the_grid_search_equals_a_loop():
    log, snapshots, queries, targets = drawn(2)
    vectors = cooccurrence_factors(log, 9, 4)
    fitted = fit_weights(Retriever(snapshots, vectors, {"dtw": 1.0}, 15), queries, targets, 5)
    best, equal = [], None
    quarters = [w for w in itertools.product(range(5), repeat=6) if sum(w) == 4]
    assert len(quarters) == 126
    for weights in [*quarters, (1,) * 6]:
        given = dict(zip(MEASURES, weights, strict=True))
        found = Retriever(snapshots, vectors, given, 15).retrieve(queries, 5).snapshot
        places = [place_of(found[row].tolist(), snapshots, targets[row]) for row in range(25)]
        value = float(np.mean([0 if p is None else 1 / (1 + p) for p in places]))
        if weights == (1,) * 6:
            equal = value
        else:
            # Nearest to equal: the smallest sum of squares, as all sum to 1.
            best.append((round(value, 12), -sum(w * w for w in weights), weights))
    value, _, weights = max(best)
    assert fitted.weights == {name: w / 4 for name, w in zip(MEASURES, weights, strict=True)}
    np.testing.assert_allclose([fitted.value, fitted.equal_value], [value, equal], atol=1e-12)
    assert fitted.queries == 25
    assert fitted.value > fitted.equal_value


def test_ties_go_to_the_weights_nearest_to_equal():
    log, snapshots, queries, _ = drawn(4)
    retriever = Retriever(snapshots, cooccurrence_factors(log, 9, 4), {"dtw": 1.0}, 15)
    unseen = np.full(25, 9, np.int32)  # no catalog item
    fitted = fit_weights(retriever, queries, unseen)
    assert (fitted.value, fitted.equal_value) == (0.0, 0.0)
    assert list(fitted.weights.values()) == [0.25, 0.25, 0.25, 0.25, 0, 0]
    with pytest.raises(ValueError, match="no queries"):
        fit_weights(retriever, queries.take(slice(0, 0)), unseen[:0])


def test_rows_of_the_comparison():
    log, snapshots, queries, targets = drawn(5)
    kinds = {"factors": cooccurrence_factors(log, 9, 4), "other": np.eye(9)}
    mine = {"jaccard": 3.0, "dtw": 1.0}
    rows = compare_retrievers(
        snapshots, kinds, queries, targets, {"fitted": mine}, 15, interactions=log
    )
    each = [*MEASURES, "equal", "fitted"]
    assert [(r.vectors, r.weights) for r in rows] == [
        ("factors", "random"),
        *(("factors", name) for name in each),
        *(("other", name) for name in each),
    ]
    by_name = {(r.vectors, r.weights): r for r in rows}
    for kind, vectors in kinds.items():
        retriever = Retriever(snapshots, vectors, mine, 15)
        found = retriever.retrieve(queries, 10)
        row = by_name[kind, "fitted"]
        np.testing.assert_array_equal(
            row.hits, next_item_hits(found, snapshots, targets, (1, 5, 10))
        )
        nobody = found.snapshot[:, 0] == NOBODY
        assert np.isnan(row.first[nobody]).all()
        assert nobody.any()
        np.testing.assert_allclose(
            (row.first @ retriever.weights)[~nobody], found.score[~nobody, 0], atol=1e-4
        )
    for place, name in enumerate(MEASURES):  # ranked by a measure, its best is first
        best = by_name["factors", name].first[:, place]
        other = by_name["factors", "equal"].first[:, place]
        there = np.isfinite(best)
        assert (best[there] >= other[there] - 1e-4).all()
