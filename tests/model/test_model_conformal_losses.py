"""Threshold, set size and set distance against loops written here."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from llmrec.model.set_losses import log_threshold, membership, set_distance, set_size

TEMPERATURES = [None, 0.3, 2.0]
ALPHAS = ["0.01", "0.1", "0.25", "0.3", "0.5", "0.75", "0.9", "0.99"]


def draw(seed, rows=5, items=8):
    """log_p (B, N) with gradient, similarity (B, N) with gradient, is_label (B, N)."""
    rng = np.random.default_rng(seed)
    log_p = torch.from_numpy(rng.normal(0, 2, (rows, items))).log_softmax(dim=1)
    similarity = torch.from_numpy(rng.uniform(-1, 1, (rows, items)))
    labels = torch.from_numpy(rng.integers(items, size=rows))
    is_label = torch.nn.functional.one_hot(labels, items).bool()
    return log_p.requires_grad_(), similarity.requires_grad_(), is_label


def middle(log_p):
    """A threshold that some items are above and others below."""
    return log_p.detach().median() + 0.01


def membership_loop(value, eta, temperature):
    if temperature is None:
        return 1.0 if value > eta else 0.0
    return 1.0 / (1.0 + math.exp(min(700.0, (eta - value) / temperature)))


def size_loop(log_p, eta, temperature):
    total = 0.0
    for row in log_p.tolist():
        for value in row:
            inside = membership_loop(value, eta, temperature)
            total += inside + (1.0 - inside) * math.exp(value)
    return total / len(log_p)


def distance_loop(log_p, eta, similarity, is_label, nearest, temperature):
    total = 0.0
    for row, likeness, own in zip(
        log_p.tolist(), similarity.tolist(), is_label.tolist(), strict=True
    ):
        found = []
        for value, alike, label in zip(row, likeness, own, strict=True):
            inside = membership_loop(value, eta, temperature)
            if not label and inside > 0:
                found.append((inside * (alike + 2.0), inside, alike))
        found = sorted(found, reverse=True)[:nearest]
        if found:
            mean = sum(m * a for _, m, a in found) / sum(m for _, m, _ in found)
            total += max(0.0, max(m for _, m, _ in found) * (1.0 - mean))
    return total / len(log_p)


def threshold_loop(values, alpha, temperature):
    count = len(values)
    order = min(Fraction(1), Fraction(alpha) * (1 + Fraction(1, count)))
    picked = sorted(values)[math.ceil(order * (count - 1))]
    if temperature is None:
        return picked
    weights = [math.exp(-(((v - picked) / temperature) ** 2)) for v in values]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_threshold_equals_a_loop(alpha, temperature):
    for count in [*range(1, 42), 99, 100, 101, 128]:
        values = np.random.default_rng(count).normal(-4, 2, count)
        found = log_threshold(torch.from_numpy(values), float(alpha), temperature)
        expected = threshold_loop(values.tolist(), alpha, temperature)
        assert found.shape == ()
        assert float(found) == pytest.approx(expected, abs=1e-12), count


@pytest.mark.parametrize("alpha", ALPHAS)
def test_hard_threshold_is_the_higher_quantile_of_numpy(alpha):
    compared = 0
    for count in [*range(1, 60), 128, 1000]:
        values = np.random.default_rng(count).normal(-4, 2, count)
        order = min(1.0, float(alpha) * (1 + 1 / count))
        place = order * (count - 1)
        if 0 < abs(place - round(place)) < 1e-9:
            continue  # numpy's own rounding decides there; the loop above is exact
        compared += 1
        expected = np.quantile(values, order, method="higher")
        assert float(log_threshold(torch.from_numpy(values), float(alpha))) == expected, count
    assert compared > 40


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("seed", range(4))
def test_membership_and_size_equal_loops(seed, temperature):
    log_p, _, _ = draw(seed)
    eta = middle(log_p)
    inside = membership(log_p, eta, temperature).detach()
    expected = [
        [membership_loop(v, float(eta), temperature) for v in row] for row in log_p.tolist()
    ]
    np.testing.assert_allclose(inside.numpy(), expected, atol=1e-12)
    assert inside.dtype == log_p.dtype
    assert 0 < float(inside.sum()) < inside.numel()
    found = set_size(log_p, eta, temperature)
    assert found.item() == pytest.approx(size_loop(log_p, float(eta), temperature), abs=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("nearest", [1, 3, 8, 50])
@pytest.mark.parametrize("seed", range(3))
def test_distance_equals_a_loop(seed, nearest, temperature):
    log_p, similarity, is_label = draw(seed)
    eta = middle(log_p)
    found = set_distance(log_p, eta, similarity, is_label, nearest, temperature)
    expected = distance_loop(log_p, float(eta), similarity, is_label, nearest, temperature)
    assert found.shape == ()
    assert expected > 0.01
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_an_item_at_the_threshold_is_outside_and_the_true_one_does_not_count():
    log_p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    assert membership(log_p, log_p[0, 1]).tolist() == [[1, 0, 0]]
    similarity = torch.tensor([[1.0, 0.25, -0.5]], dtype=torch.float64)
    is_label = torch.tensor([[True, False, False]])
    assert set_distance(log_p, log_p[0, 1], similarity, is_label, 2).item() == 0
    low = torch.tensor(-9.0, dtype=torch.float64)
    assert set_distance(log_p, low, similarity, is_label, 1).item() == pytest.approx(0.75)
    assert set_distance(log_p, low, similarity, is_label, 9).item() == pytest.approx(1.125)


def test_unlike_members_come_before_items_outside():
    log_p = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log()
    similarity = torch.tensor([[-1.0, 0.9, 1.0]], dtype=torch.float64)
    is_label = torch.tensor([[False, False, True]])
    eta = torch.tensor(0.5, dtype=torch.float64).log()
    assert set_distance(log_p, eta, similarity, is_label, 1).item() == pytest.approx(2)


@pytest.mark.parametrize("rows", [1, 4])
def test_smooth_gradients_are_finite_differences_through_the_threshold(rows):
    log_p, similarity, is_label = draw(7, rows)
    log_truth = torch.from_numpy(np.random.default_rng(8).normal(-2, 1, rows)).requires_grad_()

    def size(p, truth):
        return set_size(p, log_threshold(truth, 0.4, 0.6), 0.6)

    def distance(p, alike, truth):
        return set_distance(p, log_threshold(truth, 0.4, 0.6), alike, is_label, 3, 0.6)

    assert torch.autograd.gradcheck(size, (log_p, log_truth))
    assert torch.autograd.gradcheck(distance, (log_p, similarity, log_truth))
    for value in (size(log_p, log_truth), distance(log_p, similarity, log_truth)):
        assert torch.autograd.grad(value, log_truth)[0].abs().min() > 0


def test_hard_gradients_are_the_published_ones():
    log_p, similarity, is_label = draw(3)
    log_truth = (log_p.detach()[:, 2] + 0.01).requires_grad_()
    eta = log_threshold(log_truth, 0.4)
    assert not eta.requires_grad
    size = set_size(log_p, eta)
    gradient = torch.autograd.grad(size, [log_p, log_truth], allow_unused=True)
    outside = log_p.detach() <= eta
    assert 0 < int(outside.sum()) < outside.numel()
    expected = torch.where(outside, log_p.detach().exp() / len(log_p), 0.0)
    torch.testing.assert_close(gradient[0], expected, rtol=0, atol=1e-14)
    assert gradient[1] is None

    distance = set_distance(log_p, eta, similarity, is_label, 2)
    through = torch.autograd.grad(distance, [similarity, log_p, log_truth], allow_unused=True)
    assert through[1] is None
    assert through[2] is None
    wanted = torch.zeros_like(similarity)
    for row in range(len(log_p)):
        members = [i for i in range(log_p.shape[1]) if not outside[row, i] and not is_label[row, i]]
        members = sorted(members, key=lambda i: -similarity[row, i].item())[:2]
        for item in members:
            wanted[row, item] = -1.0 / len(members) / len(log_p)
    torch.testing.assert_close(through[0], wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_smooth_becomes_hard_as_the_temperature_goes_to_0(seed):
    log_p, similarity, is_label = draw(seed)
    log_truth = torch.from_numpy(np.random.default_rng(seed).normal(-2, 1, 5))
    hard, smooth = log_threshold(log_truth, 0.3), log_threshold(log_truth, 0.3, 1e-5)
    assert smooth.item() == pytest.approx(hard.item(), abs=1e-6)
    assert set_size(log_p, smooth, 1e-5).item() == pytest.approx(
        set_size(log_p, hard).item(), abs=1e-6
    )
    for nearest in (1, 3, 20):
        both = [
            set_distance(log_p, eta, similarity, is_label, nearest, temperature).item()
            for eta, temperature in ((hard, None), (smooth, 1e-5))
        ]
        assert both[0] == pytest.approx(both[1], abs=1e-6)
    far = set_size(log_p, log_threshold(log_truth, 0.3, 2.0), 2.0).item()
    assert abs(far - set_size(log_p, hard).item()) > 1e-3


@pytest.mark.parametrize("temperature", [None, 0.01, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 4])
def test_empty_sets_are_finite_and_have_no_distance(rows, dtype, temperature):
    log_p, similarity, is_label = (
        x.detach().to(x.dtype if x.dtype == torch.bool else dtype) for x in draw(5, rows)
    )
    log_p.requires_grad_()
    similarity.requires_grad_()
    eta = torch.tensor(50.0, dtype=dtype, requires_grad=True)  # above every log-probability
    size = set_size(log_p, eta, temperature)
    distance = set_distance(log_p, eta, similarity, is_label, 3, temperature)
    assert size.item() == pytest.approx(1, abs=1e-5)  # the probabilities of all items
    assert distance.item() == pytest.approx(0, abs=1e-12)
    (size + distance).backward()
    for tensor in (log_p, similarity, eta):
        assert tensor.grad is None or bool(tensor.grad.isfinite().all())
    assert log_p.grad is not None


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_items_that_are_no_candidates_add_nothing(temperature):
    log_p, similarity, is_label = draw(2)
    eta = middle(log_p).requires_grad_()
    padding = torch.full((5, 3), -torch.inf, dtype=torch.float64)
    padded = torch.cat([log_p.detach(), padding], dim=1).requires_grad_()
    alike = torch.cat([similarity.detach(), torch.ones_like(padding)], dim=1).requires_grad_()
    own = torch.cat([is_label, torch.zeros(5, 3, dtype=torch.bool)], dim=1)

    def total(p, similar, labels):
        return set_size(p, eta, temperature) + set_distance(
            p, eta, similar, labels, 20, temperature
        )

    longer, shorter = total(padded, alike, own), total(log_p, similarity, is_label)
    assert longer.item() == pytest.approx(shorter.item(), abs=1e-12)
    longer.backward()
    expected = torch.autograd.grad(shorter, [log_p, similarity])
    for found, wanted in zip((padded.grad, alike.grad), expected, strict=True):
        torch.testing.assert_close(found[:, :8], wanted, rtol=0, atol=1e-12)
        assert (found[:, 8:] == 0).all()
    assert eta.grad is None or bool(eta.grad.isfinite())


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_batch_is_the_mean_of_its_rows(temperature):
    log_p, similarity, is_label = draw(6)
    eta = middle(log_p)
    alone = [
        [
            set_size(log_p[i : i + 1], eta, temperature).item(),
            set_distance(
                log_p[i : i + 1], eta, similarity[i : i + 1], is_label[i : i + 1], 2, temperature
            ).item(),
        ]
        for i in range(5)
    ]
    together = [
        set_size(log_p, eta, temperature).item(),
        set_distance(log_p, eta, similarity, is_label, 2, temperature).item(),
    ]
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-12)
