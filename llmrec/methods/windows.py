"""What is trained on: windows of the training sequences, as rows of the recipe's shape."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.data.records import Examples, Interactions, Ints, concatenated, offsets_of
from llmrec.errors import DataError, RecipeError
from llmrec.recipe import Recipe
from llmrec.text.encoding import Context, PromptEncoder
from llmrec.text.rows import SHAPES, single
from llmrec.text.tree import TokenTree


@dataclass(frozen=True)
class Window:
    """Consecutive items of one user: `history`, oldest first, and the item after it.

    `example`, `end`: the training example it was cut from, and how many of its items stand before
    the target; `row`: which of the training interactions the target is.
    """

    user_id: str
    history: Ints
    target: int
    example: int
    end: int
    row: int


def training_windows(recipe: Recipe, train: Examples) -> list[Window]:
    """Windows of `prompt.max_history` items and the one after, as `rows.every` cuts them.

    `window`: from an example's end, windows that do not overlap; what is left at its beginning is
    kept when it holds two items. `item`: one for each item but the first. `rows.count` of them are
    drawn with the recipe's seed, so a smaller count is a subset of a larger one. Raises DataError
    for examples that do not say which interactions they are.
    """
    if train.rows_before is None:
        raise DataError("the training examples name no rows; run `llmrec prepare` again")
    length = recipe.prompt.max_history
    step = 1 if recipe.rows.every == "item" else length + 1
    pieces = []
    for number, example in enumerate(train):
        sequence = np.append(example.history, example.target).astype(np.int32)
        first = int(train.rows_before[number]) + 1 - len(example.history)
        for end in range(len(example.history), 0, -step)[::-1]:
            history, target = sequence[max(0, end - length) : end], int(sequence[end])
            user = str(example.user_id)
            pieces.append(Window(user, history, target, number, end, first + end))
    if not pieces:
        raise RecipeError("no training sequence has two items; there is nothing to train on")
    order = np.random.default_rng(recipe.seed).permutation(len(pieces))[: recipe.rows.count]
    return [pieces[i] for i in order]


def require_rows(windows: Sequence[Window], interactions: Interactions) -> None:
    """Raise DataError unless each window is a run of its user's rows of the `interactions`."""
    for window in windows:
        rows = slice(window.row - window.end, window.row + 1)
        mine = interactions.user[rows.start : rows.stop] if rows.start >= 0 else rows
        shown = interactions.position[window.row - len(window.history) : rows.stop]
        if (
            rows.start < 0
            or not np.array_equal(shown, np.append(window.history, window.target))
            or any(str(interactions.user_ids[u]) != window.user_id for u in (mine[0], mine[-1]))
        ):
            raise DataError(
                f"the training example of user {window.user_id!r} is no run of that user's rows in "
                "interactions.parquet; run `llmrec prepare` again"
            )


def as_examples(windows: Sequence[Window], interactions: Interactions) -> Examples:
    """The windows as Examples with the whole history before each target, and its time.

    Both are read from the training `interactions`. Raises DataError where they are not there.
    """
    require_rows(windows, interactions)
    rows = np.array([window.row for window in windows], np.int64)
    histories = [interactions.position[w.row - w.end : w.row] for w in windows]
    unknown = np.zeros(len(windows), np.bool_)
    return Examples(
        np.array([window.user_id for window in windows], dtype=object),
        offsets_of(histories),
        concatenated(histories),
        np.array([window.target for window in windows], np.int32),
        interactions.timestamp[rows],
        unknown,
        unknown,
        rows - 1,
    )


def training_rows(
    recipe: Recipe,
    encoder: PromptEncoder,
    windows: Sequence[Window],
    contexts: Sequence[Context] | None = None,
) -> list[TokenTree]:
    """The windows as token trees of the recipe's shape; `contexts`: shown beside each history."""
    shape = recipe.rows.shape
    if contexts is not None:
        shown = zip(windows, contexts, strict=True)
        return [single(encoder, w.history, w.target, context) for w, context in shown]
    if shape != "single":
        encoder.require_shared_prefixes()
    return [SHAPES[shape](encoder, window.history, window.target) for window in windows]
