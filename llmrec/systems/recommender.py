"""The Recommender: a finished run, asked in Python with raw histories."""

import logging
from collections.abc import Mapping, Sequence
from copy import copy
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from llmrec.data.records import ITEM_ID, TITLE
from llmrec.decoding.beam import Ranking
from llmrec.decoding.grounding import Entry
from llmrec.errors import DataError, LlmrecError, RecipeError
from llmrec.recipe import Recipe
from llmrec.recipe.loading import load
from llmrec.recipe.systems import System, SystemName, parsed
from llmrec.runs.folder import RunFolder
from llmrec.runs.identity import require_whole_data
from llmrec.systems import given_tables, serving
from llmrec.systems.calibrated_lists import artifact_of
from llmrec.systems.language_models import adapter_of_system
from llmrec.systems.linking import Items, Linker, Notice, Unknown
from llmrec.systems.prediction_sets import PredictionSets, prediction_sets
from llmrec.systems.resources import Resources
from llmrec.systems.serving import Requests

log = logging.getLogger("llmrec")
GUARANTEED = "guaranteed"
TOLD = 20  # entries that a Recommender tells of one by one; of further ones `linker` has the count


class Recommender:
    """A system of a run that answers with items of its catalog. Make it with `from_pretrained`."""

    def __init__(
        self, recipe: Recipe, folder: RunFolder, system: str | None = None, model: Any = None
    ) -> None:
        """`folder`: a prepared run. `system`: as in `from_pretrained`. `model`: the language model
        of that system, where it is not to be loaded.

        Raises LlmrecError for a system that the run has not, whose weights are missing, or whose
        adapter was trained with other prompts than those of the recipe, DataError for a prepared
        file that is damaged.
        """
        _require_run(folder, folder.root, folder.items)
        require_whole_data(folder)
        self.recipe, self.folder = recipe, folder
        self.system = _system(recipe, folder, system)
        serving.require_trained_prompts(recipe, folder, self.system)
        self._resources = Resources(recipe, folder)
        if model is not None:
            self._resources.language.hold(model, self.system)
        self.catalog = self._resources.catalog
        self.linker, self._told = Linker(self.catalog), 0
        self._answer = serving.answering(self._resources, self.system)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, system: str | None = None, overrides: Sequence[str] = ()
    ) -> "Recommender":
        """From a run folder, or the adapter folder inside one. Raises LlmrecError if it is neither.

        `system`: any row that the run's table can have; by default the one trained furthest, and
        of a run that was only prepared the untuned base model. `overrides`: settings that beat the
        run's recipe, such as "decode.filter_seen=false".
        """
        root = Path(path)
        folder = RunFolder(root if RunFolder(root).recipe.is_file() else root.parent)
        _require_run(folder, path, folder.recipe)
        return cls(load(folder.recipe, list(overrides)), folder, system)

    def with_system(self, system: str) -> "Recommender":
        """The same run with another row of the table, which shares all that is loaded."""
        other = copy(self)
        other.system = _system(self.recipe, self.folder, system)
        serving.require_trained_prompts(self.recipe, self.folder, other.system)
        other._answer = serving.answering(self._resources, other.system)
        return other

    def recommend(
        self,
        histories: Any,
        top_k: int = 10,
        users: Sequence[str] | None = None,
        coverage: float | None = None,
        candidates: Sequence[Sequence[Entry]] | Sequence[Entry] | None = None,
        *,
        exclude: Sequence[Entry] | None = None,
        unknown: Unknown = "raise",
    ) -> pa.Table:
        """The `top_k` best items after each history: user, rank, item_id, title, score.

        A history holds item ids or titles, oldest first; {"id": ...} and {"title": ...} say which,
        and one that is the id of an item and the title of another is refused. An entry that is no
        item id is looked up among the titles: exact, then normalised, then fuzzy, which is told.
        One that stays unknown raises DataError naming the nearest title, or with `unknown="skip"`
        is told and left out; `linker.counts` has how often each happened. `histories` may also be
        a table, as `given_tables.histories_of` describes. `users` names the histories (default: 0,
        1, ...); where the recipe shows similar users, nobody is shown to themselves. Rank starts at
        1. What a score is stands in the metadata of its column: for most systems a log-probability.

        `candidates`: the items that may be recommended, as those in stock; or for each history
        equally many, of which the answer is to be. Without them it is from the whole catalog, or
        what the run's retriever proposes, where its recipe has one. Systems *_free answer with
        candidates of each history alone; guided and grounded ones and networks take none of these.
        `exclude`: items that are not recommended. Probabilities are then over the items that are
        left.

        With `coverage`, say 0.9, every user gets the smallest set of items that is to hold the next
        one for that share of the users, as the run's calibration found it, if they are like the
        users that it calibrated with. `top_k` is then no limit: a set may be longer, shorter or
        empty, and who has an empty one has no rows. A column `guaranteed` comes last; it is false
        where nothing can be promised, and the `top_k` best items are given, with a warning that
        says why. Raises LlmrecError for a coverage outside (0, 1) and where this run's system is
        not calibrated.
        """
        if top_k < 1:
            raise LlmrecError(f"top_k must be at least 1, got {top_k}")
        if isinstance(histories, (str, bytes)):
            raise DataError(
                f"{histories!r} is no list of histories; write [[{histories!r}]] for one item"
            )
        if given_tables.is_table(histories):
            if users is not None:
                raise DataError("a table of histories names its users; leave out `users`")
            users, histories = given_tables.histories_of(histories)
        names = [str(i) for i in range(len(histories))] if users is None else list(users)
        if len(names) != len(histories):
            raise DataError(f"{len(names)} users for {len(histories)} histories; give one for each")
        if coverage is not None and (candidates is not None or exclude is not None):
            raise LlmrecError(
                "coverage is of the whole catalog; leave out the candidates and what to exclude"
            )
        sets = None if coverage is None else self._sets(coverage)
        found = [
            self._linked(f"user {name}", history, unknown)
            for name, history in zip(names, histories, strict=True)
        ]
        among, closed = self._choices(names, candidates, exclude, unknown)
        requests = Requests(found, names if users is not None else None, among, closed)
        rankings = self.rank(requests, top_k if sets is None else sets.list_length)
        if sets is None:
            return self.table(names, rankings)
        if sets.guaranteed:
            lengths = sets.sizes([r.scores for r in rankings]).tolist()
        else:
            log.warning(
                "no guarantee at a coverage of %g for %s: %s",
                coverage,
                self.system.name,
                sets.reason,
            )
            lengths = [top_k] * len(rankings)
        cut = [
            Ranking(r.positions[:n], r.scores[:n]) for r, n in zip(rankings, lengths, strict=True)
        ]
        table = self.table(names, cut)
        guaranteed = pa.array([sets.guaranteed] * table.num_rows, pa.bool_())
        return table.append_column(GUARANTEED, guaranteed)

    def rank(self, requests: Requests, top_k: int) -> list[Ranking]:
        """The `top_k` best items for requests of positions, as `recommend` has them."""
        return self._answer(requests, top_k)

    def explain(self, requests: Requests, top_k: int) -> dict[str, Any] | None:
        """How one request of positions is answered: the prompt's tokens and the search's choices.

        See `explaining`. None for systems that read no prompt, or rank by no search.
        """
        if not isinstance(self._answer, serving.SearchedAnswer):
            return None
        return self._answer.explain(requests, top_k)

    @property
    def rests_on(self) -> dict[str, Any]:
        """All that the system's answers depend on, besides the versions of packages."""
        return artifact_of(self._resources, self.system, "test").key

    def _sets(self, coverage: float) -> PredictionSets:
        return prediction_sets(self.folder, self.system.name, coverage, self.rests_on)

    def _linked(self, name: str, entries: Sequence[Entry], unknown: Unknown) -> Items:
        found, notices = self.linker.positions(name, entries, unknown)
        for notice in notices:
            self._tell(notice)
        return found

    def _tell(self, notice: Notice) -> None:
        self._told += 1
        if self._told <= TOLD:
            log.warning("%s", notice)
        if self._told == TOLD:
            log.warning("further entries that are no ids or titles to the letter are counted alone")

    def _choices(
        self,
        names: Sequence[str],
        candidates: Sequence[Sequence[Entry]] | Sequence[Entry] | None,
        exclude: Sequence[Entry] | None,
        unknown: Unknown,
    ) -> tuple[np.ndarray | None, Items | None]:
        """Candidates of each history (U, C) and items closed to all (M,), None where none are."""
        among, closed = None, None
        candidates, exclude = (None if x is None else [*x] for x in (candidates, exclude))
        if candidates is not None and len(candidates) and _is_entry(candidates[0]):
            if self.recipe.data.candidates is None:
                stock = self._linked("candidates", candidates, unknown)
                if not len(stock):
                    raise DataError("none of the candidates is an item of the catalog")
                closed = np.setdiff1d(np.arange(len(self.catalog), dtype=np.int32), stock)
            else:  # the prompt shows them
                among = self._candidates(names, [candidates] * len(names))
        elif candidates is not None:
            among = self._candidates(names, candidates)
        if exclude is not None:
            if among is not None:
                raise LlmrecError(
                    "what to exclude is of the catalog; take it out of every history's candidates"
                )
            more = self._linked("exclude", exclude, unknown)
            closed = more if closed is None else np.union1d(closed, more)
        if closed is not None and len(np.unique(closed)) == len(self.catalog):
            raise DataError("every item is excluded or no candidate; nothing is left to recommend")
        return among, closed

    def _candidates(
        self, names: Sequence[str], candidates: Sequence[Sequence[Entry]]
    ) -> np.ndarray:
        """(U, C) positions."""
        if self.system.wants_catalog:
            raise LlmrecError(f"{self.system.name} answers from the whole catalog, not candidates")
        found = [
            self._linked(f"user {name}", some, "raise")
            for name, some in zip(names, candidates, strict=False)
        ]
        counts = {len(row) for row in found}
        if len(candidates) != len(names) or len(counts) > 1 or 0 in counts:
            raise DataError(
                f"candidates of {len(candidates)} histories, {sorted(counts)} of them each, for "
                f"{len(names)} histories; give every history equally many"
            )
        twice = next((n for n, row in zip(names, found, strict=True) if len({*row}) < len(row)), "")
        if twice:
            raise DataError(f"user {twice}: a candidate is named twice")
        return np.array(found, np.int32).reshape(len(found), -1)

    def table(self, names: Sequence[str], rankings: Sequence[Ranking]) -> pa.Table:
        """Rankings of named users as `recommend` gives them."""
        positions = np.concatenate([r.positions for r in rankings] or [np.zeros(0, int)])
        counts = [len(r.positions) for r in rankings]
        score = pa.field("score", pa.float32(), metadata={"is": self.system.scored_by})
        values = {
            "user": pa.array(np.repeat(np.array(names, object), counts), pa.string()),
            "rank": pa.array([rank for n in counts for rank in range(1, n + 1)], pa.int32()),
            ITEM_ID: pa.array([self.catalog.item_ids[p] for p in positions], pa.string()),
            TITLE: pa.array([self.catalog.titles[p] for p in positions], pa.string()),
            "score": pa.array([float(s) for r in rankings for s in r.scores], pa.float32()),
        }
        table = pa.table(values)
        at = table.schema.get_field_index("score")
        return table.cast(table.schema.set(at, score))


def _is_entry(value: Any) -> bool:
    return isinstance(value, (str, int, float, np.integer, Mapping))


def _require_run(folder: RunFolder, given: str | Path, file: Path) -> None:
    if not file.is_file():
        raise LlmrecError(
            f"{given} is no run of llmrec: it lacks {file.relative_to(folder.root)}; give the "
            "folder that `llmrec train` wrote"
        )


def served(recipe: Recipe, folder: RunFolder) -> list[str]:
    """The systems that a run can answer with now, as its table would have them."""
    names = [s.name for s in parsed(get_args(SystemName)) if _lack(recipe, folder, s) is None]
    return [name for name in names if recipe.network is None or _is_of_networks(recipe, name)]


def _system(recipe: Recipe, folder: RunFolder, name: str | None) -> System:
    """The system of a name, by default the one trained furthest."""
    if name is None:
        return _furthest(recipe, folder)
    if not System.is_name(name):
        near = get_close_matches(name, get_args(SystemName), 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise RecipeError(
            f"{folder.root}: there is no system {name!r}{meant}; there are "
            f"{', '.join(served(recipe, folder))}"
        )
    found = _lack(recipe, folder, System.parse(name))
    if found is None:
        return System.parse(name)
    there = ", ".join(served(recipe, folder))
    raise LlmrecError(f"{folder.root}: system {name} {found}; there are {there}")


def _furthest(recipe: Recipe, folder: RunFolder) -> System:
    if recipe.network is not None:
        asked = {s.step: s for s in parsed(recipe.systems) if s.kind == "network"}
        return asked.get("cpft") or asked.get("ce") or System.parse("network")
    if _lack(recipe, folder, System.parse("tuned")) is None:
        return System.parse("tuned")
    log.warning("%s has no trained weights: the untuned %s answers", folder.root, recipe.model.base)
    return System.parse("untuned")


def _lack(recipe: Recipe, folder: RunFolder, system: System) -> str | None:
    """What a run lacks to answer with a system; None where it lacks nothing."""
    for path, why in system.needs.items():
        if attrgetter(path)(recipe) is None:
            return f"{why}, and the recipe has no {path}"
    if system.wants_catalog and recipe.data.candidates is not None:
        return "answers from the whole catalog, and the recipe has data.candidates"
    if system.kind == "network":
        place = folder.network(system.step)
    elif system.has_adapter:
        place = adapter_of_system(recipe, folder, system)
    else:
        return None
    return None if place.is_dir() else f"has no trained weights ({place}): run `llmrec train` first"


def _is_of_networks(recipe: Recipe, name: str) -> bool:
    """Whether a run that trains networks answers with a system: with no language model unasked."""
    return System.parse(name).kind != "language_model" or name in recipe.systems
