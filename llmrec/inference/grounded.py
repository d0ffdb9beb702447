"""Grounding in a stage: what a model writes freely, and the catalog items nearest to it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.decoding.beam import Ranking
from llmrec.decoding.nearest import nearest, target_ranks
from llmrec.inference.engine import Engine, closed_items
from llmrec.inference.free_answers import Embedding
from llmrec.inference.title_states import item_states
from llmrec.recipe import Recipe
from llmrec.text.encoding import Ids, PromptEncoder

Histories = Sequence[npt.NDArray[np.int32]]
Fusion = npt.NDArray[np.float64] | None


class TextGrounding:
    """Free answers of models and their rankings, under one recipe and encoder."""

    def __init__(self, recipe: Recipe, encoder: PromptEncoder) -> None:
        self.recipe, self.encoder = recipe, encoder
        self._embedding = Embedding(encoder)
        self._table: npt.NDArray[np.float32] | None = None

    def written(self, engine: Engine, prompts: Sequence[Ids]) -> list[str]:
        """The best of the free beams behind each of E prompts."""
        grounding = self.recipe.decode.grounding
        answers = engine.write(prompts, grounding.beams, grounding.max_new_tokens)
        return [self.encoder.written(beams[0].tokens) for beams in answers]

    def rankings(
        self,
        model: Any,
        texts: Sequence[str],
        histories: Histories,
        top_k: int,
        fusion: Fusion = None,
        gamma: float = 0.0,
        closed: npt.NDArray[np.int32] | None = None,
    ) -> list[Ranking]:
        """The `top_k` open items nearest to each text; scores are minus distances.

        `closed`: positions that nobody may be recommended.
        """
        shut = closed_items(histories, self.recipe.decode.filter_seen, closed)
        return nearest(*self._places(model, texts), shut, top_k, fusion, gamma)

    def ranks(
        self,
        model: Any,
        texts: Sequence[str],
        histories: Histories,
        targets: npt.NDArray[np.int32],
        fusion: Fusion = None,
        gamma: float = 0.0,
    ) -> npt.NDArray[np.int64]:
        """(U,) rank from 0 of each user's target among all open items; N where it is not open."""
        places = self._places(model, texts)
        shut = closed_items(histories, self.recipe.decode.filter_seen)
        return target_ranks(*places, targets, shut, fusion, gamma)

    def is_title(self, text: str) -> bool:
        """Whether the text is a catalog title to the letter."""
        return text in self.encoder.position_of

    def _places(
        self, model: Any, texts: Sequence[str]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """States of texts (U, d) and of all items (N, d); a title's very text has its item's."""
        if self._table is None:
            self._table = item_states(self.recipe, self.encoder, model)
        states = np.zeros((len(texts), self._table.shape[1]), np.float32)
        known = np.array([self.encoder.position_of.get(text, -1) for text in texts], np.int64)
        states[known >= 0] = self._table[known[known >= 0]]
        others = np.flatnonzero(known < 0)
        if len(others):
            states[others] = self._embedding.of(model, [texts[i] for i in others])
        return states, self._table
