"""Rewards, advantages and the loss over groups of answers, worked by hand and by loops."""

from math import log2

import numpy as np
import pytest
import torch

from llmrec.model.group_losses import GroupLoss, advantages, hit_rewards, rank_rewards
from llmrec.model.softmax import FullSoftmax

GENERATOR = torch.Generator().manual_seed(5)


def loss_of(**settings):
    return GroupLoss(FullSoftmax(), **settings)


def test_rewards_are_the_fractions_of_the_definition():
    come = torch.tensor([[7, 3], [1, 1], [5, 5]])
    group = torch.tensor([[3, 9, 7, 2], [4, 1, 6, 8], [0, 1, 2, 3]])
    hits = hit_rewards(come, group, gamma=0.5)
    assert hits.tolist() == [[0.5, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    total = 1 + 1 / log2(3) + 1 / 2 + 1 / log2(5)
    expected = [
        [0, -1 / log2(3) / total, 0, -1 / log2(5) / total],
        [-1 / total, 0, -1 / 2 / total, -1 / log2(5) / total],
        [0, 0, 0, 0],
    ]
    np.testing.assert_allclose(rank_rewards(hits), expected, atol=1e-12)


def test_advantages_have_mean_0_and_deviation_1_or_are_0():
    found = advantages(torch.tensor([[1.0, 0, 0, 0], [0.2, 0.2, 0.2, 0.2], [0, 0, 1, 1]]).double())
    np.testing.assert_allclose(found[0], np.array([3, -1, -1, -1]) / 3**0.5)
    assert found[1].tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(found[2], [-1, -1, 1, 1])


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_where_rewards_are_equal_the_gradient_is_0(beta):
    """No answer of the group is what came next, and the model is still its reference."""
    values = torch.randn(3, 5, generator=GENERATOR).double().requires_grad_()
    items = torch.tensor([[9, 1, 2, 3, 4]] * 3)
    loss = loss_of(beta=beta).step_loss(values, items, values.detach())
    [gradient] = torch.autograd.grad(loss.total, values)
    assert gradient.abs().max() == 0
    items[0, 3] = 9
    loss = loss_of(beta=beta).step_loss(values, items, values.detach())
    [gradient] = torch.autograd.grad(loss.total, values)
    assert (gradient[0, 1:] != 0).all()
    assert gradient[0, 0] == 0
    assert gradient[1:].abs().max() == 0


@pytest.mark.parametrize("rank", [False, True])
@pytest.mark.parametrize("horizon", [1, 2])
def test_the_loss_is_what_a_loop_over_answers_gives(horizon, rank):
    """Value and gradient against d/ds of -A p(s) / p(s') at s' = s and of the estimator k3."""
    values = torch.randn(4, horizon + 4, generator=GENERATOR).double().requires_grad_()
    known = values.detach() + torch.randn(4, horizon + 4, generator=GENERATOR).double() / 3
    items = torch.tensor(
        [[0, 0, 1, 2, 3, 4], [5, 2, 2, 1, 0, 6], [7, 1, 3, 7, 1, 2], [6, 6, 6, 1, 2, 3]]
    )
    items = items[:, 2 - horizon :]
    loss = loss_of(horizon=horizon, gamma=0.25, rank=rank, beta=0.5).step_loss(values, items, known)
    expected, slopes, divergence = 0.0, torch.zeros_like(values), 0.0
    discounts = [1 / log2(i + 2) for i in range(4)]
    for row in range(4):
        come, group = items[row, :horizon].tolist(), items[row, horizon:].tolist()
        hits = [max([0.25**h for h in range(horizon) if come[h] == item] or [0]) for item in group]
        rewards = [
            hit or (-discounts[i] / sum(discounts) if rank and any(hits) else 0)
            for i, hit in enumerate(hits)
        ]
        spread = np.std(rewards)
        for i, reward in enumerate(rewards):
            advantage = (reward - np.mean(rewards)) / spread if spread else 0
            lead = float((known - values.detach())[row, horizon + i])
            divergence += (np.exp(lead) - lead - 1) / 16
            expected += -advantage / 16
            slopes[row, horizon + i] = -advantage / 16 + 0.5 * (1 - np.exp(lead)) / 16
    assert float(loss.total.detach()) == pytest.approx(expected + 0.5 * divergence)
    assert float(loss.parts["divergence"].detach()) == pytest.approx(divergence)
    [gradient] = torch.autograd.grad(loss.total, values)
    torch.testing.assert_close(gradient, slopes, rtol=1e-9, atol=1e-12)
    assert slopes.abs().max() > 0.01
