"""Self-adaptive selection: the language model says how similar each user of a pool is.

The question is one tree: the user's own history is its trunk, each other user's history a branch,
and on each branch hang the ten answers. Reader `score` takes the mean rating under the model's
probabilities of the ten; reader `generate` lets it write and reads JSON. Source: AdaptRec (arXiv
2504.08786); how its paper words the question is not known.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmrec.inference.engine import Engine
from llmrec.inference.pools import Neighbour
from llmrec.recipe.demonstrations import Demonstrations
from llmrec.text.encoding import Ids, PromptEncoder
from llmrec.text.tree import FlatTree, Segment, TokenTree

RATINGS = range(1, 11)
ANSWER_TOKENS = 16
_OBJECT = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class Selected:
    """Which of a pool are shown, best first, as indices of it; and how they were rated.

    `failed`: the model's answer could not be read, and the order of retrieval stands.
    """

    shown: tuple[int, ...]
    ratings: tuple[float, ...]
    failed: bool = False


class Selecting:
    """Rates and selects under one encoder. Every call is with the engine's model as it then is."""

    def __init__(self, encoder: PromptEncoder, wanted: Demonstrations) -> None:
        self.encoder, self.wanted = encoder, wanted
        said = [f'{{"similarity": {rating}}}' for rating in RATINGS]
        ids = [encoder.title_tokens(text) for text in said]
        shared = next(i for i, tokens in enumerate(zip(*ids, strict=False)) if len({*tokens}) > 1)
        # All answers begin alike: that is read once a user, and is no matter of choice.
        self._opening, self._answers = ids[0][:shared], [one[shared:] for one in ids]

    def select(
        self,
        engine: Engine,
        histories: Sequence[npt.NDArray[np.int32]],
        pools: Sequence[Sequence[Neighbour]],
    ) -> list[Selected]:
        """For each history, the `count` of its pool that the model rates highest.

        Equal ratings stand in the order of the pool. A pool of one is not asked about.
        """
        selection = self.wanted.selection
        assert selection is not None  # noqa: S101  callers ask first
        asked = [i for i, pool in enumerate(pools) if len(pool) > 1]
        questions = [
            self.encoder.similarity_questions(histories[i], [n.history for n in pools[i]])
            for i in asked
        ]
        rated: list[npt.NDArray[np.float64] | None]
        if selection.reader == "score":
            rated = list(self._scored(engine, questions))
        else:
            rated = self._written(engine, questions)
        selected = [Selected(tuple(range(len(pool)))[: self.wanted.count], ()) for pool in pools]
        for i, ratings in zip(asked, rated, strict=True):
            if ratings is None:
                selected[i] = Selected(selected[i].shown, (), failed=True)
                continue
            # Users of one history are rated alike, but for what is lost in rounding.
            best = np.argsort(-ratings.round(5), kind="stable")[: self.wanted.count]
            selected[i] = Selected(tuple(best.tolist()), tuple(ratings.tolist()))
        return selected

    def _scored(
        self, engine: Engine, questions: Sequence[tuple[Ids, list[Ids]]]
    ) -> list[npt.NDArray[np.float64]]:
        """Mean rating of each of a question's users, under the probabilities of the answers."""
        trees = [self._tree(*question) for question in questions]
        ratings = []
        for found in engine.branches(trees):
            logs = found.reshape(-1, len(RATINGS))
            p = np.exp(logs - logs.max(axis=1, keepdims=True))
            ratings.append((p * np.array(RATINGS)).sum(axis=1) / p.sum(axis=1))
        return ratings

    def _tree(self, trunk: Ids, branches: Sequence[Ids]) -> FlatTree:
        segments = [Segment(trunk)]
        for branch in branches:
            segments.append(Segment(np.concatenate([branch, self._opening]), 0))
            place = len(segments) - 1
            segments += [Segment(ids, place, number) for number, ids in enumerate(self._answers)]
        return TokenTree(tuple(segments)).flatten()

    def _written(
        self, engine: Engine, questions: Sequence[tuple[Ids, list[Ids]]]
    ) -> list[npt.NDArray[np.float64] | None]:
        """The ratings that the model writes; None where one of a question's cannot be read."""
        prompts = [np.concatenate([trunk, b]) for trunk, branches in questions for b in branches]
        counts = [len(branches) for _, branches in questions]
        # The prompts of a question begin with the same history: they are read together.
        together = [
            np.arange(end - count, end)
            for count, end in zip(counts, np.cumsum(counts), strict=True)
        ]
        answers = engine.write(prompts, 1, ANSWER_TOKENS, together)
        decode = self.encoder.tokenizer.decode
        ratings = [rating_in(decode(beams[0].tokens.tolist())) for beams in answers]
        of_questions = ([ratings[i] for i in numbers] for numbers in together)
        return [None if None in some else np.array(some, np.float64) for some in of_questions]


def rating_in(text: str) -> float | None:
    """The rating in an answer: the number from 1 to 10 of its first JSON object, else None."""
    found = _OBJECT.search(text)
    try:
        value = json.loads(found.group())["similarity"] if found else None
    except (ValueError, KeyError):
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 1 <= value <= 10 else None
