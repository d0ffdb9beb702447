"""Losses: what the trainer learns from, as objects over the log-probabilities of branches.

A loss says what a step costs; the trainer learns branches by weight and knows no kind of it. The
plain `Loss` is a sum over targets, so each branch's weight is known beforehand. A `WholeStepLoss`
compares branches and examples of an optimiser step with each other, which no sum over
micro-batches does: the step is read once without gradients, the loss is differentiated by the
branches' log-probabilities, and what comes out are the weights with which the branches are then
learned micro-batch by micro-batch. The gradient is that of the whole step. Knows neither recipes
nor titles.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from llmrec.model.set_losses import log_threshold, set_distance, set_size
from llmrec.model.softmax import Softmax
from llmrec.text.tree import FlatTree

# Of the live model and a prepared batch: (G,) log-probabilities of its branches elsewhere.
Reference = Callable[[nn.Module, dict[str, Any]], Tensor]


@dataclass(frozen=True)
class Loss:
    """Cross-entropy: minus the log-probability of each target, a mean over the whole step.

    `kind_weights`: what the kinds of branches weigh where no curriculum says otherwise.
    """

    kind_weights: ClassVar[tuple[float, ...]] = (1.0, 1.0)  # real ones, a model's own answers
    whole_step: ClassVar[bool] = False  # whether the trainer asks `WholeStepLoss.weigh`

    softmax: Softmax
    # (N,) what a target that is that item weighs; None: every one the same.
    importance: Tensor | None = field(default=None, kw_only=True, repr=False)

    def prepare(self, rows: Sequence[FlatTree]) -> dict[str, Any]:
        """The batch of some rows, as tensors; `kinds` (G,) are those of its G branches.

        Where targets differ in importance, `importance` (G,) is what the branches weigh.
        """
        batch = self.softmax.prepare(rows)
        if self.importance is None or self.whole_step:
            return batch
        items = np.concatenate([_items_of(row) for row in rows])
        return {**batch, "importance": self.importance[torch.from_numpy(items.astype(np.int64))]}


@dataclass(frozen=True)
class KeptValues:
    """A reference that was read before: (R, n) its values of each training row's n branches."""

    values: Tensor

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """(G,) those of a batch's branches; the model is not read."""
        rows = batch["row_numbers"]
        return self.values.to(rows.device)[rows].flatten().to(torch.float32)


@dataclass(frozen=True)
class StepLoss:
    """The loss of a step, and by name what it is made of; each a () tensor."""

    total: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True)
class WholeStepLoss(Loss, ABC):
    """A loss over all branches of a step; every row has equally many, the target before all others.

    Subclasses say `step_loss`. `reference`: where the log-probabilities come from that the live
    model's are compared with; None: with nothing.
    """

    # Only targets count as such; what other branches weigh is found out for each step.
    kind_weights: ClassVar[tuple[float, ...]] = (1.0, 0.0, 0.0)
    whole_step: ClassVar[bool] = True

    reference: Reference | None = field(default=None, kw_only=True, repr=False)

    @abstractmethod
    def step_loss(self, values: Tensor, items: Tensor, reference: Tensor | None = None) -> StepLoss:
        """The loss of E examples of n branches each.

        values (E, n): log-probabilities, in nats; items (E, n): the positions that they are of;
        reference (E, n): the other model's values, where there is one.
        """

    def kinds(self, branches: int) -> list[int]:
        """(branches,) the kinds that a row's branches must have, in their order."""
        return [0] + [1] * (branches - 1)

    def prepare(self, rows: Sequence[FlatTree]) -> dict[str, Any]:
        """The batch of E rows; `items` (E, n) are the positions of its branches.

        Raises ValueError for rows of another form, or of unequal numbers of branches.
        """
        batch = super().prepare(rows)
        count = rows[0].branch_count
        kinds = self.kinds(count)
        if any(row.kinds.tolist() != kinds for row in rows):
            raise ValueError(
                f"rows of a batch need equally many branches, of kinds {kinds} as the first row's "
                f"{count}"
            )
        items = np.stack([_items_of(row) for row in rows])
        return {**batch, "items": torch.from_numpy(items.astype(np.int64))}

    def read(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """(1, G) log-probabilities of a batch's branches; (2, G) with the reference's behind."""
        values = [self.softmax.branch_log_probabilities(model, batch)]
        if self.reference is not None:
            values.append(self.reference(model, batch))
        return torch.stack(values)

    def weigh(
        self, batches: Sequence[dict[str, Any]], read: Sequence[Tensor], accelerator: Any
    ) -> dict[str, float]:
        """Weigh the branches of a step by its loss; returns the loss's parts.

        `read`: for each micro-batch of this process what `read` gave. Sets `weights`, and
        `offset`: minus the weighted sum over the step's targets, plus the offset, has the gradient
        of the step's loss, and over all micro-batches and processes its value. Rows whose target
        weighs 0 count nowhere.
        """
        shapes = [batch["items"].shape for batch in batches]
        # (E, models, n)
        mine = torch.cat(
            [r.reshape(len(r), *s).transpose(0, 1) for r, s in zip(read, shapes, strict=True)]
        )
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
        leaf = every[:, 0].double().requires_grad_()
        known = every[:, 1].double() if every.shape[1] > 1 else None
        with torch.enable_grad():
            loss = self.step_loss(leaf[real], items[real], None if known is None else known[real])
            [gradient] = torch.autograd.grad(loss.total, leaf)
        total = float(loss.total.detach())
        targets, begin = int(real.sum()), 0
        for batch, values, shape in zip(batches, read, shapes, strict=True):
            weights = -gradient[at][begin : begin + shape[0]].flatten() * targets
            share = float(real[at][begin : begin + shape[0]].sum()) / targets
            linear = float((weights * values[0].cpu().double()).sum()) / targets
            batch["weights"] = weights.float()
            batch["offset"] = torch.tensor(total * share + linear)
            begin += shape[0]
        return {name: float(part.detach()) for name, part in loss.parts.items()}


@dataclass(frozen=True)
class RowLoss(WholeStepLoss, ABC):
    """A mean over the rows of a step, each weighed by the importance of its target."""

    @abstractmethod
    def of_rows(self, values: Tensor, reference: Tensor | None) -> Tensor:
        """(E,) the losses of rows whose log-probabilities are `values` (E, n), the target first."""

    def step_loss(self, values: Tensor, items: Tensor, reference: Tensor | None = None) -> StepLoss:
        """See `WholeStepLoss`."""
        losses = self.of_rows(values, reference)
        if self.importance is None:
            return StepLoss(losses.mean(), {})
        weights = self.importance[items[:, 0]].to(losses)
        return StepLoss((weights * losses).sum() / weights.sum(), {})


@dataclass(frozen=True)
class ListwiseLoss(RowLoss):
    """Minus the log-probability of the target among the candidates of its row.

    That is under the softmax of their summed log-probabilities over `tau`.
    """

    tau: float = 1.0

    def of_rows(self, values: Tensor, reference: Tensor | None) -> Tensor:
        """See `RowLoss`; log-probabilities of a reference are taken off before."""
        scores = values if reference is None else values - reference
        return -(scores / self.tau).log_softmax(dim=1)[:, 0]


@dataclass(frozen=True)
class DPOLoss(RowLoss):
    """Direct preference optimisation: the target against each other branch by itself.

    `-log sigmoid(beta (r_target - r_other))`, r what a log-probability has gained over the
    reference's; a mean over the others. Source: Rafailov et al. 2023 (arXiv 2305.18290).
    """

    beta: float = 1.0

    def of_rows(self, values: Tensor, reference: Tensor | None) -> Tensor:
        """See `RowLoss`."""
        lead = _lead(values, reference)
        return -torch.nn.functional.logsigmoid(self.beta * lead).mean(dim=1)


@dataclass(frozen=True)
class SDPOLoss(RowLoss):
    """S-DPO: the target against all other branches at once.

    `-log sigmoid(-logsumexp_m beta (r_m - r_target))`; with one other branch it is DPO. Source:
    Chen et al. 2024 (arXiv 2406.09215).
    """

    beta: float = 1.0

    def of_rows(self, values: Tensor, reference: Tensor | None) -> Tensor:
        """See `RowLoss`."""
        behind = torch.logsumexp(-self.beta * _lead(values, reference), dim=1)
        return -torch.nn.functional.logsigmoid(-behind)


def _lead(values: Tensor, reference: Tensor | None) -> Tensor:
    """(E, n - 1) how much more the first branch has gained over the reference than each other."""
    gained = values if reference is None else values - reference
    return gained[:, :1] - gained[:, 1:]


def _items_of(row: FlatTree) -> np.ndarray:
    """(G,) the positions that a row's branches are of."""
    return row.targets[np.searchsorted(row.branches, np.arange(row.branch_count))]


@dataclass(frozen=True)
class ConformalLoss(WholeStepLoss):
    """Cross-entropy + `beta` * set size + `gamma` * set distance over rows of two views.

    A row holds a target among candidates and, behind a longer history, as many candidates again
    (see `rows.with_candidates`); the threshold of the sets is a quantile over the step's targets.
    `alpha`: share of the targets that may stay outside their sets. `nearest`: items of a set whose
    distance counts. `temperature`: of smooth sets; None: hard ones. `vectors` (N, d): of the
    catalog's items, for the distance; they are not learned, so the distance of hard sets has no
    gradient. Needed where `gamma` is above 0. Source: CPFT (arXiv 2402.08976).
    """

    alpha: float = 0.3
    beta: float = 1.0
    gamma: float = 0.0
    nearest: int = 10
    temperature: float | None = None
    vectors: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.gamma > 0 and self.vectors is None:
            raise ValueError("gamma above 0 needs the vectors of the items")

    def kinds(self, branches: int) -> list[int]:
        """A target and the candidates of its view, then as many of the second view."""
        half = branches // 2
        return [0] + [1] * (half - 1) + [2] * half

    def step_loss(self, values: Tensor, items: Tensor, reference: Tensor | None = None) -> StepLoss:
        """See `WholeStepLoss`; the first half of the branches is the first view's."""
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
        parts = {"cross_entropy": cross_entropy, "set_size": size, "set_distance": distance}
        return StepLoss(total, parts)

    def _similarity(self, target: Tensor, others: Tensor) -> Tensor:
        """(E, C) cosine between the vectors of `target` (E, 1) and of `others` (E, C)."""
        assert self.vectors is not None  # noqa: S101  see __post_init__
        return torch.cosine_similarity(self.vectors[target], self.vectors[others], dim=-1)
