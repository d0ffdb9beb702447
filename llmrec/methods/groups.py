"""Learning from rewards for the live model's own answers, in the manner of ReRe (GRPO).

Before every optimiser step the model answers the prompts that the step reads: with the best of each
row's candidates, or with constrained beams over the whole catalog. What it is compared with, for
the divergence, are the weights that training starts from.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmrec.data.candidates import draw_unseen
from llmrec.data.records import Interactions, Ints
from llmrec.errors import DataError
from llmrec.inference.engine import by_beams, closed_items, live_engine
from llmrec.methods.method import Job, Method, Trees, alone
from llmrec.methods.plain import softmax_of
from llmrec.methods.windows import as_examples
from llmrec.model.group_losses import GroupLoss
from llmrec.model.losses import Loss
from llmrec.model.softmax import Softmax
from llmrec.model.trainer import Coming
from llmrec.recipe import Recipe
from llmrec.recipe.training import GRPO as Settings
from llmrec.text.encoding import Ids
from llmrec.text.tree import Segment, TokenTree


class GroupRows(Sequence[TokenTree]):
    """Each window's prompt with what came next and a group of answers behind it.

    `answers`, by row, are the live model's; a row without any has items drawn by the seed, or its
    first candidates.
    """

    def __init__(self, job: Job) -> None:
        self.job, asked = job, _of(job.recipe)
        log = Interactions.read(job.folder.interactions)
        whole = as_examples(job.asked, log)
        self.closed = closed_items(whole.histories(), job.recipe.decode.filter_seen)
        self.come = [_come(log, window.row, asked.horizon) for window in job.asked]
        prompting = job.prompting
        self.candidates: Ints | None = None if prompting is None else prompting.candidates
        self.prompts: list[Ids] = (
            [job.encoder.prompt(window.history).ids for window in job.asked]
            if prompting is None
            else prompting.ids()
        )
        self.answers: dict[int, list[int]] = {}
        least = len(job.encoder.titles) - max(len(np.unique(closed)) for closed in self.closed)
        if self.candidates is None and least < asked.group:
            raise DataError(
                f"a training row has {least} items left to be answered with; objective.grpo.group "
                f"asks for {asked.group}. Lower it"
            )

    def __len__(self) -> int:
        return len(self.come)

    def __getitem__(self, number: Any) -> Any:
        """The row of a number; negative ones count from the end."""
        number = range(len(self))[number]
        completions = self.job.encoder.completions
        group = self.answers.get(number) or self._drawn(number)
        branches = (
            Segment(completions[item], 0, item, kind=min(place, 1))
            for place, item in enumerate([*self.come[number], *group])
        )
        return TokenTree((Segment(self.prompts[number]), *branches))

    def _drawn(self, number: int) -> list[int]:
        count = _of(self.job.recipe).group
        if self.candidates is not None:
            return self.candidates[number][:count].tolist()  # type: ignore[no-any-return]
        generator = np.random.default_rng([self.job.recipe.seed, self.job.asked[number].row])
        closed, size = np.unique(self.closed[number]), len(self.job.encoder.titles)
        return draw_unseen(closed, size, count, generator).tolist()  # type: ignore[no-any-return]


class LiveGroups:
    """What the trainer calls before each step; processes share the prompts."""

    def __init__(self, job: Job, rows: GroupRows) -> None:
        self.rows, self.count = rows, _of(job.recipe).group
        self._engine_of = live_engine(job.encoder, by_beams(job.recipe.decode, self.count))

    def __call__(
        self, model: nn.Module, step: int, coming: Coming
    ) -> tuple[Sequence[TokenTree], dict[str, Any]]:
        """The rows, those of the coming step with the answers of the model as it is now."""
        numbers = coming(1)
        engine, rows = self._engine_of(model), self.rows
        prompts = [rows.prompts[n] for n in numbers]
        if rows.candidates is None:
            found = engine.rank(prompts, [rows.closed[n] for n in numbers])
        else:
            found = engine.choose(prompts, rows.candidates[numbers])
        best = [ranking.positions[: self.count].tolist() for ranking in found.rankings]
        rows.answers = dict(zip(numbers, best, strict=True))
        return rows, {}


class BegunWeights:
    """The model with the weights that training starts from, as a reference."""

    def __init__(self, model: nn.Module, softmax: Softmax) -> None:
        self.softmax = softmax
        self.kept = {name: weight.detach().clone() for name, weight in _trained(model)}

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """(G,) its log-probabilities of a batch's branches."""
        with self._as_begun(model):
            return self.softmax.branch_log_probabilities(model, batch)

    @contextmanager
    def _as_begun(self, model: nn.Module) -> Iterator[None]:
        # Copied and not exchanged: others may know where the weights lie.
        live = {name: weight.detach().clone() for name, weight in _trained(model)}
        try:
            _set(model, self.kept)
            yield
        finally:
            _set(model, live)


def with_begun_weights(job: Job, rows: Trees, model: nn.Module, loss: Loss) -> Loss:
    """The loss with its reference, where the divergence from it counts."""
    if _of(job.recipe).beta == 0:
        return loss
    return replace(loss, reference=BegunWeights(model, loss.softmax))  # type: ignore[call-arg]


def loss(job: Job) -> GroupLoss:
    """The recipe's loss; the reference comes with the model."""
    asked = _of(job.recipe)
    return GroupLoss(
        softmax_of(job.recipe, job.encoder),
        horizon=asked.horizon,
        gamma=asked.gamma,
        rank=asked.rank,
        beta=asked.beta,
    )


def _come(log: Interactions, row: int, horizon: int) -> list[int]:
    """The items of a row and of those behind it of one user, the first again in place of none."""
    rows = np.arange(row, min(row + horizon, len(log)))
    mine = log.position[rows[log.user[rows] == log.user[row]]].tolist()
    return [*mine, *[mine[0]] * (horizon - len(mine))]


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def _set(model: nn.Module, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in _trained(model):
            weight.copy_(weights[name])


def _of(recipe: Recipe) -> Settings:
    asked = recipe.objective.grpo
    assert asked is not None  # noqa: S101  callers ask first
    return asked


GRPO = Method(
    lambda _: {"train": alone},
    GroupRows,
    loss,
    LiveGroups,
    compared=(1,),
    asks=True,
    begin=with_begun_weights,
)
