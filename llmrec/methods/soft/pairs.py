"""Training prompts as questions to the model, and rows with its own answer beside each target."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llmrec.methods.soft.answer_file import Answers, Question
from llmrec.methods.windows import Window
from llmrec.recipe import Recipe
from llmrec.text.encoding import PromptEncoder
from llmrec.text.rows import questions, with_own_answers
from llmrec.text.tree import TokenTree

Completions = list[npt.NDArray[np.int32]]


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


def completions_with(answers: Answers, encoder: PromptEncoder) -> tuple[Completions, list[int]]:
    """The catalog's completions and, behind them, the answers that are no catalog item.

    With them, for each answer which of these it is.
    """
    completions = list(encoder.completions)
    places: dict[str, int] = {}
    for text, position in zip(answers.texts, answers.positions, strict=True):
        if position < 0 and text not in places:
            places[text] = len(completions)
            completions.append(encoder.completion_of(text))
    said = zip(answers.texts, answers.positions, strict=True)
    return completions, [position if position >= 0 else places[text] for text, position in said]


def with_answers(
    rows: Sequence[TokenTree], answers: Answers, encoder: PromptEncoder
) -> tuple[list[TokenTree], Completions]:
    """The rows with a second branch beside each target, and the completions that they name."""
    completions, targets = completions_with(answers, encoder)
    paired, begin = [], 0
    for row in rows:
        count = sum(segment.target >= 0 for segment in row.segments)
        paired.append(with_own_answers(row, targets[begin : begin + count], completions))
        begin += count
    return paired, completions
