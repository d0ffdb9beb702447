"""A method of training, as a bundle of callables; the trainer and the verb know no more of it.

`plain`, `soft`, `adaptrec`, `conformal` and `networks` each make one; `table` says which of them a
recipe has.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from llmrec import stopping
from llmrec.data.candidates import draw_candidates
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples, Interactions
from llmrec.errors import RecipeError
from llmrec.inference.from_recipe import encoder_of
from llmrec.inference.prompting import Prompting, prompting_of
from llmrec.methods.proposed import Proposed, with_proposed
from llmrec.methods.windows import Window, as_examples, training_windows
from llmrec.model.curriculum import Mixture
from llmrec.model.losses import Loss
from llmrec.model.trainer import Refresh
from llmrec.recipe import Recipe
from llmrec.runs.folder import RunFolder
from llmrec.runs.processes import main_first
from llmrec.text.encoding import Context, PromptEncoder
from llmrec.text.tree import TokenTree

log = logging.getLogger("llmrec")

Trees = Sequence[TokenTree]
Curriculum = Callable[[nn.Module, int, int], Mixture]
Train = Callable[[Recipe, RunFolder], dict[str, Any]]  # a language model, into the folder's adapter
Step = Callable[[Recipe, RunFolder, Train], dict[str, Any]]


@dataclass(frozen=True)
class Kept:
    """Trained weights in a folder `place` that may be kept instead of those that training gives.

    `score` as in `Validated`: they are kept where theirs is lower. `name`: a word for them.
    """

    name: str
    place: Path
    step: int
    score: tuple[float, ...]
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Job:
    """A training to be done over a prepared run: `windows` are all that the recipe draws."""

    recipe: Recipe
    folder: RunFolder
    encoder: PromptEncoder
    windows: Sequence[Window]
    chosen: int | None = None
    proposed: Proposed | None = None
    draw: int = 0  # of random candidates

    @staticmethod
    def of(recipe: Recipe, folder: RunFolder) -> "Job":
        """The training of a recipe in a run whose data are prepared."""
        encoder = encoder_of(recipe, Catalog.read(folder.items), folder)
        train = Examples.read(folder.examples("train"))
        proposed = with_proposed(recipe, folder, training_windows(recipe, train))
        return Job(recipe, folder, encoder, proposed.windows, proposed=proposed)

    def only(self, number: int) -> "Job":
        """The same of which the row of one window alone is asked for, to be looked at."""
        return replace(self, chosen=number)

    def drawn(self, number: int) -> "Job":
        """The same with random candidates of their own, drawn for this number."""
        return replace(self, draw=number)

    @property
    def asked(self) -> Sequence[Window]:
        """The windows whose rows are asked for."""
        return self.windows if self.chosen is None else [self.windows[self.chosen]]

    @cached_property
    def prompting(self) -> Prompting | None:
        """The asked prompts with their similar users and candidates; None where there are neither.

        A window's candidates are drawn as those of an example are, and what is shown of other users
        ended before its target was chosen. Users found for all windows are kept in the run.
        """
        recipe, folder = self.recipe, self.folder
        shown = recipe.demonstrations is not None or recipe.data.candidates is not None
        if not shown or recipe.rows.shape != "single":  # rows of several targets show neither
            return None
        asked = as_examples(self.asked, Interactions.read(folder.interactions))
        candidates = None
        if self.proposed is not None and self.proposed.candidates is not None:
            rows = slice(None) if self.chosen is None else [self.chosen]
            candidates = self.proposed.candidates[rows]
        elif recipe.data.candidates is not None:
            count = recipe.data.candidates.count
            candidates = draw_candidates(
                asked, len(self.encoder.titles), count, recipe.seed, purpose=0, draw=self.draw
            )
        with main_first():
            return prompting_of(
                recipe, folder, self.encoder, "train", asked, candidates, self.chosen is None
            )

    @property
    def contexts(self) -> list[Context] | None:
        """What the asked prompts show beside their histories, before any model selects."""
        return None if self.prompting is None else self.prompting.shown_first()


def alone(recipe: Recipe, folder: RunFolder, train: Train) -> dict[str, Any]:
    """The step of a method that has no other: the training itself."""
    return train(recipe, folder)


def nothing(*_: Any) -> None:
    """Of a method without a curriculum, or whose rows stay what they are."""


@dataclass(frozen=True)
class Method:
    """One way of training.

    `steps`: by name, in order, what a whole training goes through; what `main` of them returns is
    told as the training's own. The others are of a language model, whose training is handed to the
    steps: `rows` and the `loss` over them; `refresh`: what the trainer calls before each optimiser
    step; `curriculum`: what it calls before each epoch; `begin`: makes the loss, given the model as
    training begins, what it is to be (None: as it is); `shown`: rows to look at before there is a
    model to ask (None: `rows`); `compared`: the kinds of branches that are candidates, beside the
    title that is learned; `asks`: whether the live model is searched meanwhile; `rival`: weights
    that training has to beat in validation. A method that trains no language model has no rows;
    `preview` says what it needs.
    """

    steps: Callable[[Recipe], Mapping[str, Step]]
    rows: Callable[[Job], Trees] | None = None
    loss: Callable[[Job], Loss] | None = None
    refresh: Callable[[Job, Trees], Refresh | None] = nothing
    curriculum: Callable[[Job], Curriculum | None] = nothing
    begin: Callable[[Job, Trees, nn.Module, Loss], Loss] | None = None
    shown: Callable[[Job], Trees] | None = None
    compared: tuple[int, ...] = ()
    main: str | None = "train"
    asks: bool = False
    rival: Callable[[Job], Kept | None] = nothing
    preview: Callable[[Recipe, RunFolder], dict[str, Any]] | None = None

    def train(
        self, recipe: Recipe, folder: RunFolder, train: Train, only: str | None = None
    ) -> dict[str, Any]:
        """Go through the steps, or `only` that one; what each returned, the main one's on top.

        `train` trains a language model. Raises RecipeError for a step that is none.
        """
        steps = self.steps(recipe)
        if only is not None and only not in steps:
            raise RecipeError(f"--only {only}: the steps are {', '.join(steps)}")
        results = {}
        for name in steps if only is None else [only]:
            stopping.check()
            log.info("%s: %s", folder.root, name)
            results[name] = steps[name](recipe, folder, train)
        return {**results.pop(self.main, {}), **results}
