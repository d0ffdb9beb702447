"""What a model itself answers to training prompts, and how far that is from the truth.

Used by `distill`, which keeps the answers, and by the curriculum's probe, which measures them while
training. Nothing is closed to these answers: an item of the history can be one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from llmrec.decoding.beam import Scoring, beam_search
from llmrec.decoding.beginning import Beginning
from llmrec.decoding.free import free_beam_search
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.model.states import text_states
from llmrec.recipe.decoding import Decode
from llmrec.recipe.soft import Distill
from llmrec.text.encoding import Ids, PromptEncoder

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Beam:
    """One answer: its text, the item of that very title (-1: none), its log-probability score."""

    text: str
    position: int
    score: float


class Answering:
    """Asks models for answers under one encoder and one set of settings."""

    def __init__(self, encoder: PromptEncoder, distill: Distill, decode: Decode) -> None:
        self.encoder, self.distill, self.decode = encoder, distill, decode

    def ask(
        self,
        model: nn.Module,
        histories: Sequence[npt.NDArray[np.int32]],
        texts: Sequence[Ids] | None = None,
        beginning: Beginning | None = None,
    ) -> list[list[Beam]]:
        """The beams of each prompt, best first; reads all prompts as one batch.

        `texts`: the prompts' tokens, where they show more than the histories. `beginning`: what the
        prompts of all batches begin with.
        """
        shown = [self.encoder.prompt(h).ids for h in histories] if texts is None else texts
        prompts = SharedPrompt(model, shown, beginning)
        beams = self.distill.beams
        if self.distill.decode == "free":
            end = self.encoder.tokenizer.eos_token_id
            written = free_beam_search(
                prompts, beams=beams, end=end, max_new_tokens=self.distill.max_new_tokens
            )
            return [[self._beam(w.tokens, w.score) for w in one] for one in written]
        closed = [np.zeros(0, np.int32)] * len(histories)
        rankings = beam_search(
            prompts,
            OpenItems(self.encoder.trie, closed),
            beams=beams,
            top_k=beams,
            scoring=Scoring(self.decode.renormalise),
        )
        return [
            [
                Beam(self.encoder.titles[p], p, s)
                for p, s in zip(r.positions.tolist(), r.scores.tolist(), strict=True)
            ]
            for r in rankings
        ]

    def _beam(self, tokens: npt.NDArray[np.int32], score: float) -> Beam:
        text = self.encoder.written(tokens)
        return Beam(text, self.encoder.position_of.get(text, -1), score)


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
