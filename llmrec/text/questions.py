"""Questions how alike users are: token ids of the blocks `selection` and `selections`.

One at a time, what all questions begin with apart from the rest; or all in one prompt. Every
history shows its latest titles, at most the encoder's `max_history` and so many that no question is
longer than a prompt may be. Knows no model and no answer.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from llmrec.errors import RecipeError
from llmrec.text.encoding import Ids, PromptEncoder

T = TypeVar("T")


def one_by_one(
    encoder: PromptEncoder, history: Sequence[int] | Ids, others: Sequence[Ids]
) -> tuple[Ids, list[Ids]]:
    """How alike the user is to each of the `others`, by block `selection`.

    Returns the token ids that all questions begin with, and what follows for each; a question is
    both, one behind the other. None of the `others` is empty. Raises RecipeError where not even one
    title of each fits, or where the words before the other's history depend on it.
    """

    def asked(titles: int) -> tuple[list[tuple[Ids, Ids]], int]:
        own = np.asarray(history, np.int32)[-titles:]
        found = [_question(encoder, own, other[-titles:]) for other in others]
        return found, max((len(trunk) + len(rest) for trunk, rest in found), default=0)

    questions = _that_fit(encoder, asked, "how alike two users are")
    trunks = {trunk.tobytes() for trunk, _ in questions}
    if len(trunks) > 1:
        raise RecipeError(
            f"{encoder.template.name}: block 'selection' says something of `other` "
            "before the titles of `history` are over"
        )
    trunk = questions[0][0] if questions else np.zeros(0, np.int32)
    return trunk, [rest for _, rest in questions]


def all_in_one(encoder: PromptEncoder, history: Sequence[int] | Ids, others: Sequence[Ids]) -> Ids:
    """How alike the user is to each of the `others`, by block `selections`, in one prompt.

    Raises RecipeError where not even one title of each fits.
    """

    def asked(titles: int) -> tuple[Ids, int]:
        shown = [np.asarray(history, np.int32)[-titles:], *(other[-titles:] for other in others)]
        lengths = tuple(map(len, shown))
        pieces = encoder.pieces(
            ("selections", lengths),
            lambda: encoder.template.selections(
                [""] * lengths[0], [[""] * length for length in lengths[1:]]
            ),
        )
        ids = _filled(encoder, pieces, np.concatenate(shown))
        return ids, len(ids)

    return _that_fit(encoder, asked, f"how alike {len(others)} users are to one")


def _question(encoder: PromptEncoder, own: Ids, other: Ids) -> tuple[Ids, Ids]:
    """Token ids before the first title of `other`, and from there on."""
    pieces = encoder.pieces(
        ("selection", len(own), len(other)),
        lambda: encoder.template.selection([""] * len(own), [""] * len(other)),
    )
    first = next(i for i, p in enumerate(pieces) if isinstance(p, int) and p == len(own))
    shown = np.concatenate([own, other])
    return _filled(encoder, pieces[:first], shown), _filled(encoder, pieces[first:], shown)


def _filled(encoder: PromptEncoder, pieces: Sequence[Ids | int], shown: Ids) -> Ids:
    """Token ids of pieces whose titles are those at the positions `shown`."""
    ids = [encoder.title_ids[shown[p]] if isinstance(p, int) else p for p in pieces]
    return np.concatenate([np.zeros(0, np.int32), *ids]).astype(np.int32)


def _that_fit(encoder: PromptEncoder, asked: Callable[[int], tuple[T, int]], what: str) -> T:
    """What is asked with as many titles of each history as fit, given what and its length."""
    longest = 0
    for titles in range(encoder.max_history, 0, -1):
        found, longest = asked(titles)
        if longest <= encoder.room:
            return found
    raise RecipeError(
        f"prompt.max_tokens = {encoder.max_tokens} leaves {encoder.room} tokens for the question "
        f"{what}, which takes {longest} with one title of each; raise it"
    )
