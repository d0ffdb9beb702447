"""What is trained on: windows of the training sequences, as rows of the recipe's shape."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmrec.data.records import Examples
from llmrec.errors import RecipeError
from llmrec.recipe import Recipe
from llmrec.stages.answers import Answers, Question
from llmrec.text.encoding import PromptEncoder
from llmrec.text.rows import SHAPES, questions, windows, with_own_answers
from llmrec.text.tree import TokenTree


@dataclass(frozen=True)
class Window:
    """Consecutive items of one user: `history`, oldest first, and the item after it."""

    user_id: str
    history: npt.NDArray[np.int32]
    target: int


def training_windows(recipe: Recipe, train: Examples) -> list[Window]:
    """Windows of `prompt.max_history` items and the one after.

    `rows.count` of them are drawn with the recipe's seed, so a smaller count is a subset of a
    larger one.
    """
    pieces = [
        Window(str(example.user_id), piece[:-1], int(piece[-1]))
        for example in train
        for piece in windows(
            [np.append(example.history, example.target).astype(np.int32)],
            recipe.prompt.max_history + 1,
        )
    ]
    if not pieces:
        raise RecipeError("no training sequence has two items; there is nothing to train on")
    order = np.random.default_rng(recipe.seed).permutation(len(pieces))[: recipe.rows.count]
    return [pieces[i] for i in order]


def training_rows(
    recipe: Recipe, encoder: PromptEncoder, windows: Sequence[Window]
) -> list[TokenTree]:
    """The windows as token trees of the recipe's shape."""
    shape = recipe.rows.shape
    if shape != "single":
        encoder.require_shared_prefixes()
    return [SHAPES[shape](encoder, window.history, window.target) for window in windows]


def questions_of(
    recipe: Recipe, encoder: PromptEncoder, windows: Sequence[Window]
) -> list[Question]:
    """Every prompt in the windows' rows with its truth, in the order of the rows' targets."""
    asked = [
        (window.user_id, history, truth)
        for window in windows
        for history, truth in questions(recipe.rows.shape, encoder, window.history, window.target)
    ]
    return [Question(i, *question) for i, question in enumerate(asked)]


def with_answers(
    rows: Sequence[TokenTree], answers: Answers, encoder: PromptEncoder
) -> tuple[list[TokenTree], list[npt.NDArray[np.int32]]]:
    """The rows with a second branch beside each target, and the completions that they name.

    The completions are the catalog's, and behind them the answers that are no catalog item.
    """
    completions = list(encoder.completions)
    places: dict[str, int] = {}
    for text, position in zip(answers.texts, answers.positions, strict=True):
        if position < 0 and text not in places:
            places[text] = len(completions)
            completions.append(encoder.completion_of(text))
    said = zip(answers.texts, answers.positions, strict=True)
    targets = [position if position >= 0 else places[text] for text, position in said]
    paired, begin = [], 0
    for row in rows:
        own = targets[begin : begin + row_targets(row)]
        paired.append(with_own_answers(row, own, completions))
        begin += len(own)
    return paired, completions


def row_targets(row: TokenTree) -> int:
    """How many targets a row has."""
    return sum(segment.target >= 0 for segment in row.segments)
