"""What the systems of a run share: data, fitted baselines, language models; each made once.

Also what a system's answers depend on, and what was chosen for it when it answered the test split.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llmrec.baselines.ranking import Scorer, chunks
from llmrec.baselines.tuning import Search, Tuned, choose, refitted
from llmrec.data.candidates import read_candidates
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples, Interactions
from llmrec.evaluation.predictions import SystemInfo
from llmrec.inference.baseline_search import search_of
from llmrec.inference.candidate_retriever import CandidateRetriever
from llmrec.recipe import Recipe
from llmrec.recipe.systems import System
from llmrec.runs import made
from llmrec.runs.artifact import Artifact
from llmrec.runs.folder import RunFolder

if TYPE_CHECKING:
    from llmrec.systems.language_models import LanguageModels

log = logging.getLogger("llmrec")
# Keys of `decode` that decide how long a list is and how it is searched, and nothing that
# validation chooses.
_OF_LISTS = {f"decode.{key}" for key in ("top_k", "search", "beams", "renormalise")}


@dataclass
class Resources:
    """The data of a run and whatever its systems need of it; everything is made when first asked
    for."""

    recipe: Recipe
    folder: RunFolder
    _fitted: dict[str, Tuned] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)
    _artifacts: dict[System, Artifact] = field(default_factory=dict)

    @cached_property
    def catalog(self) -> Catalog:
        return Catalog.read(self.folder.items)

    @cached_property
    def test(self) -> Examples:
        return Examples.read(self.folder.examples("test"))

    @cached_property
    def valid(self) -> Examples:
        return Examples.read(self.folder.examples("valid"))

    @cached_property
    def interactions(self) -> Interactions:
        return Interactions.read(self.folder.interactions)

    @cached_property
    def candidates(self) -> npt.NDArray[np.int32] | None:
        """(E, C) the items among which each test target is to be found; None: the catalog."""
        if self.recipe.data.candidates is None:
            return None
        return read_candidates(self.folder.candidates("test"))

    @cached_property
    def retriever(self) -> CandidateRetriever | None:
        """What proposes candidates; None where the recipe has no retriever."""
        asked = self.recipe.data.candidates
        if asked is None or asked.retriever is None:
            return None
        return CandidateRetriever.of(self.recipe, self.folder)

    @cached_property
    def language(self) -> "LanguageModels":
        from llmrec.systems.language_models import LanguageModels

        return LanguageModels(self.recipe, self.folder, self.catalog)

    def fitted(self, name: str) -> Tuned:
        """A baseline with its hyperparameters chosen in validation."""
        if name not in self._fitted:
            log.info("recommend: fitting %s", name)
            self._fitted[name] = choose(name, *self._to_fit)
        return self._fitted[name]

    def refitted(self, name: str, chosen: Mapping[str, Any] | None = None) -> Scorer:
        """A baseline with hyperparameters that were chosen before.

        By default those of the test split's predictions; where there are none, they are chosen.
        """
        chosen = chosen or self.recorded(System.parse(name)).get("chosen")
        if chosen is None or name in self._fitted:
            return self.fitted(name).fitted
        return refitted(name, chosen, *self._to_fit)

    @property
    def _to_fit(self) -> tuple[Interactions, Examples, Catalog, bool, int, Search]:
        """What baselines are fitted to, as `choose` and `refitted` take it."""
        recipe, search = self.recipe, search_of(self.recipe, self.catalog)
        filter_seen = recipe.decode.filter_seen
        return self.interactions, self.valid, self.catalog, filter_seen, recipe.seed, search

    def recorded(self, system: System) -> Mapping[str, Any]:
        """What validation chose for a system when it answered the test split; empty where nothing.

        Nothing either where it was chosen under other settings, data or weights than those of now.
        """
        path = self.folder.predictions(system.name)
        if not path.is_file():
            return {}
        info = SystemInfo.read(path)
        before, now = info.provenance.get("settings"), self.settings(system)
        return info.hyperparameters if _same_choice(system, before, now) else {}

    def probabilities(
        self, scorer: Any, histories: Sequence[npt.NDArray[np.int32]]
    ) -> npt.NDArray[np.float64]:
        """(U, N) a fitted baseline's probabilities of all items, made chunk by chunk."""
        filter_seen, size = self.recipe.decode.filter_seen, len(self.catalog)
        found = np.empty((len(histories), size))
        for part in chunks(len(histories), size):
            found[part] = scorer.probabilities(histories[part], filter_seen)
        return found

    def artifact(self, system: System) -> Artifact:
        """What the system recommends for the test split, and all that it depends on."""
        if system not in self._artifacts:
            weights = self._weights_hash(system) if system.is_trained else None
            self._artifacts[system] = made.predictions(self.recipe, self.folder, system, weights)
        return self._artifacts[system]

    def settings(self, system: System) -> dict[str, Any]:
        """All that the system's answers depend on, besides the versions of packages."""
        return self.artifact(system).key

    def provenance(self, system: System) -> dict[str, Any]:
        """What a system's answers rest on, for the file that holds them."""
        return {**self.folder.provenance(self.recipe), "settings": self.settings(system)}

    def batch_files(self, system: System, split: str) -> Path:
        """Where answers are kept batch by batch until all are there."""
        name = f"{system.name}-{split}-{self.artifact(system).fingerprint[:16]}"
        return self.folder.predictions(system.name).parent / ".parts" / name

    def _weights_hash(self, system: System) -> str:
        """SHA-256 over what was trained, verified. Raises LlmrecError for other settings' weights.

        Known once, as a file of weights is long.
        """
        if system.weights not in self._hashes:
            self._hashes[system.weights] = (
                made.network(self.recipe, self.folder, system.step, to_use=True).content()
                if system.kind == "network"
                else made.adapter_content(self.recipe, self.folder, system.is_before_soft)
            )
        return self._hashes[system.weights]


def _same_choice(system: System, before: Any, now: dict[str, Any]) -> bool:
    """Whether validation chooses the same under two settings of a system."""
    if not isinstance(before, dict):
        return False
    if system.way == "grounded":  # by NDCG at top_k
        return before == now

    def without_lists(settings: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in settings.items() if key not in _OF_LISTS}

    return without_lists(before) == without_lists(now)
