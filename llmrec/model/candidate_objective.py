"""An objective over candidates: cross-entropy, and the losses of conformal prediction sets.

A row holds a target among candidates and, behind a longer history, as many candidates again (see
`rows.with_candidates`). The threshold of the sets is a quantile over all examples of an optimiser
step, so the loss is no sum over micro-batches. Therefore the step is read once without gradients,
the loss is differentiated by the branches' log-probabilities, and what comes out are the weights
with which the branches are then learned micro-batch by micro-batch: the gradient is that of the
whole step. Source: CPFT (arXiv 2402.08976). Knows neither recipes nor titles.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from llmrec.model.objectives import Objective, log_threshold, set_distance, set_size
from llmrec.text.tree import FlatTree


@dataclass(frozen=True)
class StepLoss:
    """The loss of a step, a sum, and what it is made of; each a () tensor."""

    total: Tensor
    cross_entropy: Tensor
    set_size: Tensor
    set_distance: Tensor

    def parts(self) -> dict[str, float]:
        """What the log says of it."""
        return {
            "cross_entropy": float(self.cross_entropy.detach()),
            "set_size": float(self.set_size.detach()),
            "set_distance": float(self.set_distance.detach()),
        }


@dataclass(frozen=True)
class CandidateObjective(Objective):
    """Cross-entropy + `beta` * set size + `gamma` * set distance over rows of two views.

    `alpha`: share of the targets that may stay outside their sets. `nearest`: items of a set whose
    distance counts. `temperature`: of smooth sets; None: hard ones. `vectors` (N, d): of the
    catalog's items, for the distance; they are not learned, so the distance of hard sets has no
    gradient. Needed where `gamma` is above 0.
    """

    # Only targets count as such; what candidates weigh is found out for each step.
    kind_weights: ClassVar[tuple[float, ...]] = (1.0, 0.0, 0.0)

    alpha: float = 0.3
    beta: float = 1.0
    gamma: float = 0.0
    nearest: int = 10
    temperature: float | None = None
    vectors: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.gamma > 0 and self.vectors is None:
            raise ValueError("gamma above 0 needs the vectors of the items")

    def prepare(self, rows: Sequence[FlatTree]) -> dict[str, Any]:
        """The batch of E rows; `items` (E, 2C) are the positions of its branches."""
        batch = super().prepare(rows)
        half = rows[0].branch_count // 2
        kinds = np.array([0] + [1] * (half - 1) + [2] * half)
        if any(not np.array_equal(row.kinds, kinds) for row in rows):
            raise ValueError(
                "rows of a batch need a target and equally many candidates in each of two views"
            )
        items = [row.targets[np.searchsorted(row.branches, np.arange(2 * half))] for row in rows]
        return {**batch, "items": torch.from_numpy(np.stack(items).astype(np.int64))}

    def step_loss(self, values: Tensor, items: Tensor) -> StepLoss:
        """The loss of E examples: values (E, 2C) log-probabilities of the items (E, 2C).

        The first C are the first view's, the target before all others.
        """
        count = values.shape[1] // 2
        log_truth = values[:, :count].log_softmax(dim=1)[:, 0]
        log_p = values[:, count:].log_softmax(dim=1)
        log_eta = log_threshold(log_truth, self.alpha, self.temperature)
        cross_entropy = -values[:, 0].mean()
        size = set_size(log_p, log_eta, self.temperature)
        total = cross_entropy + self.beta * size
        distance = torch.zeros(())
        if self.gamma > 0:
            target, others = items[:, :1], items[:, count:]
            distance = set_distance(
                log_p,
                log_eta,
                self._similarity(target, others).to(log_p),
                others == target,
                self.nearest,
                self.temperature,
            )
            total = total + self.gamma * distance
        return StepLoss(total, cross_entropy, size, distance)

    def _similarity(self, target: Tensor, others: Tensor) -> Tensor:
        """(E, C) cosine between the vectors of `target` (E, 1) and of `others` (E, C)."""
        assert self.vectors is not None  # noqa: S101  see __post_init__
        return torch.cosine_similarity(self.vectors[target], self.vectors[others], dim=-1)

    def weigh(
        self, batches: Sequence[dict[str, Any]], values: Sequence[Tensor], accelerator: Any
    ) -> dict[str, float]:
        """Weigh the branches of a step by its loss; returns the loss's parts.

        `values`: for each micro-batch of this process the log-probabilities of its branches. Sets
        `weights`, and `offset`: minus the weighted sum over the step's targets, plus the offset,
        has the gradient of the step's loss, and over all micro-batches and processes its value.
        Rows whose target weighs 0 count nowhere.
        """
        shapes = [batch["items"].shape for batch in batches]
        mine = torch.cat([v.reshape(s) for v, s in zip(values, shapes, strict=True)])
        counted = torch.cat(
            [
                batch["weights"].reshape(s)[:, 0] > 0
                for batch, s in zip(batches, shapes, strict=True)
            ]
        )
        items = torch.cat([batch["items"] for batch in batches])
        parts = (mine, counted.to(mine.device), items.to(mine.device))
        # Processes hold equally many rows of a step, this one's at its own place.
        at = slice(accelerator.process_index * len(mine), None)
        if accelerator.num_processes > 1:
            parts = tuple(accelerator.gather(part.contiguous()) for part in parts)
        every, real, items = (part.cpu() for part in parts)
        leaf = every.double().requires_grad_()
        with torch.enable_grad():
            loss = self.step_loss(leaf[real], items[real])
            [gradient] = torch.autograd.grad(loss.total, leaf)
        total = float(loss.total.detach())
        targets, begin = int(real.sum()), 0
        for batch, value, shape in zip(batches, values, shapes, strict=True):
            weights = -gradient[at][begin : begin + shape[0]].flatten() * targets
            share = float(real[at][begin : begin + shape[0]].sum()) / targets
            known = float((weights * value.cpu().double()).sum()) / targets
            batch["weights"] = weights.float()
            batch["offset"] = torch.tensor(total * share + known)
            begin += shape[0]
        return loss.parts()
