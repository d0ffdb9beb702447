"""The Recommender: a finished run, asked in Python with raw histories."""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llmrec.baselines.ranking import predict
from llmrec.baselines.sequential import FittedNetwork
from llmrec.data.catalog import Catalog
from llmrec.data.records import ITEM_ID, TITLE, Examples, concatenated, offsets_of
from llmrec.decoding.beam import Ranking
from llmrec.decoding.grounding import Grounder
from llmrec.errors import DataError, LlmrecError
from llmrec.inference.engine import Engine, closed_items
from llmrec.inference.from_recipe import adapter_of, base_of, encoder_of
from llmrec.inference.prompting import Prompting
from llmrec.inference.ratings import Selecting
from llmrec.inference.similar_users import SimilarUsers
from llmrec.methods import networks
from llmrec.model.forward import require_tree_support
from llmrec.model.loading import load_model, load_tuned
from llmrec.recipe import Recipe
from llmrec.recipe.loading import load
from llmrec.recipe.systems import System
from llmrec.runs.folder import RunFolder
from llmrec.systems.calibrated_lists import list_settings
from llmrec.systems.prediction_sets import PredictionSets, prediction_sets
from llmrec.systems.table_rows import Answering
from llmrec.text.encoding import Ids

log = logging.getLogger("llmrec")
GUARANTEED = "guaranteed"


class Recommender:
    """A trained model that answers with items of one catalog. Make it with `from_pretrained`."""

    def __init__(
        self,
        model: Any,
        catalog: Catalog,
        recipe: Recipe,
        folder: RunFolder | None = None,
        system: str = "tuned",
    ) -> None:
        """`model`: a language model or a FittedNetwork, the one of the recipe's `system`.

        `folder`: the run, which similar users and the calibration are found in where needed.
        """
        if recipe.demonstrations is not None and folder is None:
            raise LlmrecError("the recipe shows similar users; give the run folder to find them in")
        self.model, self.catalog, self.recipe, self.folder = model, catalog, recipe, folder
        self.system = system
        self.grounder = Grounder(catalog)
        if not isinstance(model, FittedNetwork):
            self.encoder = encoder_of(recipe, catalog, folder)
            self._finder: SimilarUsers | None = None
            self._engine = Engine(model, self.encoder, recipe.decode)
            require_tree_support(model, recipe.prompt.max_tokens)

    @classmethod
    def from_pretrained(cls, path: str | Path, system: str | None = None) -> "Recommender":
        """From a run folder, or the adapter folder inside one. Raises LlmrecError if it is neither.

        `system`: of a run that trained networks one of network, network_ce and network_cpft, by
        default the one trained furthest; of any other run tuned or untuned, by default tuned. A run
        that was only prepared answers with its untuned base model.
        """
        root = Path(path)
        folder = RunFolder(root if RunFolder(root).recipe.is_file() else root.parent)
        if not folder.recipe.is_file() or not folder.items.is_file():
            raise LlmrecError(
                f"{path} is no run of llmrec: it lacks {folder.recipe.name} or "
                f"{folder.items.relative_to(folder.root)}; give the folder that `llmrec train` "
                "wrote"
            )
        recipe = load(folder.recipe, [])
        load_system = _network if recipe.network is not None else _language_model
        model, system = load_system(recipe, folder, system)
        return cls(model, Catalog.read(folder.items), recipe, folder, system)

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        top_k: int = 10,
        users: Sequence[str] | None = None,
        coverage: float | None = None,
    ) -> pa.Table:
        """The `top_k` best items after each history: user, rank, item_id, title, score.

        A history holds item ids or titles, oldest first. An entry that is no item id is looked up
        among the titles: exact, then normalised, then fuzzy; one that stays unknown raises
        DataError naming the nearest title. `users` names the histories (default: 0, 1, ...); where
        the recipe shows similar users, nobody is shown to themselves. Candidates of an evaluation
        play no part.
        Scores are log-probabilities under the recipe's decoding; rank starts at 1.

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
        names = [str(i) for i in range(len(histories))] if users is None else list(users)
        if len(names) != len(histories):
            raise DataError(f"{len(names)} users for {len(histories)} histories; give one for each")
        sets = None if coverage is None else self._sets(coverage)
        positions = [self._positions(name, h) for name, h in zip(names, histories, strict=True)]
        rankings = self._rankings(users, positions, top_k if sets is None else sets.list_length)
        if sets is None:
            return self._table(names, rankings)
        if sets.guaranteed:
            lengths = sets.sizes([r.scores for r in rankings]).tolist()
        else:
            log.warning(
                "no guarantee at a coverage of %g for %s: %s", coverage, self.system, sets.reason
            )
            lengths = [top_k] * len(rankings)
        cut = [
            Ranking(r.positions[:n], r.scores[:n]) for r, n in zip(rankings, lengths, strict=True)
        ]
        table = self._table(names, cut)
        said = pa.array([sets.guaranteed] * table.num_rows, pa.bool_())
        return table.append_column(GUARANTEED, said)

    def _sets(self, coverage: float) -> PredictionSets:
        if self.folder is None:
            raise LlmrecError("coverage rests on the calibration of a run; give the run folder")
        settings = list_settings(Answering(self.recipe, self.folder), self.system)
        return prediction_sets(self.folder, self.system, coverage, settings)

    def _rankings(
        self, users: Sequence[str] | None, histories: Sequence[np.ndarray], top_k: int
    ) -> list[Ranking]:
        """The `top_k` best items after each history, fewer where so many are not open."""
        decode = self.recipe.decode
        if isinstance(self.model, FittedNetwork):
            answers = predict(
                self.model, histories, None, len(self.catalog), top_k, decode.filter_seen
            )
            return [
                Ranking(items[items >= 0], scores[items >= 0])
                for items, scores in zip(answers.positions, answers.scores, strict=True)
            ]
        prompts = self._prompts(users, histories)
        closed = closed_items(histories, decode.filter_seen)
        return self._engine.rank(prompts, closed, top_k).rankings

    def _prompts(self, users: Sequence[str] | None, histories: Sequence[np.ndarray]) -> list[Ids]:
        """The prompts; similar users are those of the whole training data, as of now.

        Who has no name cannot be one of them.
        """
        wanted = self.recipe.demonstrations
        if wanted is None or self.folder is None:
            return Prompting(self.encoder, histories).ids()
        if self._finder is None:
            self._finder = SimilarUsers(self.recipe, self.folder)
        now, none = np.full(len(histories), np.iinfo(np.int64).max), np.zeros(len(histories), bool)
        names = [None] * len(histories) if users is None else users
        asked = Examples(
            np.array(names, object),
            offsets_of(histories),
            concatenated(histories),
            np.zeros(len(histories), np.int32),
            now,
            none,
            none,
        )
        selecting = Selecting(self.encoder, wanted) if wanted.selection is not None else None
        prompting = Prompting(
            self.encoder, histories, None, self._finder.find(asked), wanted.count, selecting
        )
        return prompting.ids(prompting.selected(self._engine))

    def _positions(self, user: str, history: Sequence[str]) -> np.ndarray:
        found = self.grounder.ground(list(map(str, history)))
        unknown = [
            (entry, hit) for entry, hit in zip(history, found, strict=True) if hit.position < 0
        ]
        if unknown:
            entry, hit = unknown[0]
            near = f"; the nearest title is {hit.nearest!r}" if hit.nearest else ""
            raise DataError(
                f"user {user}: {entry!r} is neither an item id nor a title of the catalog{near}"
                + (f" ({len(unknown)} unknown entries in all)" if len(unknown) > 1 else "")
            )
        return np.array([hit.position for hit in found], np.int32)

    def _table(self, names: Sequence[str], rankings: Sequence[Ranking]) -> pa.Table:
        positions = np.concatenate([r.positions for r in rankings] or [np.zeros(0, int)])
        counts = [len(r.positions) for r in rankings]
        return pa.table(
            {
                "user": pa.array(np.repeat(np.array(names, object), counts), pa.string()),
                "rank": pa.array([rank for n in counts for rank in range(1, n + 1)], pa.int32()),
                ITEM_ID: pa.array([self.catalog.item_ids[p] for p in positions], pa.string()),
                TITLE: pa.array([self.catalog.titles[p] for p in positions], pa.string()),
                "score": pa.array([float(s) for r in rankings for s in r.scores], pa.float32()),
            }
        )


def _network(recipe: Recipe, folder: RunFolder, system: str | None) -> tuple[Any, str]:
    """The network of a system, by default the one trained furthest, and the system."""
    trained = [name for name in ("network_cpft", "network_ce") if name in recipe.systems]
    trained.append("network")
    if system is not None and system not in trained:
        raise LlmrecError(
            f"{folder.root} has no system {system!r} that answers raw histories; "
            f"there are {', '.join(trained)}"
        )
    system = system or trained[0]
    return networks.fitted(recipe, folder, System.parse(system).step), system


def _language_model(recipe: Recipe, folder: RunFolder, system: str | None) -> tuple[Any, str]:
    """The language model with the adapter or, asked for or without one, as it came; the system."""
    wanted = None if system is None else System.parse(system)
    served = wanted is None or (wanted.kind == "language_model" and wanted.way == "ranked")
    if not served or (wanted is not None and wanted.is_before_soft):
        raise LlmrecError(
            f"{folder.root} has no system {system!r} that answers raw histories; "
            "there are tuned, untuned"
        )
    adapter, base = adapter_of(recipe, folder), base_of(recipe)
    if (wanted is None or wanted.has_adapter) and adapter.is_dir():
        return load_tuned(base, adapter), "tuned"
    if wanted is not None and wanted.has_adapter:
        raise LlmrecError(f"{adapter}: no trained weights; run `llmrec train` first or ask untuned")
    if system is None:
        log.warning("%s has no trained weights: the untuned %s answers", folder.root, base.source)
    return load_model(base), "untuned"


def read_histories(lines: Iterable[str]) -> tuple[list[str], list[list[str]]]:
    """Users and histories from JSON lines: a list of entries, or {"user": ..., "history": [...]}.

    A line without a user is called by its number, from 1. Raises DataError naming a bad line.
    """
    users, histories = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"line {number}: no JSON ({error})") from None
        said = value if isinstance(value, dict) else {"history": value}
        history = said.get("history")
        if not isinstance(history, list) or not all(isinstance(h, str | int) for h in history):
            raise DataError(
                f'line {number}: expected ["title or item id", ...] or {{"user": "u1", "history": '
                f"[...]}}, got {line.strip()[:80]}"
            )
        users.append(str(said.get("user", number)))
        histories.append([str(entry) for entry in history])
    return users, histories
