"""What a model itself answers to training prompts, and how far that is from the truth.

Used by `distill`, which keeps the answers, and by the curriculum's probe, which measures them while
training. Nothing is closed to these answers: an item of the history can be one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.inference.engine import Engine
from llmrec.model.states import text_states
from llmrec.recipe.soft import Distill
from llmrec.text.encoding import Ids, PromptEncoder

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Beam:
    """One answer: its text, the item of that very title (-1: none), its log-probability score."""

    text: str
    position: int
    score: float


def own_answers(engine: Engine, prompts: Sequence[Ids], distill: Distill) -> list[list[Beam]]:
    """The beams behind each of E prompts, best first; `engine` decodes by `distill.beams` beams."""
    encoder = engine.encoder
    if distill.decode == "constrained":
        nothing = [np.zeros(0, np.int32)] * len(prompts)
        return [
            [
                Beam(encoder.titles[position], position, score)
                for position, score in zip(
                    ranking.positions.tolist(), ranking.scores.tolist(), strict=True
                )
            ]
            for ranking in engine.rank(prompts, nothing).rankings
        ]
    answers = []
    for beams in engine.write(prompts, distill.beams, distill.max_new_tokens):
        texts = [encoder.written(written.tokens) for written in beams]
        positions = [encoder.position_of.get(text, -1) for text in texts]
        scores = [written.score for written in beams]
        answers.append(list(map(Beam, texts, positions, scores)))
    return answers


class Embedding:
    """States of texts in the untuned model (last layer, last token), each computed once."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self.encoder = encoder
        self._known: dict[str, npt.NDArray[np.float32]] = {}

    def of(self, model: Any, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(T, d) states of T texts. The model's adapter is off meanwhile."""
        fresh = sorted(set(texts) - self._known.keys())
        if fresh:
            states = text_states(model, [self.encoder.standing_alone(text) for text in fresh])
            self._known |= dict(zip(fresh, states, strict=True))
        return np.stack([self._known[text] for text in texts])

    def distances(self, model: Any, texts: Sequence[str], truths: Sequence[int]) -> Doubles:
        """(T,) Euclidean distances between T texts and the titles at positions `truths`."""
        titles = [self.encoder.titles[truth] for truth in truths]
        states = self.of(model, [*texts, *titles]).astype(np.float64)
        difference = states[: len(texts)] - states[len(texts) :]
        return np.sqrt((difference**2).sum(axis=1))
