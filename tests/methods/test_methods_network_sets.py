"""CPFT's losses at every place of a network against a loop over prefixes written here."""

import math

import numpy as np
import pytest
import torch

from llmrec.baselines import catalog_loss
from llmrec.baselines.fdsa import FDSA
from llmrec.baselines.fine_tuning import places_of
from llmrec.baselines.gru4rec import GRU4Rec
from llmrec.baselines.rows import Rows
from llmrec.baselines.sasrec import SASRec
from llmrec.methods import network_sets
from llmrec.methods.network_sets import places_loss
from llmrec.recipe.conformal import Conformal

ITEMS = 12
ROWS = [([0, 1, 2, 3, 4, 0], 5), ([5, 6, 1], 2), ([7, 8], 1), ([9, 3, 10, 11], 3)]
SASREC = SASRec(hidden=8, layers=1, max_length=8, dropout=0.0)


def network_of(sizes=SASREC, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = sizes.network(ITEMS, [f"a{n % 3} b{n % 4}" for n in range(ITEMS)]).double()
        with torch.no_grad():
            network.items.weight.mul_(4.0)  # probabilities far enough apart
    return network


def batch_of(rows=ROWS):
    read = np.array([len(items) for items, _ in rows])
    items = torch.tensor([item for row, _ in rows for item in row])
    return Rows.of(items, np.cumsum(read) - read, read, np.array([places for _, places in rows]))


def found(network, conformal, rows=ROWS, ahead=1):
    """The loss, its parts, and the gradient of every weight."""
    network.zero_grad()
    total, parts = places_loss(conformal)(network, *places_of(network, batch_of(rows), ahead))
    total.backward()
    values = {name: part.item() for name, part in parts.items()}
    return total.item(), values, {n: p.grad.clone() for n, p in network.named_parameters()}


def by_loop(network, conformal, rows=ROWS, ahead=1):
    """The same, prefix by prefix: one pass for each view of each place."""
    network.zero_grad()
    truths, sets, labels = [], [], []
    for items, places in rows:
        for place in range(1, places + 1):
            train = network(torch.tensor([items[:place]]))[0, -1]
            further = network(torch.tensor([items[: place + ahead]]))[0, -1]
            label = items[place]
            scores, others = (network.items.weight @ h + network.bias for h in (train, further))
            truths.append(scores[label] - torch.logsumexp(scores, 0))
            sets.append(torch.exp(others - torch.logsumexp(others, 0)))
            labels.append(label)
    count = len(truths)
    order = min(1.0, conformal.alpha * (1 + 1 / count))
    values = np.array([math.exp(t.item()) for t in truths])
    eta = float(np.quantile(values, order, method="higher"))
    vectors = network.items.weight
    size = distance = torch.zeros((), dtype=torch.float64)
    for p, label in zip(sets, labels, strict=True):
        members = [n for n in range(ITEMS) if p[n].item() > eta * (1 + 1e-12)]
        size = size + len(members) + sum(p[n] for n in range(ITEMS) if n not in members)
        apart = [
            1 - torch.cosine_similarity(vectors[label], vectors[n], dim=0)
            if conformal.distance == "cosine"
            else torch.linalg.vector_norm(vectors[label] - vectors[n])
            for n in members
            if n != label
        ]
        nearest = sorted(apart, key=lambda d: d.item())[: conformal.nearest]
        if nearest:
            of_set = {"mean": sum(nearest) / len(nearest), "min": nearest[0], "max": nearest[-1]}
            distance = distance + of_set[conformal.linkage].clamp(min=0)
    ce, size, distance = -sum(truths) / count, size / count, distance / count
    total = ce + conformal.beta * size + conformal.gamma * distance
    total.backward()
    parts = {"ce": ce.item(), "set_size": size.item(), "set_distance": distance.item()}
    return total.item(), parts, {n: p.grad.clone() for n, p in network.named_parameters()}


def same(ours, theirs):
    assert ours[0] == pytest.approx(theirs[0], abs=1e-9)
    for name, value in ours[1].items():
        assert value == pytest.approx(theirs[1][name], abs=1e-9), name
    for name, gradient in theirs[2].items():
        torch.testing.assert_close(ours[2][name], gradient, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("cells", [1, 5 * ITEMS, 2**20])
@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.8])
@pytest.mark.parametrize(
    "sizes",
    [
        SASREC,
        GRU4Rec(hidden=8, max_length=8, dropout=0.0),
        FDSA(hidden=8, layers=1, max_length=8, dropout=0.0),
    ],
)
def test_losses_at_all_places_equal_a_loop_over_prefixes(monkeypatch, sizes, alpha, cells):
    for module in (catalog_loss, network_sets):
        monkeypatch.setattr(module, "CELLS", cells)
    network, conformal = network_of(sizes), Conformal(alpha=alpha, nearest=3)
    ours, theirs = found(network, conformal), by_loop(network, conformal)
    assert set(ours[1]) == {"ce", "set_size", "set_distance"}
    assert theirs[1]["set_distance"] > 0.05
    assert 0.5 < theirs[1]["set_size"] < ITEMS - 0.1
    same(ours, theirs)


@pytest.mark.parametrize("linkage", ["mean", "min", "max"])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("nearest", [1, 4, 50])
def test_distances_equal_the_loop(distance, linkage, nearest):
    network = network_of(seed=1)
    conformal = Conformal(distance=distance, linkage=linkage, nearest=nearest, gamma=2.0)
    same(found(network, conformal), by_loop(network, conformal))


def test_the_view_one_item_further_equals_the_loop():
    network, conformal = network_of(seed=2), Conformal(nearest=3)
    rows = [([0, 1, 2, 3], 2), ([4, 5, 6], 1), ([7, 8], 1)]  # two windows go on, one does not
    further, near = (found(network, conformal, rows, ahead) for ahead in (2, 1))
    same(further, by_loop(network, conformal, rows, 2))
    assert further[1]["set_size"] != near[1]["set_size"]


def test_a_part_of_weight_0_is_left_out_and_changes_nothing():
    network = network_of(seed=3)
    for off, name in (("beta", "set_size"), ("gamma", "set_distance")):
        conformal = Conformal(**{off: 0.0})
        ours, theirs = found(network, conformal), by_loop(network, conformal)
        assert name not in ours[1]
        same(ours, theirs)


def test_smooth_sets_become_the_hard_ones_as_the_temperature_falls():
    network = network_of(seed=4)
    hard = found(network, Conformal(nearest=3))
    sharp = found(network, Conformal(nearest=3, smooth=True, temperature=1e-7))
    flat = found(network, Conformal(nearest=3, smooth=True, temperature=1.0))
    # The threshold is one place's truth, and the set view of the place before has that very item at
    # the threshold: smoothly it is half inside, hard it is outside.
    at_threshold = 0.5 / sum(places for _, places in ROWS)
    more = sharp[1]["set_size"] - hard[1]["set_size"]
    assert 0 <= more <= at_threshold
    assert sharp[1]["set_distance"] == pytest.approx(hard[1]["set_distance"], abs=at_threshold)
    assert flat[0] != pytest.approx(hard[0], abs=0.05)
    assert all(torch.isfinite(gradient).all() for gradient in flat[2].values())
