"""What is trained on: windows of the training sequences, as rows of the recipe's shape."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmrec.data.records import Examples, Interactions, concatenated, offsets_of
from llmrec.errors import DataError, RecipeError
from llmrec.recipe import Recipe
from llmrec.text.encoding import Context, PromptEncoder
from llmrec.text.rows import SHAPES, single, windows
from llmrec.text.tree import TokenTree


@dataclass(frozen=True)
class Window:
    """Consecutive items of one user: `history`, oldest first, and the item after it.

    `example`, `end`: the training example it was cut from, and how many of its items stand before
    the target.
    """

    user_id: str
    history: npt.NDArray[np.int32]
    target: int
    example: int
    end: int


def training_windows(recipe: Recipe, train: Examples) -> list[Window]:
    """Windows of `prompt.max_history` items and the one after.

    `rows.count` of them are drawn with the recipe's seed, so a smaller count is a subset of a
    larger one.
    """
    pieces = []
    for number, example in enumerate(train):
        sequence = np.append(example.history, example.target).astype(np.int32)
        cut = windows([sequence], recipe.prompt.max_history + 1)
        end = len(sequence) - 1 - sum(map(len, cut))
        for piece in cut:
            end += len(piece)
            pieces.append(Window(str(example.user_id), piece[:-1], int(piece[-1]), number, end))
    if not pieces:
        raise RecipeError("no training sequence has two items; there is nothing to train on")
    order = np.random.default_rng(recipe.seed).permutation(len(pieces))[: recipe.rows.count]
    return [pieces[i] for i in order]


def as_examples(windows: Sequence[Window], train: Examples, interactions: Interactions) -> Examples:
    """The windows as Examples with the whole history before each target, and its time.

    The time is read from the training `interactions`, where each example is a run of one user's
    rows. Raises DataError where it is not.
    """
    names = interactions.user_ids.astype(str)
    first = np.searchsorted(interactions.user, np.arange(len(names)), side="left")
    last = np.searchsorted(interactions.user, np.arange(len(names)), side="right")
    code_of = {name: code for code, name in enumerate(names)}
    histories, times = [], []
    for window in windows:
        code = code_of.get(window.user_id, -1)
        rows = slice(first[code], last[code]) if code >= 0 else slice(0, 0)
        history = train.history(window.example)
        begin = _begin_of_run(
            interactions.position[rows],
            interactions.timestamp[rows],
            np.append(history, train.targets[window.example]),
            int(train.timestamps[window.example]),
        )
        if begin is None:
            raise DataError(
                f"the training example of user {window.user_id!r} is no run of that user's rows in "
                "interactions.parquet; run `llmrec prepare` again"
            )
        histories.append(interactions.position[rows][begin : begin + window.end])
        times.append(interactions.timestamp[rows][begin + window.end])
    unknown = np.zeros(len(windows), np.bool_)
    return Examples(
        np.array([window.user_id for window in windows], dtype=object),
        offsets_of(histories),
        concatenated(histories),
        np.array([w.target for w in windows], np.int32),
        np.array(times, np.int64),
        unknown,
        unknown,
    )


def _begin_of_run(
    positions: npt.NDArray[np.int32],
    times: npt.NDArray[np.int64],
    sequence: npt.NDArray[np.int32],
    time: int,
) -> int | None:
    """Where among a user's rows the sequence begins whose last item was chosen at `time`."""
    for end in np.flatnonzero((positions == sequence[-1]) & (times == time)).tolist():
        begin = end - len(sequence) + 1
        if begin >= 0 and np.array_equal(positions[begin : end + 1], sequence):
            return begin
    return None


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
