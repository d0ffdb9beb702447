"""Training rows: a history and its targets as one TokenTree.

Three shapes. `single`: one target behind one prompt. `all_targets`: instruction and history as
the trunk, and after each title but the last a branch of the prompt's closing words and the title
that came next. `inline`: each title is a target where it stands inside the history, which costs
almost nothing more than reading it; only the last follows the closing words. Beside them rows of
two views: candidates behind a history, and others behind the same history and what came next.
Knows neither models nor losses.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmrec.text.encoding import NOTHING_ELSE, Context, Ids, PromptEncoder
from llmrec.text.tree import Segment, TokenTree

Positions = Sequence[int] | npt.NDArray[np.int32]
Asked = tuple[npt.NDArray[np.int32], int]
RowBuilder = Callable[[PromptEncoder, Positions, int], TokenTree]


def single(
    encoder: PromptEncoder, history: Positions, target: int, context: Context = NOTHING_ELSE
) -> TokenTree:
    """The prompt of `history` and the completion of `target` behind it.

    `context`: what the prompt shows beside the history.
    """
    prompt = encoder.prompt(history, context)
    answer = Segment(encoder.completions[target], 0, target)
    return TokenTree((Segment(prompt.ids), answer), context.candidates)


def all_targets(encoder: PromptEncoder, history: Positions, target: int) -> TokenTree:
    """A branch for each title of the history after the first, and one for `target`.

    Every branch reads what `single` would read for that target and the history before it, as long
    as the token budget drops nothing.
    """
    prompt = encoder.prompt(history)
    closing = prompt.ids[prompt.title_ends[-1] :]
    following = [*prompt.history[1:], target]
    segments: list[Segment] = []
    trunk, begin = -1, 0
    for end, item in zip(prompt.title_ends, following, strict=True):
        segments.append(Segment(prompt.ids[begin:end], trunk))
        trunk, begin = len(segments) - 1, int(end)
        segments.append(Segment(closing, trunk))
        segments.append(Segment(encoder.completions[item], len(segments) - 1, int(item)))
    return TokenTree(tuple(segments))


def inline(encoder: PromptEncoder, history: Positions, target: int) -> TokenTree:
    """One path: the titles of the history after the first are learned in place, then `target`.

    In place a title's tokens are learned but not the end token, since other words follow there.
    """
    prompt = encoder.prompt(history)
    segments: list[Segment] = []
    begin = 0
    for index, (start, end) in enumerate(zip(prompt.title_starts, prompt.title_ends, strict=True)):
        if index:
            segments.append(Segment(prompt.ids[begin:start], len(segments) - 1))
            segments.append(
                Segment(
                    prompt.ids[start:end],
                    len(segments) - 1,
                    int(prompt.history[index]),
                    encoder.title_offset,
                )
            )
        else:
            segments.append(Segment(prompt.ids[:end]))
        begin = int(end)
    segments.append(Segment(prompt.ids[begin:], len(segments) - 1))
    segments.append(Segment(encoder.completions[target], len(segments) - 1, target))
    return TokenTree(tuple(segments))


def questions(shape: str, encoder: PromptEncoder, history: Positions, target: int) -> list[Asked]:
    """What a row of that shape asks, in the order of its targets: history shown, and the truth."""
    if shape == "single":
        return [(np.asarray(history, np.int32), target)]
    shown = encoder.prompt(history).history
    following = [*shown[1:].tolist(), target]
    return [(shown[: i + 1], item) for i, item in enumerate(following)]


def with_own_answers(
    row: TokenTree, targets: Sequence[int], completions: Sequence[npt.NDArray[np.int32]]
) -> TokenTree:
    """Beside each target of `row` a second branch: what a model itself answered there (kind 1).

    `targets`: for each of the row's, in order, which of the `completions` that was. Where the row
    learns a part of a completion, as inside a history, the branch holds that part of the answer's.
    """
    asked = [segment for segment in row.segments if segment.target >= 0]
    own = []
    for segment, target in zip(asked, targets, strict=True):
        left_out = len(completions[segment.target]) - segment.start - len(segment.ids)
        ids = completions[target][segment.start : len(completions[target]) - left_out]
        own.append(Segment(ids, segment.parent, target, segment.start, kind=1))
    return TokenTree((*row.segments, *own))


@dataclass(frozen=True)
class Views:
    """Two prompts that begin alike, as token ids: `trunk`, then the rest of the first or second.

    The first shows a history, the second that history and what came next.
    """

    trunk: Ids
    first: Ids
    second: Ids

    def prompts(self) -> tuple[Ids, Ids]:
        """The whole first prompt and the whole second one."""
        return (np.concatenate([self.trunk, self.first]), np.concatenate([self.trunk, self.second]))


def widened(encoder: PromptEncoder, titles: int) -> PromptEncoder:
    """The same encoder for prompts that show `titles` more.

    Raises RecipeError where the prompt of fewer titles does not begin that of more.
    """
    wide = copy.copy(encoder)
    wide.max_history = encoder.max_history + titles
    wide.require_shared_prefixes()
    return wide


def two_views(
    encoder: PromptEncoder, wide: PromptEncoder, history: Positions, further: Positions
) -> Views:
    """The prompt of `history`, and that of `history` and `further` (not empty) behind it.

    `wide`: the encoder `widened` by so many titles. Titles that the token budget drops from the
    second prompt are dropped from the first as well. Where none of the history would be left, the
    prompts share nothing and each shows what it can.
    """
    shown = np.asarray(history, np.int32)[-encoder.max_history :]
    longer = wide.prompt(np.concatenate([shown, np.asarray(further, np.int32)]))
    kept = len(longer.history) - len(further)
    if kept < 1:
        return Views(longer.ids[:0], encoder.prompt(shown).ids, longer.ids)
    cut = longer.title_ends[kept - 1]
    closing = longer.ids[longer.title_ends[-1] :]
    return Views(longer.ids[:cut], closing, longer.ids[cut:])


def with_candidates(
    views: Views, completions: Sequence[Ids], first: Positions, second: Positions
) -> TokenTree:
    """Both prompts in one row, each with the completions of its candidates behind it.

    `first`: positions, the target before all others. The target is of kind 0, the other candidates
    of the first prompt of kind 1, those of the second of kind 2; branches stand in this order.
    """
    ends = (Segment(views.trunk), Segment(views.first, 0), Segment(views.second, 0))
    mine = [
        Segment(completions[item], 1, int(item), kind=min(place, 1))
        for place, item in enumerate(first)
    ]
    others = [Segment(completions[item], 2, int(item), kind=2) for item in second]
    return TokenTree((*ends, *mine, *others))


SHAPES: dict[str, RowBuilder] = {"single": single, "all_targets": all_targets, "inline": inline}
