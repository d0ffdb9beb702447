"""The language model's systems: one model, its adapter on or off, asked batch by batch."""

import logging
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.data.catalog import Catalog
from llmrec.data.files import write_json
from llmrec.data.records import Examples
from llmrec.decoding.beam import Scoring, beam_search
from llmrec.decoding.likelihood import path_scores
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.model.forward import require_tree_support
from llmrec.model.loading import load_model, load_tuned
from llmrec.recipe import Recipe
from llmrec.stages.folder import RunFolder
from llmrec.stages.language import (
    adapter_of,
    base_of,
    batches,
    closed_items,
    encoder_of,
    processes,
    scored_paths,
)

log = logging.getLogger("llmrec")
PROGRESS_SECONDS = 30.0


class LanguageSystems:
    """`untuned` is the base model as it came, `tuned` the base model with the run's adapter."""

    def __init__(self, recipe: Recipe, folder: RunFolder, catalog: Catalog) -> None:
        self.recipe, self.state = recipe, processes()
        self.encoder = encoder_of(recipe, catalog)
        self.base = base_of(recipe)
        self.adapter = adapter_of(recipe, folder.adapter)
        self._loaded: dict[bool, Any] = {}

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the results."""
        return self.state.is_main_process

    def answer(
        self,
        system: str,
        test: Examples,
        parts: Path,
        weight: float,
        probabilities: npt.NDArray[np.float64] | None,
    ) -> None:
        """Rank items and score targets for every example; one file a batch under `parts`.

        Batches whose file stands are not done again. Returns when all processes are done.
        """
        decode, histories = self.recipe.decode, test.histories()
        prompts = [self.encoder.prompt(history).ids for history in histories]
        scoring = Scoring(decode.renormalise, weight)
        plan = batches([len(p) for p in prompts], decode.batch_size)
        mine = [(number, batch) for number, batch in enumerate(plan)
                if number % self.state.num_processes == self.state.process_index
                and not _part(parts, number).exists()]  # fmt: skip
        model = self.model_of(system) if mine else None
        told = time.monotonic()
        with self._adapter_off(model, system):
            for done, (number, batch) in enumerate(mine):
                begun = time.monotonic()
                closed = closed_items([histories[i] for i in batch], decode.filter_seen)
                q = None if probabilities is None else probabilities[batch]
                open_items = OpenItems(self.encoder.trie, closed, q)
                shared = SharedPrompt(model, [prompts[i] for i in batch])
                rankings = beam_search(shared, open_items, beams=decode.beams,
                                       top_k=decode.top_k, scoring=scoring)  # fmt: skip
                nll = path_scores(shared, self.encoder.completions,
                                  test.targets[batch].tolist(), open_items).nll(weight)  # fmt: skip
                answers = {
                    str(i): {"items": r.positions.tolist(), "scores": r.scores.tolist(),
                             "nll": float(n) if np.isfinite(n) else None}
                    for i, r, n in zip(batch, rankings, nll, strict=True)
                }  # fmt: skip
                seconds = time.monotonic() - begun
                write_json(_part(parts, number), {"seconds": seconds, "answers": answers})
                if time.monotonic() - told > PROGRESS_SECONDS:
                    told = time.monotonic()
                    log.info("recommend: %s, %d of %d batches", system, done + 1, len(mine))
        self.state.wait_for_everyone()

    def guided_nll(
        self,
        system: str,
        valid: Examples,
        probabilities: npt.NDArray[np.float64],
        grid: list[float],
    ) -> dict[float, float]:
        """Mean target NLL in validation for each weight of the language model against the guide.

        Every process computes all of it. Targets that are not open to their users do not count.
        """
        total = dict.fromkeys(grid, 0.0)
        counted = 0
        model, decode = self.model_of(system), self.recipe.decode
        with self._adapter_off(model, system):
            for _, paths in scored_paths(
                model, self.encoder, valid, filter_seen=decode.filter_seen,
                batch_size=decode.batch_size, probabilities=probabilities,
            ):  # fmt: skip
                counted += int(paths.reachable.sum())
                for weight in grid:
                    total[weight] += float(paths.nll(weight)[paths.reachable].sum())
        return {weight: value / counted for weight, value in total.items()} if counted else {}

    def model_of(self, system: str) -> Any:
        """The base model, with the adapter on it once a tuned system was asked for."""
        tuned = system.startswith("tuned")
        if tuned not in self._loaded and True in self._loaded and self._is_adapter:
            return self._loaded[True]  # `untuned` is then the same model, adapter off
        if tuned not in self._loaded:
            log.info("recommend: loading %s", self.base.source)
            self._loaded.clear()
            model = load_tuned(self.base, self.adapter) if tuned else load_model(self.base)
            require_tree_support(model, self.recipe.prompt.max_tokens)
            self._loaded[tuned] = model
        return self._loaded[tuned]

    @property
    def _is_adapter(self) -> bool:
        return hasattr(self._loaded[True], "disable_adapter")

    def _adapter_off(self, model: Any, system: str) -> Any:
        off = system.startswith("untuned") and hasattr(model, "disable_adapter")
        return model.disable_adapter() if off else nullcontext()


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:06d}.json"
