"""The curriculum's formulas, and what a mixture of two branches costs and gives."""

import math

import numpy as np
import pytest
import torch

from llmrec.model.curriculum import adaptive, linear
from llmrec.model.row_order import FILLER, RowOrder, Rows
from llmrec.model.softmax import FullSoftmax, MaskedSoftmax
from llmrec.text.rows import with_own_answers
from llmrec.text.tree import Segment, TokenTree
from llmrec.text.trie import TitleTrie

ALPHAS = (0.1, 1, 10, 100)
rng = np.random.default_rng(0)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_lambda_is_one_until_the_answers_come_nearer(alpha):
    assert adaptive(3.0, 3.0, alpha) == 1.0
    assert adaptive(4.0, 3.0, alpha) == 1.0
    assert adaptive(1e9, 1e-9, alpha) == 1.0  # the exponential alone would overflow


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("distance", "ratio"), [(1.5, 0.5), (2.7, 0.9), (0.0, 0.0)])
def test_lambda_is_the_formula_below(alpha, distance, ratio):
    assert adaptive(distance, 3.0, alpha) == pytest.approx(math.exp(alpha * (ratio - 1)))


def test_lambda_worked_by_hand():
    assert adaptive(1.0, 2.0, 2.0) == pytest.approx(1 / math.e)
    assert adaptive(0.0, 0.0, 1.0) == 1.0
    assert adaptive(1.0, 0.0, 1.0) == 1.0


def test_a_larger_alpha_hands_over_faster():
    shares = [adaptive(2.0, 3.0, alpha) for alpha in ALPHAS]
    assert shares == sorted(shares, reverse=True)


def test_linear_goes_from_one_to_zero():
    assert [linear(epoch, 5) for epoch in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert linear(0, 1) == 1.0


COMPLETIONS = [np.array(ids, np.int32) for ids in ([5, 6, 1], [5, 7, 8, 1], [9, 1], [9, 6, 5, 1])]


def pairs(count):
    """Prompts of clearly different lengths, each with a true and an own completion."""
    rows = []
    for number in range(count):
        prompt = rng.integers(10, 60, 8 + 6 * number).astype(np.int32)
        true = number % 4
        row = TokenTree((Segment(prompt), Segment(COMPLETIONS[true], 0, true)))
        own = (number + 1) % 4
        rows.append(with_own_answers(row, [own], COMPLETIONS))
    return rows


def loss_and_gradient(model, softmax, flats, weights):
    model.zero_grad()
    batch = softmax.prepare(flats)
    weight = torch.tensor(weights)[batch["kinds"]]
    loss = -(softmax.branch_log_probabilities(model, batch) * weight).sum() / weight.sum()
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", ["sft", "msl"])
def test_two_branches_are_two_separate_passes(tiny_model, name):
    masked = MaskedSoftmax(TitleTrie.from_sequences(COMPLETIONS), COMPLETIONS)
    softmax = masked if name == "msl" else FullSoftmax()
    rows, share = pairs(5), 0.3
    together = loss_and_gradient(
        tiny_model, softmax, [r.flatten() for r in rows], (1 - share, share)
    )
    alone = [[row.only([kind]).flatten() for row in rows] for kind in (0, 1)]
    real, own = (loss_and_gradient(tiny_model, softmax, flats, (1.0, 1.0)) for flats in alone)
    assert together[0] == pytest.approx((1 - share) * real[0] + share * own[0], abs=1e-5)
    expected = (1 - share) * real[1] + share * own[1]
    scale = float(expected.abs().max())
    torch.testing.assert_close(together[1] / scale, expected / scale, rtol=0, atol=1e-5)


def test_a_branch_of_weight_zero_is_not_read():
    rows = Rows(pairs(3))
    assert rows[(1, (0.5, 0.5))] == (1, (0.5, 0.5))
    both = rows.flat(1, (0.5, 0.5))
    assert both.kinds.tolist() == [0, 1]
    own = rows.flat(1, (0.0, 1.0))
    assert own.kinds.tolist() == [1]
    assert len(own.input_ids) == len(both.input_ids) - len(COMPLETIONS[1])
    assert own.labels.tolist() == COMPLETIONS[2].tolist()
    real = rows.flat(1, (1.0, 0.0))
    assert real.labels.tolist() == COMPLETIONS[1].tolist()
    rows.rows = [rows.rows[2]] * 3  # others may have come since the index was handed out
    assert rows.flat(1, (1.0, 0.0)).labels.tolist() == COMPLETIONS[2].tolist()


def test_every_index_carries_the_weights_of_its_epoch():
    order = RowOrder([7, 7, 7], group=1, size=2, seed=0)
    assert sorted(order) == [(n, (1.0, 1.0)) for n in (FILLER, 0, 1, 2)]
    order.weights = (0.25, 0.75)
    assert {weights for _, weights in order} == {(0.25, 0.75)}
    assert len(order) == 4


def test_an_epochs_order_hangs_on_seed_and_epoch_alone():
    orders = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        order = RowOrder(range(40), group=4, size=1, seed=seed)
        order.epoch = epoch
        orders[seed, epoch] = list(order)
        assert list(order) == orders[seed, epoch]
    assert len({tuple(order) for order in orders.values()}) == 3


def test_own_answers_must_be_as_many_as_targets():
    row = pairs(1)[0]
    with pytest.raises(ValueError, match="argument"):
        with_own_answers(row, [0], COMPLETIONS)


def test_a_target_that_others_follow_is_still_read_when_it_is_not_learned():
    tree = TokenTree(
        (
            Segment(COMPLETIONS[0]),
            Segment(COMPLETIONS[1], 0, 1),
            Segment(COMPLETIONS[2], 1, 2, kind=1),
        )
    )
    own = tree.only([1])
    assert [s.target for s in own.segments] == [-1, -1, 2]
    assert own.paths() == [[0, 1, 2]]
    assert [s.target for s in tree.only([0]).segments] == [-1, 1]
