"""The rows of the table: every system answers for a split."""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.baselines.ranking import Scorer, chunks, predict
from llmrec.baselines.tuning import Tuned, choose
from llmrec.data.candidates import read_candidates
from llmrec.data.catalog import Catalog
from llmrec.data.files import sha256_of, write_json
from llmrec.data.records import Examples, Interactions
from llmrec.decoding.grounding import normalised
from llmrec.errors import LlmrecError
from llmrec.evaluation.predictions import Predictions, SystemInfo
from llmrec.inference.similar_users import shortfalls
from llmrec.recipe import Recipe
from llmrec.recipe.systems import GUIDES, System
from llmrec.runs import made
from llmrec.runs.batch_files import collected, discard
from llmrec.runs.folder import RunFolder
from llmrec.systems.baseline_search import search_of
from llmrec.systems.cold_items import cold_places

log = logging.getLogger("llmrec")


@dataclass
class Answering:
    """The pieces that several systems share, each made once and when first needed."""

    recipe: Recipe
    folder: RunFolder
    tuned: dict[str, Tuned] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)

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
    def candidates(self) -> npt.NDArray[np.int32] | None:
        """(E, C) the items among which each test target is to be found; None: the catalog."""
        if self.recipe.data.candidates is None:
            return None
        return read_candidates(self.folder.candidates("test"))

    @cached_property
    def training(self) -> Interactions:
        return Interactions.read(self.folder.interactions)

    @cached_property
    def language(self) -> Any:
        from llmrec.systems.language import LanguageSystems

        return LanguageSystems(self.recipe, self.folder, self.catalog)

    def settings(self, name: str) -> dict[str, Any]:
        """All that the system's answers depend on, besides the versions of packages."""
        recipe, system = self.recipe, System.parse(name)
        known = values_at(recipe, system.depends)
        known["data"] = sha256_of(self.folder.data / "manifest.json")
        if system.way == "guided" and recipe.decode.guidance.baseline == "auto":
            known["guides"] = [name for name in recipe.systems if name in GUIDES]
        if system.is_trained:
            known["weights"] = self._weights_hash(system)
        return known

    def fitted(self, name: str) -> Tuned:
        """A baseline with its hyperparameters chosen in validation."""
        if name not in self.tuned:
            log.info("recommend: fitting %s", name)
            self.tuned[name] = choose(
                name,
                self.training,
                self.valid,
                self.catalog,
                filter_seen=self.recipe.decode.filter_seen,
                seed=self.recipe.seed,
                search=search_of(self.recipe, self.catalog),
            )
        return self.tuned[name]

    def of(self, name: str) -> Predictions | None:
        """A system's answers for the test split; None in a process that only helps."""
        system = System.parse(name)
        if system.kind == "language_model":
            ways = {"grounded": self.grounded, "free": self.free}
            return ways.get(system.way, self.language_model)(name)
        listed = self.recipe.data.candidates or self.recipe.decode.top_k
        return self.scored(name, self.test, listed)

    def scorer(self, system: str) -> tuple[Scorer, dict[str, Any]]:
        """What scores the items for a baseline or a network, and how it came to be."""
        if System.parse(system).kind == "network":
            from llmrec.methods import networks

            step = System.parse(system).step
            return (
                networks.fitted(self.recipe, self.folder, step),
                networks.facts(self.recipe, self.folder, step),
            )
        tuned = self.fitted(system)
        return tuned.fitted, tuned.described

    def scored(self, system: str, asked: Examples, k: int) -> Predictions:
        """The `k` best items of a baseline or a network for some examples."""
        begun = time.monotonic()
        fitted, described = self.scorer(system)
        answers = predict(
            fitted,
            asked.histories(),
            asked.targets,
            len(self.catalog),
            k,
            # Candidates are items to choose from whether or not one was seen before.
            self.recipe.decode.filter_seen and self.candidates is None,
            self.candidates,
        )
        kept = answers.positions >= 0
        info = SystemInfo(
            system,
            System.parse(system).kind,
            not np.isnan(answers.nll).all(),
            described,
            round(time.monotonic() - begun, 2),
            self._provenance(system),
        )
        return Predictions.of(
            info,
            asked.user_ids,
            [row[k] for row, k in zip(answers.positions, kept, strict=True)],
            [row[k] for row, k in zip(answers.scores, kept, strict=True)],
            answers.nll,
            cold_places(self.recipe, fitted, asked, self.training, len(self.catalog)),
        )

    def language_model(self, system: str, split: str = "test") -> Predictions | None:
        """A language model's answers; None in a process that only helps."""
        asked = self.test if split == "test" else self.valid
        hyperparameters, q, weight = {}, None, 1.0
        if System.parse(system).way == "guided":
            guide = self._guide()
            weight, by_weight = self._guidance_weight(system, guide)
            hyperparameters = {"guided_by": guide, "weight": weight, "valid_nll": by_weight}
            q = self._probabilities(guide, asked)
        parts = self._parts(system, split)
        self.language.answer(system, split, asked, parts, weight, q)
        if not self.language.is_main_process:
            return None
        ordered, seconds = collected(parts)
        if self.candidates is None:
            hyperparameters["search"] = self.recipe.decode.kind
            hyperparameters["proven"] = float(np.mean([a["proven"] for a in ordered]))
        if split == "test":
            hyperparameters |= self._demonstrated(system, ordered)
        info = SystemInfo(
            system,
            "language_model",
            True,
            hyperparameters,
            round(seconds, 2),
            self._provenance(system),
        )
        predictions = Predictions.of(
            info,
            asked.user_ids,
            [np.array(a["items"], np.int32) for a in ordered],
            [np.array(a["scores"], np.float32) for a in ordered],
            np.array([np.inf if a["nll"] is None else a["nll"] for a in ordered]),
        )
        discard(parts)
        return predictions

    def free(self, system: str) -> Predictions | None:
        """The candidate that a language model writes; an empty list where it writes none of them.

        None in a process that only helps.
        """
        language, parts = self.language, self._parts(system)
        language.write(system, "test", self.test, parts)
        if not language.is_main_process:
            return None
        said, seconds = collected(parts)
        answers = [
            named_candidate(answer["text"], candidates, self.catalog.titles)
            for answer, candidates in zip(said, self.candidates, strict=True)
        ]
        facts = {
            "valid_answers": float(np.mean([len(a) for a in answers])),
            **self._demonstrated(system, said),
        }
        info = SystemInfo(
            system, "language_model", False, facts, round(seconds, 2), self._provenance(system)
        )
        discard(parts)
        return Predictions.of(
            info,
            self.test.user_ids,
            answers,
            [np.zeros(len(a), np.float32) for a in answers],
            np.full(len(self.test), np.nan),
        )

    def _demonstrated(self, system: str, answers: list[Any]) -> dict[str, Any]:
        """What was shown of similar users; keeps which ones, for `check leakage`."""
        pools = self.language.prompting("test", self.test).pools
        if pools is None:
            return {}
        shown = [answer.get("shown", []) for answer in answers]
        write_json(self.folder.shown(system), shown)
        others = [len(set(s) - set(range(len(s)))) / len(s) for s in shown if s]
        return {
            **shortfalls(pools, self.test, self.language.prompting("test", self.test).shown),
            "other_users_than_retrieved": float(np.mean(others)) if others else 0.0,
            "selection_failed": sum(bool(answer.get("failed")) for answer in answers),
        }

    def grounded(self, system: str) -> Predictions | None:
        """A language model's free answers, grounded; None in a process that only helps."""
        settings = self.recipe.decode.grounding
        begun, language = time.monotonic(), self.language
        wanted = {"test": self.test}
        chosen_in_validation = settings.fusion is not None and settings.gamma == "auto"
        if chosen_in_validation:
            wanted["valid"] = self.valid
        parts = {split: self._parts(system, split) for split in wanted}
        for split, examples in wanted.items():
            language.write(system, split, examples, parts[split])
        if not language.is_main_process:
            return None
        model, place = language.model_of(system), language.grounded
        answers = {split: collected(where)[0] for split, where in parts.items()}
        texts = {split: [a["text"] for a in said] for split, said in answers.items()}
        said: dict[str, Any] = {
            "answers_that_are_titles": float(np.mean([place.is_title(t) for t in texts["test"]])),
            **self._demonstrated(system, answers["test"]),
        }
        gamma, fusion = 0.0, None
        if settings.fusion is not None:
            gamma, by_gamma = float(settings.gamma) if settings.gamma != "auto" else 0.0, {}
            if chosen_in_validation:
                by_gamma = self._ndcg_by_gamma(model, place, texts["valid"])
                gamma = max(by_gamma, key=lambda g: (by_gamma[g], -g))
            fusion = self._probabilities(settings.fusion, self.test)
            said |= {
                "fused_with": settings.fusion,
                "gamma": gamma,
                "valid_ndcg": {f"{g:g}": value for g, value in by_gamma.items()},
            }
        rankings = place.rankings(
            model, texts["test"], self.test.histories(), self.recipe.decode.top_k, fusion, gamma
        )
        info = SystemInfo(
            system,
            "language_model",
            False,
            said,
            round(time.monotonic() - begun, 2),
            self._provenance(system),
        )
        for where in parts.values():
            discard(where)
        return Predictions.of(
            info,
            self.test.user_ids,
            [r.positions for r in rankings],
            [r.scores for r in rankings],
            np.full(len(self.test), np.nan),
        )

    def _ndcg_by_gamma(self, model: Any, place: Any, texts: list[str]) -> dict[float, float]:
        """NDCG at top_k in validation for each weight of the grid."""
        settings, valid = self.recipe.decode.grounding, self.valid
        q = self._probabilities(str(settings.fusion), valid)
        found = {}
        for gamma in settings.grid:
            ranks = place.ranks(model, texts, valid.histories(), valid.targets, q, gamma)
            hit = ranks < self.recipe.decode.top_k
            found[gamma] = float(np.where(hit, 1 / np.log2(ranks + 2.0), 0.0).mean())
        return found

    def _parts(self, system: str, split: str = "test") -> Path:
        """Where answers are kept batch by batch until all are there."""
        name = f"{system}-{split}-{self._key(system)}"
        return self.folder.predictions(system).parent / ".parts" / name

    def _guide(self) -> str:
        """The baseline that guides: the recipe's, or the best in validation of those it lists."""
        named = self.recipe.decode.guidance.baseline
        if named not in (None, "auto"):
            return named
        listed = [system for system in self.recipe.systems if system in GUIDES]
        tried = {name: self.fitted(name) for name in listed or GUIDES[:1]}
        return min(tried, key=lambda name: (tried[name].value, name))

    def _guidance_weight(self, system: str, guide: str) -> tuple[float, dict[str, float]]:
        """The model's share, given or best in validation, and the mean NLL of each one tried."""
        wanted = self.recipe.decode.guidance.weight
        if wanted != "auto":
            return float(wanted), {}
        log.info("recommend: choosing the weight of %s in validation", system)
        by_weight = self.language.guided_nll(
            system,
            self.valid,
            self._probabilities(guide, self.valid),
            self.recipe.decode.guidance.grid,
        )
        if not by_weight:
            raise LlmrecError(
                "no validation target can be recommended, so no guidance weight can "
                "be chosen; set decode.guidance.weight to a number"
            )
        best = min(by_weight, key=lambda weight: (by_weight[weight], weight))
        return best, {f"{weight:g}": value for weight, value in by_weight.items()}

    def _probabilities(self, guide: str, examples: Examples) -> npt.NDArray[np.float64]:
        """(E, N) the guide's probabilities, made chunk by chunk."""
        fitted, histories = self.fitted(guide).fitted, examples.histories()
        parts = [
            fitted.probabilities(histories[part], self.recipe.decode.filter_seen)
            for part in chunks(len(histories), len(self.catalog))
        ]
        return np.concatenate(parts)

    def _weights_hash(self, system: System) -> str:
        """SHA-256 over what was trained, verified. Raises LlmrecError for other settings' weights.

        Known once, as a file of weights is long.
        """
        if system.weights not in self.weights:
            self.weights[system.weights] = (
                made.network(self.recipe, self.folder, system.step).content()
                if system.kind == "network"
                else made.adapter_content(self.recipe, self.folder, system.is_before_soft)
            )
        return self.weights[system.weights]

    def _provenance(self, system: str) -> dict[str, Any]:
        return {**self.folder.provenance(self.recipe), "settings": self.settings(system)}

    def _key(self, system: str) -> str:
        text = json.dumps(self.settings(system), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def named_candidate(
    text: str, candidates: npt.NDArray[np.int32], titles: Sequence[str]
) -> npt.NDArray[np.int32]:
    """(1,) the candidate whose title the text is, apart from case, accents and punctuation.

    (0,) where it is none of them, or where it could be more than one.
    """
    key = normalised(text)
    named = [position for position in candidates if normalised(titles[position]) == key]
    return np.array(named if len(named) == 1 else [], np.int32)


def values_at(recipe: Recipe, paths: Sequence[str]) -> dict[str, Any]:
    """What a recipe says at some paths, nested as there; a section that is null is left out."""
    said, found = recipe.model_dump(mode="json"), {}
    for path in paths:
        section, _, key = path.partition(".")
        if key:
            found.setdefault(section, {})[key] = said[section][key]
        elif said[section] is not None:
            found[section] = said[section]
    return found
