"""The language model's systems: one model, its adapter on or off, asked batch by batch."""

import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.data.batching import Batch
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.inference.engine import Engine, closed_items, plan_of
from llmrec.inference.from_recipe import adapter_of, base_of, encoder_of, sft_adapter_of
from llmrec.inference.grounded import Grounded
from llmrec.inference.prompting import Prompting, prompting_of
from llmrec.inference.ratings import Selected
from llmrec.model.forward import require_tree_support
from llmrec.model.loading import load_model, load_tuned
from llmrec.recipe import Recipe
from llmrec.recipe.systems import System
from llmrec.runs.batch_files import answer_in_parts
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
        prompting = self.prompting(split, examples)

        def begin() -> Callable[[Batch], list[Any]]:
            engine = self._engine(system, prompting)

            def answer(batch: Batch) -> list[Any]:
                asked, targets = prompting.take(batch), examples.targets[batch]
                selected = asked.selected(engine)
                prompts = asked.ids(selected)
                if asked.candidates is not None:
                    found = engine.choose(prompts, asked.candidates, targets)
                else:
                    found = engine.rank(
                        prompts,
                        closed_items(asked.histories, self.recipe.decode.filter_seen),
                        targets=targets,
                        probabilities=None if probabilities is None else probabilities[batch],
                        weight=weight,
                    )
                return [
                    {
                        "items": r.positions.tolist(),
                        "scores": r.scores.tolist(),
                        "proven": r.certified,
                        "nll": float(n) if np.isfinite(n) else None,
                        **_said(s),
                    }
                    for r, n, s in zip(found.rankings, found.nll, selected, strict=True)
                ]

            return answer

        plan = self._plan(prompting)
        answer_in_parts(parts, plan, begin, self.state, f"recommend: {system}")

    def write(self, system: str, split: str, examples: Examples, parts: Path) -> None:
        """Free answers for every example of a split; one file a batch under `parts`."""
        prompting = self.prompting(split, examples)

        def begin() -> Callable[[Batch], list[Any]]:
            engine = self._engine(system, prompting)

            def answer(batch: Batch) -> list[Any]:
                asked = prompting.take(batch)
                selected = asked.selected(engine)
                texts = self.grounded.written(engine, asked.ids(selected))
                return [{"text": t, **_said(s)} for t, s in zip(texts, selected, strict=True)]

            return answer

        plan = self._plan(prompting)
        answer_in_parts(parts, plan, begin, self.state, f"recommend: {system}")

    def _plan(self, prompting: Prompting) -> list[Batch]:
        return plan_of(prompting.ids(), self.recipe.decode)

    def engine_of(self, system: str) -> Engine:
        """What asks a system's model."""
        untuned = not System.parse(system).has_adapter
        return Engine(self.model_of(system), self.encoder, self.recipe.decode, untuned=untuned)

    def _engine(self, system: str, prompting: Prompting) -> Engine:
        """The same, behind what all prompts begin with where no model selects what they show."""
        engine = self.engine_of(system)
        return engine if prompting.selecting is not None else engine.behind(prompting.ids())

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
        engine, prompting = self.engine_of(system), self.prompting("valid", valid)
        prompts = prompting.ids(prompting.selected(engine))
        closed = closed_items(valid.histories(), self.recipe.decode.filter_seen)
        for _, paths in engine.paths(prompts, closed, valid.targets, probabilities):
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
