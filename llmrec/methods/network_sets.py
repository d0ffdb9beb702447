"""The losses of conformal prediction at every place of a network (CPFT, arXiv 2402.08976).

Cross-entropy of the train view, and of the set view beta times the size of its set plus gamma
times the distance of the set's items from the label. With hard sets, as published, the whole
catalog's gradients are made piece by piece on the way, as in `catalog_loss`: both views come from
the same pass and the same logits. Smooth sets go the plain way.

Two details differ from the authors' code. The distance is a mean over places of each place's own
mean, theirs one mean over all items that stand in any set of the batch, so that large sets weigh
more; a place whose set holds nothing else adds 0 here, and is left out there. And their network's
"cosine" is a plain dot product; here it is a cosine.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llmrec.baselines.catalog_loss import CELLS, CELLS_ON_GPU
from llmrec.baselines.fine_tuning import Places, PlacesLoss
from llmrec.baselines.sequential import Network
from llmrec.model.set_losses import log_threshold, set_distance, set_size
from llmrec.recipe.conformal import Conformal


def places_loss(conformal: Conformal) -> PlacesLoss:
    """The loss of a section `conformal`, over the whole catalog."""
    return _smooth(conformal) if conformal.smooth else _hard(conformal)


def _hard(conformal: Conformal) -> PlacesLoss:
    def loss(network: Network, hidden: Tensor, at: Places) -> tuple[Tensor, Mapping[str, Tensor]]:
        nearest = conformal.nearest if conformal.gamma else 0
        metric = (
            _unit(network.items.weight)
            if conformal.distance == "cosine"
            else (network.items.weight)
        )
        total, ce, size, chosen, there = HardSets.apply(
            hidden,
            network.items.weight,
            network.bias,
            at,
            conformal.alpha,
            conformal.beta,
            metric.detach(),
            nearest,
        )
        parts = {"ce": ce}
        if conformal.beta:
            parts["set_size"] = size
        if conformal.gamma:
            distance = _distance(metric, at.labels, chosen, there, conformal)
            total = total + conformal.gamma * distance
            parts["set_distance"] = distance
        return total, {name: part.detach() for name, part in parts.items()}

    return loss


def _smooth(conformal: Conformal) -> PlacesLoss:
    def loss(network: Network, hidden: Tensor, at: Places) -> tuple[Tensor, Mapping[str, Tensor]]:
        log_p = network.logits(hidden).log_softmax(dim=-1)
        truth, temperature = log_p[at.train, at.labels], conformal.temperature
        eta, sets = log_threshold(truth, conformal.alpha, temperature), log_p[at.sets]
        total = -truth.mean()
        parts = {"ce": total}
        if conformal.beta:
            size = set_size(sets, eta, temperature)
            total, parts["set_size"] = total + conformal.beta * size, size
        if conformal.gamma:
            unit = _unit(network.items.weight)
            own = torch.nn.functional.one_hot(at.labels, len(unit)).bool()
            alike = unit[at.labels] @ unit.T
            distance = set_distance(sets, eta, alike, own, conformal.nearest, temperature)
            total = total + conformal.gamma * distance
            parts["set_distance"] = distance
        return total, {name: part.detach() for name, part in parts.items()}

    return loss


class HardSets(torch.autograd.Function):
    """Cross-entropy plus beta times the mean set size; of each set, the items nearest the label.

    hidden (P, D), weight (N, D), bias (N,), B places; metric (N, D): vectors whose distance counts.
    Returns () the sum, () either part, (B, nearest) the nearest other items of each place's set,
    nearest first, and (B, nearest) whether the set holds so many. No gradient goes through the
    threshold, nor through which items a set holds.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        at: Places,
        alpha: float,
        beta: float,
        metric: Tensor,
        nearest: int,
    ) -> tuple[Tensor, ...]:
        rows, count = len(hidden), len(at.labels)
        step = max(1, (CELLS_ON_GPU if hidden.is_cuda else CELLS) // len(weight))
        log_p = torch.addmm(bias, hidden, weight.T)
        for part in _slices(rows, step):
            log_p[part] -= log_p[part].logsumexp(dim=1, keepdim=True)
        truth = log_p[at.train, at.labels]
        eta = log_threshold(truth, alpha)
        chosen, there = _nearest(log_p, eta, at, metric, nearest, step)
        learned = hidden.new_zeros(rows).index_fill_(0, at.train, 1.0 / count)
        weighs = hidden.new_zeros(rows)
        weighs.index_add_(0, at.sets, hidden.new_full((count,), beta / count))
        of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        of_bias, size = torch.zeros_like(bias), hidden.new_zeros(())
        own = at.labels.new_zeros(rows).index_copy_(0, at.train, at.labels)
        for part in _slices(rows, step):
            values, u = log_p[part], weighs[part, None]
            inside = values > eta
            values.exp_()
            outside = values.masked_fill(inside, 0.0)
            mass = outside.sum(dim=1, keepdim=True)
            size += (u * (mass + inside.sum(dim=1, keepdim=True))).sum()
            # Of cross-entropy p - 1 at the label; of a sum of p outside, q - p sum q.
            values.mul_(learned[part, None] - u * mass).addcmul_(outside, u)
            values.scatter_add_(1, own[part, None], -learned[part, None])
            torch.mm(values, weight, out=of_hidden[part])
            of_weight.addmm_(values.T, hidden[part])
            of_bias += values.sum(dim=0)
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        ce = -truth.mean()
        size_once = size / beta if beta else size
        ctx.mark_non_differentiable(ce, size_once, chosen, there)
        return ce + size, ce.clone(), size_once, chosen, there

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for hidden, weight and bias, of the sum alone."""
        made = tuple(gradient * upstream[0] for gradient in ctx.saved_tensors)
        return (*made, None, None, None, None, None)


def _nearest(
    log_p: Tensor, eta: Tensor, at: Places, metric: Tensor, nearest: int, step: int
) -> tuple[Tensor, Tensor]:
    """(B, nearest) items of each set other than the label, the most similar first; which exist."""
    count, nearest = len(at.labels), min(nearest, len(metric))
    chosen = at.labels.new_zeros((count, nearest))
    there = chosen.bool()
    # Nearest by length is likest by this: |a - b|^2 = |a|^2 + |b|^2 - 2 ab; of unit vectors too.
    half = metric.square().sum(dim=1) / 2
    for part in _slices(count if nearest else 0, step):
        labels = at.labels[part]
        alike = torch.addmm(half, metric[labels], metric.T, beta=-1.0)
        alike.masked_fill_(log_p[at.sets[part]] <= eta, -torch.inf)
        alike.scatter_(1, labels[:, None], -torch.inf)
        found = alike.topk(nearest, dim=1)
        chosen[part], there[part] = found.indices, found.values > -torch.inf
    return chosen, there


def _distance(
    metric: Tensor, labels: Tensor, chosen: Tensor, there: Tensor, conformal: Conformal
) -> Tensor:
    """() mean over places of how far the chosen items stand from the label; see `Conformal`."""
    own, others = metric[labels][:, None], metric[chosen]
    if conformal.distance == "cosine":
        apart = 1.0 - (own * others).sum(dim=-1)
    else:
        apart = (own - others).square().sum(dim=-1).clamp(min=1e-12).sqrt()
    held = there.any(dim=1)
    if conformal.linkage == "mean":
        value = (apart * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)
    elif conformal.linkage == "min":
        value = apart.masked_fill(~there, torch.inf).amin(dim=1)
    else:
        value = apart.masked_fill(~there, -torch.inf).amax(dim=1)
    return torch.where(held, value, 0.0).clamp(min=0.0).mean()


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def _slices(count: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]
