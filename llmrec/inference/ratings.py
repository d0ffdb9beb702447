"""Self-adaptive selection: the language model says how similar each user of a pool is.

The question is one tree: the user's own history is its trunk, each other user's history a branch,
and on each branch hang the ten answers; or all histories are its trunk (listwise, as the authors
ask), and each user's ten answers hang on that. Reader `score` takes the mean rating under the
model's probabilities of the ten; reader `generate` lets it write and reads JSON. Source: AdaptRec
(arXiv 2504.08786); how its paper words the question is not known.
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
from llmrec.text.questions import all_in_one, one_by_one
from llmrec.text.tree import FlatTree, Segment, TokenTree

RATINGS = range(1, 11)
ANSWER_TOKENS = 16
ROUNDING = 1e-5  # of a mean rating in float32, whatever it is read beside
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
        self._known: dict[str, tuple[Ids, list[Ids]]] = {}

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
        ask = self._about_all if selection.ask == "listwise" else self._about_each
        questions = [ask(histories[i], [n.history for n in pools[i]]) for i in asked]
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
            best = _best_first(ratings)[: self.wanted.count]
            selected[i] = Selected(tuple(best.tolist()), tuple(ratings.tolist()))
        return selected

    def _about_each(
        self, history: npt.NDArray[np.int32], others: Sequence[npt.NDArray[np.int32]]
    ) -> "Question":
        trunk, branches = one_by_one(self.encoder, history, others)
        return Question(trunk, branches, ["similarity"] * len(others))

    def _about_all(
        self, history: npt.NDArray[np.int32], others: Sequence[npt.NDArray[np.int32]]
    ) -> "Question":
        trunk = all_in_one(self.encoder, history, others)
        names = [f"user {number}" for number in range(1, len(others) + 1)]
        return Question(trunk, [trunk[:0]] * len(others), names)

    def _answers(self, name: str) -> tuple[Ids, list[Ids]]:
        """What the ten ratings of that name begin with, and how each goes on."""
        if name not in self._known:
            self._known[name] = self._encoded(name)
        return self._known[name]

    def _encoded(self, name: str) -> tuple[Ids, list[Ids]]:
        said = [f'{{"{name}": {rating}}}' for rating in RATINGS]
        ids = [self.encoder.title_tokens(text) for text in said]
        shared = next(i for i, tokens in enumerate(zip(*ids, strict=False)) if len({*tokens}) > 1)
        # All answers begin alike: that is read once a user, and is no matter of choice.
        return ids[0][:shared], [one[shared:] for one in ids]

    def _scored(
        self, engine: Engine, questions: Sequence["Question"]
    ) -> list[npt.NDArray[np.float64]]:
        """Mean rating of each of a question's users, under the probabilities of the answers."""
        trees = [self._tree(question) for question in questions]
        ratings = []
        for found in engine.branches(trees):
            logs = found.reshape(-1, len(RATINGS))
            p = np.exp(logs - logs.max(axis=1, keepdims=True))
            ratings.append((p * np.array(RATINGS)).sum(axis=1) / p.sum(axis=1))
        return ratings

    def _tree(self, question: "Question") -> FlatTree:
        segments = [Segment(question.trunk)]
        for branch, name in zip(question.branches, question.names, strict=True):
            opening, answers = self._answers(name)
            segments.append(Segment(np.concatenate([branch, opening]), 0))
            place = len(segments) - 1
            segments += [Segment(ids, place, number) for number, ids in enumerate(answers)]
        return TokenTree(tuple(segments)).flatten()

    def _written(
        self, engine: Engine, questions: Sequence["Question"]
    ) -> list[npt.NDArray[np.float64] | None]:
        """The ratings that the model writes; None where one of a question's cannot be read."""
        prompts = [one for question in questions for one in question.prompts()]
        counts = [len(question.prompts()) for question in questions]
        # The prompts of a question begin with the same history: they are read together.
        together = [
            np.arange(end - count, end)
            for count, end in zip(counts, np.cumsum(counts), strict=True)
        ]
        most = max((len(q.names) // len(q.prompts()) for q in questions), default=1)
        answers = engine.write(prompts, 1, ANSWER_TOKENS * most, together)
        decode = self.encoder.tokenizer.decode
        texts = [decode(beams[0].tokens.tolist()) for beams in answers]
        rated: list[npt.NDArray[np.float64] | None] = []
        for question, numbers in zip(questions, together, strict=True):
            own = [texts[i] for i in numbers] * (len(question.names) // len(numbers))
            found = [rating_in(*pair) for pair in zip(own, question.names, strict=True)]
            rated.append(None if None in found else np.array(found, np.float64))
        return rated


@dataclass(frozen=True)
class Question:
    """How alike some users are: `trunk` and, for each user, what follows it and what its rating is
    called; where nothing follows they are all asked about in one prompt."""

    trunk: Ids
    branches: Sequence[Ids]
    names: Sequence[str]

    def prompts(self) -> list[Ids]:
        """The prompts to write an answer behind."""
        if not any(map(len, self.branches)):
            return [self.trunk]
        return [np.concatenate([self.trunk, branch]) for branch in self.branches]


def _best_first(ratings: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The order of ratings, highest first; those that rounding alone can tell apart are equal, as
    users of one history are, and stand in the order that they came in."""
    order = np.argsort(-ratings, kind="stable")
    lower = -np.diff(ratings[order], prepend=ratings[order[:1]]) > ROUNDING
    return order[np.lexsort((order, np.cumsum(lower)))]


def rating_in(text: str, name: str = "similarity") -> float | None:
    """The rating of that name in an answer: a number from 1 to 10 of its first JSON object."""
    found = _OBJECT.search(text)
    try:
        value = json.loads(found.group())[name] if found else None
    except (ValueError, KeyError):
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 1 <= value <= 10 else None
