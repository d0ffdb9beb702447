"""The language model's systems: one model, its adapter on or off, asked batch by batch."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.decoding.beginning import Beginning, beginning_of
from llmrec.inference.engine import ranked_and_scored, scored_paths, steps_of
from llmrec.inference.from_recipe import adapter_of, base_of, encoder_of, sft_adapter_of
from llmrec.inference.grounded import Grounded
from llmrec.inference.prompting import Prompting, prompting_of
from llmrec.inference.ratings import Selected
from llmrec.model.forward import require_tree_support
from llmrec.model.loading import adapter_off, load_model, load_tuned
from llmrec.recipe import Recipe
from llmrec.recipe.systems import System
from llmrec.runs.batch_files import Batch, answer_in_parts, batches
from llmrec.runs.folder import RunFolder
from llmrec.runs.processes import processes

log = logging.getLogger("llmrec")


class LanguageSystems:
    """`untuned` is the base model as it came, `tuned` the base model with the run's adapter."""

    def __init__(self, recipe: Recipe, folder: RunFolder, catalog: Catalog) -> None:
        self.recipe, self.state = recipe, processes()
        self.encoder = encoder_of(recipe, catalog, folder)
        self.base = base_of(recipe)
        self.folder = folder
        self._loaded: tuple[Path | None, Any] = (None, None)
        self._prompting: dict[str, Prompting] = {}

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the results."""
        return self.state.is_main_process

    def answer(
        self,
        system: str,
        split: str,
        examples: Examples,
        parts: Path,
        weight: float,
        probabilities: npt.NDArray[np.float64] | None,
    ) -> None:
        """Rank items and score targets for a split's examples; one file a batch under `parts`.

        Batches whose file stands are not done again. Returns when all processes are done.
        """
        decode, encoder = self.recipe.decode, self.encoder
        prompting = self.prompting(split, examples)

        def begin() -> Callable[[Batch], list[Any]]:
            model = self.model_of(system)
            beginning = self._beginning(system, model, prompting)
            steps = steps_of(model, decode)

            def answer(batch: Batch) -> list[Any]:
                q = None if probabilities is None else probabilities[batch]
                asked = prompting.take(batch)
                with self._as(system, model):
                    selected = asked.selected(model)
                    rankings, nll = ranked_and_scored(
                        model,
                        encoder,
                        examples.take(batch),
                        decode,
                        prompts=asked.ids(selected),
                        beginning=beginning,
                        candidates=asked.candidates,
                        weight=weight,
                        probabilities=q,
                        steps=steps,
                    )
                return [
                    {
                        "items": r.positions.tolist(),
                        "scores": r.scores.tolist(),
                        "proven": r.certified,
                        "nll": float(n) if np.isfinite(n) else None,
                        **_said(s),
                    }
                    for r, n, s in zip(rankings, nll, selected, strict=True)
                ]

            return answer

        plan = self._plan(prompting)
        answer_in_parts(parts, plan, begin, self.state, f"recommend: {system}")

    def write(self, system: str, split: str, examples: Examples, parts: Path) -> None:
        """Free answers for every example of a split; one file a batch under `parts`."""
        prompting = self.prompting(split, examples)

        def begin() -> Callable[[Batch], list[Any]]:
            model = self.model_of(system)
            beginning = self._beginning(system, model, prompting)

            def answer(batch: Batch) -> list[Any]:
                asked = prompting.take(batch)
                with self._as(system, model):
                    selected = asked.selected(model)
                    prompts = asked.ids(selected)
                    texts = self.grounded.written(model, asked.histories, prompts, beginning)
                return [{"text": t, **_said(s)} for t, s in zip(texts, selected, strict=True)]

            return answer

        plan = self._plan(prompting)
        answer_in_parts(parts, plan, begin, self.state, f"recommend: {system}")

    def _plan(self, prompting: Prompting) -> list[Batch]:
        decode = self.recipe.decode
        return batches(list(map(len, prompting.ids())), decode.batch_size, decode.batch_tokens)

    def _beginning(self, system: str, model: Any, prompting: Prompting) -> Beginning | None:
        """What all prompts begin with; None where a model selects what else they show."""
        if prompting.selecting is not None:
            return None
        with self._as(system, model):
            return beginning_of(model, prompting.ids())

    def prompting(self, split: str, examples: Examples) -> Prompting:
        """The prompts of a split."""
        if split not in self._prompting:
            with self.state.main_process_first():
                self._prompting[split] = prompting_of(
                    self.recipe, self.folder, self.encoder, split, examples
                )
        return self._prompting[split]

    @cached_property
    def grounded(self) -> Grounded:
        """What ranks items by free answers."""
        return Grounded(self.recipe, self.encoder)

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
        prompting = self.prompting("valid", valid)
        with self._as(system, model):
            for _, paths in scored_paths(
                model,
                self.encoder,
                valid,
                filter_seen=decode.filter_seen,
                batch_size=decode.batch_size,
                prompts=prompting.ids(prompting.selected(model)),
                probabilities=probabilities,
                steps=steps_of(model, decode),
            ):
                counted += int(paths.reachable.sum())
                for weight in grid:
                    total[weight] += float(paths.nll(weight)[paths.reachable].sum())
        return {weight: value / counted for weight, value in total.items()} if counted else {}

    def model_of(self, name: str) -> Any:
        """The model of a system; one with an adapter serves as the untuned one too, adapter off."""
        adapter = adapter_of_system(self.recipe, self.folder, System.parse(name))
        if adapter is None and hasattr(self._loaded[1], "disable_adapter"):
            return self._loaded[1]
        if self._loaded[1] is None or self._loaded[0] != adapter:
            log.info("recommend: loading %s", self.base.source)
            self._loaded = (adapter, None)  # the one before goes first
            model = load_tuned(self.base, adapter) if adapter else load_model(self.base)
            require_tree_support(model, self.recipe.prompt.max_tokens)
            self._loaded = (adapter, model)
        return self._loaded[1]

    def _as(self, system: str, model: Any) -> Any:
        return nullcontext() if System.parse(system).has_adapter else adapter_off(model)


def adapter_of_system(recipe: Recipe, folder: RunFolder, system: System) -> Path | None:
    """The adapter that a language model's system answers with; None for the model as it came."""
    if not system.has_adapter:
        return None
    return (sft_adapter_of if system.is_before_soft else adapter_of)(recipe, folder)


def _said(selected: Selected) -> dict[str, Any]:
    """What is kept of a selection beside an answer; nothing where no users were to be shown."""
    if not selected.shown and not selected.failed:
        return {}
    return {"shown": list(selected.shown), "failed": selected.failed}
