"""Candidates by letters: which these are, and the one token of each as an answer."""

from collections.abc import Callable

from llmrec.errors import RecipeError
from llmrec.text.parts import Ids

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letter_ids(tokens_of: Callable[[str], Ids]) -> list[Ids]:
    """(26,) token ids, each (1,); `tokens_of` a text as an answer.

    Raises RecipeError where a letter is no token of its own.
    """
    found = [tokens_of(letter) for letter in LETTERS]
    if any(len(ids) != 1 for ids in found) or len({int(ids[0]) for ids in found}) < len(found):
        raise RecipeError("prompt.letters: not every letter is a token of this tokenizer")
    return found
