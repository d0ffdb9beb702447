"""A policy-gradient loss over groups of answers, in the manner of ReRe and GRPO.

A row holds what the user chose next and, behind it, a group of G answers that the live model gave,
best first: constrained beams, all valid and all distinct. What is learned is to give the better
ones of a group more probability. Sources: GRPO (arXiv 2402.03300), ReRe (arXiv 2510.12211).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llmrec.model.losses import StepLoss, WholeStepLoss


@dataclass(frozen=True)
class GroupLoss(WholeStepLoss):
    """`-mean A exp(s - stop(s)) + beta KL`, s the log-probabilities of a group's answers.

    The first `horizon` branches of a row are the items that came next, the target before all, the
    target again where a sequence ends before; the others are the group. `gamma`: see `rewards`.
    `rank`: whether misses are told apart by their places. `beta` of the divergence from the
    reference by the estimator k3, `exp(d) - d - 1` with d the reference's log-probability less s.
    """

    horizon: int = 1
    gamma: float = 0.5
    rank: bool = True
    beta: float = 1e-3

    def step_loss(self, values: Tensor, items: Tensor, reference: Tensor | None = None) -> StepLoss:
        """See `WholeStepLoss`; parts are the mean reward of hits and the divergence."""
        scores = values[:, self.horizon :]
        come, group = items[:, : self.horizon], items[:, self.horizon :]
        hits = hit_rewards(come, group, self.gamma)
        advantage = advantages(hits + rank_rewards(hits) if self.rank else hits).to(scores)
        total = -(advantage * torch.exp(scores - scores.detach())).mean()
        divergence = torch.zeros((), dtype=scores.dtype)
        if reference is not None:
            lead = reference[:, self.horizon :] - scores
            divergence = (torch.exp(lead) - lead - 1).mean()
            total = total + self.beta * divergence
        reward = hits.max(dim=1).values.mean()
        return StepLoss(total, {"reward": reward, "divergence": divergence})


def hit_rewards(come: Tensor, group: Tensor, gamma: float) -> Tensor:
    """(E, G) gamma**h for an answer of `group` (E, G) that is the h-th item to come, else 0.

    come (E, H): what the user chose next, from h = 0 on.
    """
    steps = torch.arange(come.shape[1], dtype=torch.float64, device=come.device)
    worth = torch.where(group[:, :, None] == come[:, None, :], gamma**steps, 0.0)
    return worth.max(dim=2).values


def rank_rewards(hits: Tensor) -> Tensor:
    """(E, G) of misses at place i from 0: -(1 / log2(i + 2)) / sum_j 1 / log2(j + 2).

    0 for hits, and for the whole of a group without any.
    """
    places = torch.arange(hits.shape[1], dtype=torch.float64, device=hits.device)
    discount = 1 / torch.log2(places + 2)
    missed = (hits == 0) & (hits > 0).any(dim=1, keepdim=True)
    return torch.where(missed, -discount / discount.sum(), 0.0)


def advantages(rewards: Tensor) -> Tensor:
    """(E, G) rewards less their group's mean, over its standard deviation; 0 where that is 0."""
    apart = rewards - rewards.mean(dim=1, keepdim=True)
    spread = rewards.std(dim=1, keepdim=True, correction=0)
    equal = rewards.max(dim=1, keepdim=True).values == rewards.min(dim=1, keepdim=True).values
    return torch.where(equal, 0.0, apart / torch.where(equal, 1.0, spread))
