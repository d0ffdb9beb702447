"""The language models of a run: one base model, its adapter on or off, asked through an Engine."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.inference.engine import Engine
from llmrec.inference.from_recipe import adapter_of, base_of, encoder_of, sft_adapter_of
from llmrec.inference.grounded import TextGrounding
from llmrec.inference.prompting import Prompting, prompting_of
from llmrec.model.forward import require_tree_support
from llmrec.model.loading import load_model, load_tuned
from llmrec.recipe import Recipe
from llmrec.recipe.systems import System
from llmrec.runs.folder import RunFolder
from llmrec.runs.processes import main_first, processes

log = logging.getLogger("llmrec")


class LanguageModels:
    """`untuned` weights are the base model as it came, all others an adapter on top of it."""

    def __init__(self, recipe: Recipe, folder: RunFolder, catalog: Catalog) -> None:
        self.recipe, self.folder, self.state = recipe, folder, processes()
        self.encoder = encoder_of(recipe, catalog, folder)
        self._held: tuple[Path | None, Any] = (None, None)
        self._engines: dict[bool, Engine] = {}
        self._prompting: dict[str, Prompting] = {}

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the results."""
        return self.state.is_main_process

    @cached_property
    def grounded(self) -> TextGrounding:
        """What ranks items by free answers."""
        return TextGrounding(self.recipe, self.encoder)

    def prompting(self, split: str, examples: Examples) -> Prompting:
        """The prompts of a split."""
        if split not in self._prompting:
            with main_first():
                self._prompting[split] = prompting_of(
                    self.recipe, self.folder, self.encoder, split, examples
                )
        return self._prompting[split]

    def engine(self, system: System) -> Engine:
        """What asks a system's model; a model with an adapter is the untuned one too, adapter off.

        One model is held at a time, with the engine's fixed passes.
        """
        model, untuned = self._model(system), not system.has_adapter
        if untuned not in self._engines:
            self._engines[untuned] = Engine(
                model, self.encoder, self.recipe.decode, untuned=untuned
            )
        return self._engines[untuned]

    def hold(self, model: Any, system: System) -> None:
        """Take `model` as the one of a system, instead of loading it."""
        require_tree_support(model, self.recipe.prompt.max_tokens)
        self._held = (self._adapter(system), model)
        self._engines = {}

    def _model(self, system: System) -> Any:
        adapter, (held, model) = self._adapter(system), self._held
        if adapter is None and hasattr(model, "disable_adapter"):
            return model
        if model is None or held != adapter:
            base = base_of(self.recipe)
            log.info("recommend: loading %s", base.source)
            self._held, model = (adapter, None), None  # the one before goes first
            self._engines = {}
            self.hold(load_tuned(base, adapter) if adapter else load_model(base), system)
        return self._held[1]

    def _adapter(self, system: System) -> Path | None:
        if not system.has_adapter:
            return None
        return adapter_of_system(self.recipe, self.folder, system)


def adapter_of_system(recipe: Recipe, folder: RunFolder, system: System) -> Path:
    """The folder of the adapter that a language model answers with."""
    return (sft_adapter_of if system.is_before_soft else adapter_of)(recipe, folder)
