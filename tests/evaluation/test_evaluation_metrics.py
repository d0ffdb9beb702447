"""Metrics are defined here: fractions worked by hand, then 2,000 rankings against an oracle."""

from math import log2

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.evaluation import average_precision, hit_rate, mrr, ndcg, precision, recall
from llmrec.evaluation.metrics import METRICS, at_every_k, metrics_at


def one(metric, ranking, target, k):
    return metric([np.array(ranking, int)], np.array([target]), k)[0]


@pytest.mark.parametrize(
    ("ranking", "target", "k", "rank"),
    [
        ([7, 3, 9], 7, 3, 1),
        ([7, 3, 9], 9, 3, 3),
        ([7, 3, 9], 9, 2, None),  # below the cut-off
        ([7, 3], 9, 5, None),  # shorter than the cut-off
        ([], 9, 5, None),  # an empty list is a miss, not undefined
        ([7, 3, 9], 10**6, 3, None),  # outside the catalog
        ([-1, 9], 9, 2, 2),  # an invalid answer takes up a rank
        ([3, 3, 9], 9, 3, 3),  # and so does a repeated one
        ([9, 9, 9], 9, 3, 1),  # a duplicated target counts at its first rank, once
    ],
)
def test_one_target(ranking, target, k, rank):
    hit = rank is not None
    assert one(hit_rate, ranking, target, k) == hit
    assert one(recall, ranking, target, k) == hit
    assert one(ndcg, ranking, target, k) == (1 / log2(rank + 1) if hit else 0)
    assert one(mrr, ranking, target, k) == (1 / rank if hit else 0)
    assert one(average_precision, ranking, target, k) == (1 / rank if hit else 0)
    assert one(precision, ranking, target, k) == (1 / k if hit else 0)


def test_several_targets():
    # Hits at ranks 1, 3 and (again 5, not credited) of the targets {5, 6, 8, 9}.
    ranking, targets = np.array([[5, 1, 6, -1, 5]]), np.array([[5, 6, 8, 9, -1, -1]])
    assert hit_rate(ranking, targets, 5)[0] == 1
    assert recall(ranking, targets, 5)[0] == 2 / 4
    assert precision(ranking, targets, 5)[0] == pytest.approx(2 / 5)
    assert mrr(ranking, targets, 5)[0] == 1
    assert average_precision(ranking, targets, 5)[0] == pytest.approx((1 + 2 / 3) / 4)
    ideal = 1 + 1 / log2(3) + 1 / log2(4) + 1 / log2(5)
    assert ndcg(ranking, targets, 5)[0] == pytest.approx((1 + 1 / log2(4)) / ideal, abs=1e-15)
    # At a cut-off below the number of targets the ideal Ranking is cut as well.
    assert ndcg(ranking, targets, 2)[0] == pytest.approx(1 / (1 + 1 / log2(3)), abs=1e-15)
    assert recall(ranking, targets, 2)[0] == 1 / 4


def test_a_target_named_twice_is_one_target():
    ranking = np.array([[5, 1]])
    for metric in METRICS.values():
        assert metric(ranking, np.array([[5, 6, 5]]), 2) == metric(ranking, np.array([[5, 6]]), 2)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_user_without_a_target_has_no_value(metric):
    # -1 in the ranking must not meet -1 in the targets.
    values = metric(np.array([[-1, 4], [-1, 4]]), np.array([-1, 4]), 2)
    assert np.isnan(values[0])
    assert 0 < values[1] <= 1
    assert np.isnan(metric([np.array([1])], np.array([[-1, -1]]), 2)).all()


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_no_users_and_no_answers(metric):
    assert metric([], np.zeros(0, int), 5).shape == (0,)
    assert metric([np.zeros(0, int)] * 2, np.array([1, -1]), 5)[0] == 0
    assert metric(np.zeros((1, 0), int), np.array([1]), 5)[0] == 0


def test_lists_and_matrix_agree():
    lists = [np.array([3, 1]), np.array([], int), np.array([-1, 2, 0])]
    matrix = np.array([[3, 1, -1], [-1, -1, -1], [-1, 2, 0]], np.int32)
    targets = np.array([1, 1, 0])
    for metric in METRICS.values():
        assert metric(lists, targets, 3).tolist() == metric(matrix, targets, 3).tolist()


@pytest.mark.parametrize(
    ("rankings", "targets", "k", "said"),
    [
        (np.array([[1]]), np.array([1]), 0, "at least 1"),
        (np.array([[1]]), np.array([1, 2]), 1, "1 rankings but targets of 2"),
        (np.array([1]), np.array([1]), 1, "shape"),
        (np.array([[1]]), np.zeros((1, 1, 1), int), 1, "shape"),
        (np.array([[-2]]), np.array([1]), 1, "-2"),
        (np.array([[1.5]]), np.array([1]), 1, "whole numbers"),
    ],
)
def test_misuse_is_named(rankings, targets, k, said):
    with pytest.raises(ValueError, match=said):
        hit_rate(rankings, targets, k)


@given(
    st.lists(st.lists(st.integers(-1, 12), max_size=8), min_size=1, max_size=6),
    st.data(),
    st.integers(1, 10),
)
def test_values_lie_in_the_unit_interval_and_grow_with_k(rankings, data, k):
    targets = np.array(
        data.draw(
            st.lists(
                st.lists(st.integers(-1, 14), min_size=3, max_size=3),
                min_size=len(rankings),
                max_size=len(rankings),
            )
        )
    )
    arrays = [np.array(r, int) for r in rankings]
    for name, metric in METRICS.items():
        values = metric(arrays, targets, k)
        defined = values[~np.isnan(values)]
        assert len(defined) == (targets >= 0).any(axis=1).sum()
        assert ((defined >= 0) & (defined <= 1)).all()
        if name not in ("Precision", "NDCG"):  # these divide by something that grows with k
            more = metric(arrays, targets, k + 1)
            assert (more[~np.isnan(more)] >= defined - 1e-15).all()


def test_names_at_every_k():
    values = at_every_k(np.array([[4, 2]]), np.array([2]), [1, 2])
    assert list(values)[:4] == ["HR@1", "HR@2", "NDCG@1", "NDCG@2"]
    assert values["HR@1"] == [0]
    assert values["HR@2"] == [1]


@pytest.mark.parametrize("several", [False, True], ids=["one target", "several targets"])
@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8, list])
def test_all_at_once_is_bit_for_bit_what_each_metric_gives(several, kind):
    rng = np.random.default_rng(1)
    rankings = rng.integers(0 if kind is np.uint8 else -1, 60, (5000, 12))  # more than one chunk
    targets = rng.integers(-1, 70, (5000, 3) if several else 5000)
    targets[0] = -1
    rankings = list(rankings) if kind is list else rankings.astype(kind)
    ks = [10, 1, 3, 20]  # beyond what stands in the rankings, and in no order
    together = metrics_at(rankings, targets, list(METRICS), ks)
    assert list(together) == [(name, k) for name in METRICS for k in ks]
    for (name, k), values in together.items():
        alone = METRICS[name](rankings, targets, k)
        assert values.dtype == alone.dtype == np.float64
        np.testing.assert_array_equal(values, alone)
        assert np.nansum(values) > 0
        assert np.isnan(values[0])


def test_ranks_of_many_users_against_a_plain_loop():
    """Across the edges of what is compared at once, with targets that no narrow type can hold."""
    rng = np.random.default_rng(2)
    rankings = rng.integers(0, 30, (9001, 8)).astype(np.int8)
    targets = np.where(rng.random(9001) < 0.1, 2**40, rng.integers(-1, 40, 9001))
    expected = []
    for row, target in zip(rankings.tolist(), targets.tolist(), strict=True):
        rank = row[:6].index(target) + 1 if target in row[:6] else None
        expected.append(np.nan if target < 0 else 1 / log2(rank + 1) if rank else 0)
    values = metrics_at(rankings, targets, ["NDCG"], [6])["NDCG", 6]
    np.testing.assert_allclose(values, expected, rtol=1e-14)


def test_only_what_is_asked_is_measured_and_misuse_is_named():
    rankings, targets = np.array([[4, 2]]), np.array([2])
    assert metrics_at(rankings, targets, ["HR"], []) == {}
    assert metrics_at(rankings, targets, [], [1]) == {}
    assert list(metrics_at(rankings, targets, ["MRR"], [2])) == [("MRR", 2)]
    with pytest.raises(ValueError, match=r"AUC.*allowed: HR, NDCG"):
        metrics_at(rankings, targets, ["HR", "AUC"], [1])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        metrics_at(rankings, targets, ["HR"], [5, 0])


def test_against_an_oracle():
    """2,000 random rankings with duplicates and invalid answers, against ir-measures (trec_eval).

    trec_eval knows no duplicates: a later occurrence stands there as a document nobody wants.
    """
    rng = np.random.default_rng(0)
    users, items = 2000, 40
    rankings = [rng.integers(-1, items, rng.integers(1, 21)) for _ in range(users)]
    targets = np.full((users, 6), -1)
    for row in targets:
        chosen = rng.choice(items + 5, rng.integers(1, 7), replace=False)
        row[: len(chosen)] = chosen
    run, wanted = {}, {}
    for user, (ranking, row) in enumerate(zip(rankings, targets, strict=True)):
        names = [
            f"i{item}" if item >= 0 and item not in ranking[:rank] else f"none{rank}"
            for rank, item in enumerate(ranking)
        ]
        run[str(user)] = {name: float(-rank) for rank, name in enumerate(names)}
        wanted[str(user)] = {f"i{item}": 1 for item in row if item >= 0}
    oracles = {
        "HR": ir_measures.Success,
        "NDCG": ir_measures.nDCG,
        "MRR": ir_measures.RR,
        "Recall": ir_measures.R,
        "Precision": ir_measures.P,
        "MAP": ir_measures.AP,
    }
    ks = [1, 5, 10, 20]
    measures = {f"{name}@{k}": oracles[name] @ k for name in METRICS for k in ks}
    theirs = {str(measure): np.full(users, np.nan) for measure in measures.values()}
    for value in ir_measures.iter_calc(list(measures.values()), wanted, run):
        theirs[str(value.measure)][int(value.query_id)] = value.value
    for name, ours in at_every_k(rankings, targets, ks).items():
        np.testing.assert_allclose(ours, theirs[str(measures[name])], rtol=0, atol=1e-12)
        assert ours.max() > 0, name
