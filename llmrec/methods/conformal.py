"""Candidates of the training rows, for fine-tuning a language model with conformal prediction.

A row asks twice: after a window's history, where the target is known, and after the item that
followed the target. Candidates are the likeliest items of the live model and random ones. The live
ones are found for the rows of the coming steps alone and written down with the step, so that an
interrupted training goes on with the candidates that it had. Source: CPFT (arXiv 2402.08976), which
ranks the whole catalog; a language model reads a sample of it.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from llmrec.data.candidates import draw_unseen
from llmrec.data.catalog import Catalog
from llmrec.data.files import write_json
from llmrec.data.records import Examples, Interactions, Ints
from llmrec.errors import DataError
from llmrec.inference.engine import by_beams, live_engine
from llmrec.inference.title_states import state_vectors
from llmrec.methods.method import Job, Method, alone
from llmrec.methods.plain import softmax_of
from llmrec.methods.windows import Window, require_rows
from llmrec.model.losses import ConformalLoss
from llmrec.model.trainer import Coming
from llmrec.recipe import Recipe
from llmrec.recipe.conformal import Conformal
from llmrec.runs.folder import RunFolder
from llmrec.runs.processes import main_only, processes
from llmrec.text.encoding import PromptEncoder
from llmrec.text.rows import Views, two_views, widened, with_candidates
from llmrec.text.tree import TokenTree

log = logging.getLogger("llmrec")
Beams = dict[int, tuple[list[int], list[int]]]  # by row: the likeliest items of both views


@dataclass(frozen=True)
class Known:
    """What is known of a window's user, as positions.

    `before`: all that was chosen before the target. `further`: what the second view reads behind
    the window's history, the target first. `chosen`: all that may not be a random candidate.
    """

    before: Ints
    further: Ints
    chosen: Ints


class CandidateRows(Sequence[TokenTree]):
    """The windows as rows of two views, made when they are asked for.

    `beams`, by row, are the live candidates; the others are random, drawn by seed, `step` and row,
    with `draw: frequency` as likely as one more than the `counts` (N,) of training says.
    A row without live ones holds random ones alone. `first`: the number of the first of the windows
    among all that are drawn.
    """

    def __init__(
        self,
        recipe: Recipe,
        encoder: PromptEncoder,
        windows: Sequence[Window],
        known: Sequence[Known],
        first: int = 0,
        counts: npt.NDArray[np.int64] | None = None,
    ) -> None:
        conformal = _of(recipe)
        by_count = conformal.candidates.draw == "frequency"
        self.log_weights = np.log1p(counts) if by_count and counts is not None else None
        self.encoder, self.windows, self.known, self.seed = encoder, windows, known, recipe.seed
        self.count = conformal.candidates.beams + conformal.candidates.sampled + 1
        self._wide = widened(encoder, 2)
        self.step, self.beams, self.first = 0, Beams(), first
        for window, one in zip(windows, known, strict=True):
            unseen = len(encoder.titles) - len(one.chosen)
            if unseen < self.count:
                raise DataError(
                    f"user {window.user_id!r} has {unseen} unseen items of {len(encoder.titles)} "
                    f"in the catalog; conformal.candidates asks for {self.count}, which are beams "
                    "+ sampled + 1. Lower beams or sampled"
                )

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: Any) -> Any:
        """The row of a number; negative ones count from the end."""
        number = range(len(self))[number]
        live = self.beams.get(number, ([], []))
        target = self.windows[number].target
        first = [target, *(item for item in live[0] if item != target)]
        views = [self._filled(number, view, begun) for view, begun in enumerate((first, live[1]))]
        return with_candidates(self.views(number), self.encoder.completions, *views)

    def views(self, number: int) -> Views:
        """The two prompts of a row."""
        further = self.known[number].further
        return two_views(self.encoder, self._wide, self.windows[number].history, further)

    def closed(self, number: int) -> tuple[Ints, Ints]:
        """What no live candidate may be in the first view and in the second: items chosen before.

        A target that is none of the live candidates for that reason is a candidate all the same.
        """
        before = self.known[number].before
        return before, np.concatenate([before, self.known[number].further])

    def _filled(self, number: int, view: int, begun: Sequence[int]) -> list[int]:
        """`begun`, and behind them random items that the user has not chosen."""
        chosen, items = self.known[number].chosen, len(self.encoder.titles)
        generator = np.random.default_rng([self.seed, self.step, self.first + number, view])
        # As many as are wanted and as many more as may stand in `begun` already.
        if self.log_weights is not None:
            drawn = drawn_by_weight(self.log_weights, chosen, self.count + len(begun), generator)
            return [*begun, *(item for item in drawn if item not in begun)][: self.count]
        count = min(items - len(chosen), self.count + len(begun))
        drawn = draw_unseen(chosen, items, count, generator)
        return [*begun, *(item for item in drawn.tolist() if item not in begun)][: self.count]


def drawn_by_weight(
    log_weights: npt.NDArray[np.float64], closed: Ints, count: int, generator: np.random.Generator
) -> list[int]:
    """`count` distinct items that are not `closed`, one after another in proportion to weight.

    The largest of log weight plus Gumbel noise are such a draw without replacement.
    """
    keys = log_weights + generator.gumbel(size=len(log_weights))
    keys[closed] = -np.inf
    drawn: list[int] = np.argsort(-keys, kind="stable")[:count].tolist()
    return [item for item in drawn if keys[item] > -np.inf]


class LiveCandidates:
    """What the trainer calls before each step; processes share the prompts."""

    def __init__(self, recipe: Recipe, folder: RunFolder, rows: CandidateRows) -> None:
        self.recipe, self.folder, self.rows = recipe, folder, rows
        self._begun = False
        decode = by_beams(recipe.decode, _of(recipe).candidates.beams)
        self._engine_of = live_engine(rows.encoder, decode)

    def __call__(
        self, model: nn.Module, step: int, coming: Coming
    ) -> tuple[Sequence[TokenTree], dict[str, Any]] | None:
        """The rows from `step` on and how often the target is among the live candidates."""
        begun, self._begun = self._begun, True
        every = _of(self.recipe).candidates.refresh
        newest = step - step % every
        path = self.folder.candidate_sets / f"{newest}.json"
        if begun and newest != step:
            return None
        if not main_only(path.exists):
            self._find(model, path, coming(every))
        said = main_only(lambda: json.loads(path.read_text("utf-8")))
        self.rows.step = newest
        self.rows.beams = {one["row"]: (one["first"], one["second"]) for one in said}
        if newest != step:
            return self.rows, {}
        hits = [
            self.rows.windows[row].target in first for row, (first, _) in self.rows.beams.items()
        ]
        facts = {"candidates_refreshed": len(hits), "target_in_beams": float(np.mean(hits))}
        log.info(
            "train: candidates of %d rows at step %d, the target among %.0f %%",
            len(hits),
            step,
            100 * facts["target_in_beams"],
        )
        return self.rows, facts

    def _find(self, model: nn.Module, path: Path, numbers: Sequence[int]) -> None:
        """Ask the live model and write down what it answers."""
        found = self._answers(model, numbers)
        if processes().is_main_process:
            write_json(
                path,
                [
                    {"row": row, "first": first, "second": second}
                    for row, (first, second) in zip(numbers, found, strict=True)
                ],
            )

    def _answers(self, model: nn.Module, numbers: Sequence[int]) -> list[list[list[int]]]:
        """For each row the likeliest items of both views, best first."""
        prompts = [prompt for number in numbers for prompt in self.rows.views(number).prompts()]
        closed = [items for number in numbers for items in self.rows.closed(number)]
        found = self._engine_of(model).rank(prompts, closed)
        answers = [ranking.positions.tolist() for ranking in found.rankings]
        return [answers[i : i + 2] for i in range(0, len(answers), 2)]


def rows(job: Job) -> CandidateRows:
    """The rows of the windows, with random candidates alone.

    Raises RecipeError where prompts share no beginnings, DataError where a user has chosen so much
    that too few candidates are left.
    """
    read, folder = Examples.read, job.folder
    valid = read(folder.examples("valid")) if _of(job.recipe).view == "valid" else None
    interactions = Interactions.read(folder.interactions)
    known = known_of(job.asked, interactions, valid)
    counts = np.bincount(interactions.position, minlength=len(job.encoder.titles))
    return CandidateRows(job.recipe, job.encoder, job.asked, known, job.chosen or 0, counts)


def known_of(
    windows: Sequence[Window], interactions: Interactions, valid: Examples | None
) -> list[Known]:
    """What is known of each window's user.

    With `valid` a second view reads one item further than the target: the next of the training
    `interactions`, or behind the last of them the validation target that followed, if there is one.
    No later item is read, none that another user chose, and no test item.
    """
    require_rows(windows, interactions)
    users = interactions.user[[window.row for window in windows]]
    begins = np.searchsorted(interactions.user, users, side="left").tolist()
    ends = np.searchsorted(interactions.user, users, side="right").tolist()
    following = {} if valid is None else _following(valid)
    known = []
    for window, begin, end in zip(windows, begins, ends, strict=True):
        positions, at = interactions.position[begin:end], window.row - begin
        further = [window.target]
        if valid is not None:
            further += positions[at + 1 : at + 2].tolist() or following.get(window.row, [])
        chosen = np.unique(np.concatenate([positions, further]))
        known.append(Known(positions[:at], np.array(further, np.int32), chosen))
    return known


def loss(job: Job) -> ConformalLoss:
    """The recipe's loss over candidates, with the untuned model's vectors of the titles."""
    recipe = job.recipe
    conformal = _of(recipe)
    if conformal.gamma > 0 and not conformal.smooth:
        log.warning(
            "train: the distance of hard sets has no gradient, since the vectors of titles "
            "are fixed: conformal.gamma changes no weight. Set conformal.smooth: true, or "
            "gamma: 0"
        )
    vectors = None
    if conformal.gamma > 0:
        vectors = torch.from_numpy(state_vectors(recipe, Catalog.read(job.folder.items)))
    return ConformalLoss(
        softmax_of(recipe, job.encoder),
        alpha=conformal.alpha,
        beta=conformal.beta,
        gamma=conformal.gamma,
        nearest=conformal.nearest,
        vectors=vectors,
        temperature=conformal.temperature if conformal.smooth else None,
    )


def _of(recipe: Recipe) -> Conformal:
    assert recipe.conformal is not None  # noqa: S101  callers ask first
    return recipe.conformal


def _following(valid: Examples) -> dict[int, list[int]]:
    """The first validation target that came right after a training row, by that row."""
    if valid.rows_before is None:
        raise DataError("the validation examples name no rows; run `llmrec prepare` again")
    found: dict[int, list[int]] = {}
    for number in np.argsort(valid.timestamps, kind="stable").tolist():
        found.setdefault(int(valid.rows_before[number]), [int(valid.targets[number])])
    return found


CONFORMAL = Method(
    lambda _: {"train": alone},
    rows,
    loss,
    lambda job, made: LiveCandidates(job.recipe, job.folder, made),
    compared=(1, 2),
    asks=True,
)
