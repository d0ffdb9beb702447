"""Hyperparameters of every baseline, chosen on validation and nothing else.

A distribution is judged by its mean target NLL, the transition graph, which is none, by NDCG@10.
The grids stand here; a search sweeps one hyperparameter after another, twice, keeping the best.
What was tried and chosen is recorded in `Tuned`. Knows no test split.
"""

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.baselines.distribution import Distribution
from llmrec.baselines.item_knn import ItemKNN, choices, neighbourhood
from llmrec.baselines.markov import Markov, transitions
from llmrec.baselines.popularity import FittedPopularity, Popularity, RecentPopularity, shares
from llmrec.baselines.ranking import Scorer, mean_ndcg, predict, target_nll
from llmrec.baselines.text_knn import GENRE_GRID, NO_GENRES, TEXT_GRID, GenreKNN, TextKNN
from llmrec.baselines.title_vectors import Vectors, genre_vectors, side_by_side, title_vectors
from llmrec.baselines.transition_graph import TransitionGraph
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples, Interactions
from llmrec.errors import RecipeError

log = logging.getLogger("llmrec")

NLL, NDCG = "valid_nll", "valid_ndcg@10"
# More examples than this are sampled: the choice hardly changes, the time does.
MAX_EXAMPLES = 2000
ROUNDS = 2
SMOOTHING = (0.1, 0.3, 1.0, 3.0, 10.0)
# Half-lives as shares of the time between the first and the last training interaction.
HALF_LIVES = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)

Grid = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Search:
    """How far a search goes, and what it cannot make itself.

    `trials`: settings of a network that are trained; `store`: folder that keeps them by content;
    `sentences`: gives the items' vectors (N, D) of a sentence encoder.
    """

    trials: int = 3
    store: Path | None = None
    sentences: Callable[[], Vectors] | None = None


@dataclass(frozen=True)
class Tuned:
    """A fitted baseline, how it was chosen and in how many seconds (fitting included).

    `trials` are (hyperparameters, value of `criterion`) in the order tried; `trained`, of a
    network, says of each setting that was trained how it did.
    """

    name: str
    fitted: Scorer
    hyperparameters: dict[str, Any]
    criterion: str
    value: float
    grid: dict[str, list[Any]]
    trials: list[tuple[dict[str, Any], float]]
    seconds: float
    trained: list[dict[str, Any]] = field(default_factory=list)

    @property
    def described(self) -> dict[str, Any]:
        """All but the model itself, as JSON can hold it."""
        trials = [{**asked, self.criterion: _json(value)} for asked, value in self.trials]
        return {
            "chosen": self.hyperparameters,
            "criterion": self.criterion,
            "value": _json(self.value),
            "grid": self.grid,
            "trials": trials,
            "seconds": round(self.seconds, 2),
            **({"trained": self.trained} if self.trained else {}),
        }


def choose(
    name: str,
    train: Interactions,
    valid: Examples,
    catalog: Catalog,
    filter_seen: bool,
    seed: int,
    search: "Search | None" = None,
) -> Tuned:
    """Fit a baseline to `train` with the hyperparameters that do best on `valid`.

    Names: popularity, recent_popularity, markov, item_knn, tgh, text_knn, text_knn_genres,
    text_knn_sentences, sasrec, gru4rec. Without a validation example that can be answered, the
    defaults are kept. Raises RecipeError for another name.
    """
    begun = time.monotonic()
    task = _Task.of(train, valid, catalog, filter_seen, seed, search)
    chosen = _choice(name, task)
    log.info("%s: %s %.4f with %s", name, chosen.criterion, chosen.value, chosen.hyperparameters)
    grid = {key: list(values) for key, values in chosen.grid.items()}
    return Tuned(
        name,
        chosen.fitted,
        chosen.hyperparameters,
        chosen.criterion,
        chosen.value,
        grid,
        chosen.trials,
        time.monotonic() - begun,
        chosen.trained,
    )


def refitted(
    name: str,
    chosen: Mapping[str, Any],
    train: Interactions,
    valid: Examples,
    catalog: Catalog,
    filter_seen: bool,
    seed: int,
    search: "Search | None" = None,
) -> Scorer:
    """The baseline that `choose` gave, from the hyperparameters that it chose, without a search.

    A network that `search` keeps is not trained again. Raises RecipeError for another name.
    """
    task = _Task.of(train, valid, catalog, filter_seen, seed, search)
    return _choice(name, replace(task, chosen=chosen)).fitted


def _choice(name: str, task: "_Task") -> "_Choice":
    choices: dict[str, Callable[[_Task], _Choice]] = {
        "popularity": _popularity,
        "recent_popularity": _recent_popularity,
        "markov": _markov,
        "item_knn": _item_knn,
        "tgh": _transition_graph,
        "text_knn": lambda task: _text_knn(task, title_vectors(task.catalog.titles)),
        "text_knn_genres": _text_knn_genres,
        "text_knn_sentences": _text_knn_sentences,
        "sasrec": lambda task: _network(task, "sasrec"),
        "gru4rec": lambda task: _network(task, "gru4rec"),
    }
    if name not in choices:
        raise RecipeError(f"baseline {name!r} does not exist; choose from {', '.join(choices)}")
    return choices[name](task)


@dataclass(frozen=True)
class _Choice:
    """What a search found, before it is timed."""

    fitted: Scorer
    hyperparameters: dict[str, Any]
    criterion: str
    value: float
    grid: Grid
    trials: list[tuple[dict[str, Any], float]]
    trained: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Task:
    """What to fit and to judge with; `kept` holds counts that several trials share.

    `chosen`: hyperparameters that are not to be searched for.
    """

    train: Interactions
    valid: Examples
    catalog: Catalog
    filter_seen: bool
    seed: int
    every_valid: Examples
    search: "Search"
    chosen: Mapping[str, Any] | None = None
    kept: dict[Hashable, Any] = field(default_factory=dict)

    @staticmethod
    def of(
        train: Interactions,
        valid: Examples,
        catalog: Catalog,
        filter_seen: bool,
        seed: int,
        search: "Search | None",
    ) -> "_Task":
        """A task that judges with the examples that can be answered."""
        answerable = _answerable(valid, filter_seen, seed)
        return _Task(train, answerable, catalog, filter_seen, seed, valid, search or Search())

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gave for this key the first time."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def nll(self, fitted: Distribution) -> float:
        """Mean target NLL; NaN without examples."""
        nll = target_nll(
            fitted, self.valid.histories(), self.valid.targets, len(self.catalog), self.filter_seen
        )
        return float(nll.mean()) if len(nll) else float("nan")

    def ndcg(self, fitted: Scorer) -> float:
        """Mean NDCG@10; 0 without examples."""
        shown = predict(
            fitted, self.valid.histories(), None, len(self.catalog), 10, self.filter_seen
        )
        return mean_ndcg(shown.positions, self.valid.targets)

    def half_lives(self) -> tuple[float, ...]:
        """`HALF_LIVES` in units of the timestamps."""
        time_stamps = self.train.timestamp
        span = float(time_stamps.max() - time_stamps.min()) if len(time_stamps) else 0.0
        return tuple(max(span, 1.0) * part for part in HALF_LIVES)


def _answerable(valid: Examples, filter_seen: bool, seed: int) -> Examples:
    """Examples whose target may be recommended, at most MAX_EXAMPLES of them, drawn by seed."""
    rows = np.arange(len(valid))
    if filter_seen:
        rows = rows[[valid.targets[i] not in valid.history(i) for i in rows]] if len(rows) else rows
    if len(rows) > MAX_EXAMPLES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_EXAMPLES, replace=False))
    return valid.take(rows)


def _sweep(
    task: _Task,
    start: Any,
    grid: Grid,
    criterion: str,
    fit: Callable[[Any], Any],
    measure: Callable[[Any], float],
) -> _Choice:
    """Try each value of each hyperparameter in turn, the others at their best so far.

    NLL is minimised, NDCG maximised; equal values keep what came first. Where the task says what
    is chosen, nothing is tried.
    """
    if task.chosen is not None:
        model = _as_chosen(start, task.chosen)
        return _Choice(fit(model), asdict(model), criterion, float("nan"), grid, [])
    sign = -1.0 if criterion == NDCG else 1.0
    values = {start: measure(fit(start))}
    best = start
    for name, options in list(grid.items()) * ROUNDS:
        for option in options:
            model = replace(best, **{name: option})
            if model not in values:
                values[model] = measure(fit(model))
        best = min(values, key=lambda model: sign * values[model])
    trials = [(asdict(model), value) for model, value in values.items()]
    return _Choice(fit(best), asdict(best), criterion, values[best], grid, trials)


def _as_chosen(start: Any, chosen: Mapping[str, Any]) -> Any:
    """A model with those of the chosen hyperparameters that it has."""
    return replace(start, **{name: chosen[name] for name in asdict(start) if name in chosen})


def _popularity(task: _Task) -> _Choice:
    def fit(model: Popularity) -> FittedPopularity:
        return model.fit(task.train, len(task.catalog))

    return _sweep(task, Popularity(), {"smoothing": SMOOTHING}, NLL, fit, task.nll)


def _recent_popularity(task: _Task) -> _Choice:
    def fit(model: RecentPopularity) -> FittedPopularity:
        return model.fit(task.train, len(task.catalog))

    half_lives = task.half_lives()
    grid = {"half_life": half_lives, "smoothing": SMOOTHING}
    return _sweep(task, RecentPopularity(half_lives[0]), grid, NLL, fit, task.nll)


def _markov(task: _Task) -> _Choice:
    size = len(task.catalog)

    def fit(model: Markov) -> Distribution:
        counts = task.once(
            (model.reach, model.reach_decay),
            lambda: transitions(task.train, size, model.reach, model.reach_decay),
        )
        popularity = task.once(
            model.half_life, lambda: shares(task.train, size, model.half_life, 1.0)
        )
        return model.from_counts(counts, popularity)

    grid = {
        "reach": (1, 3, 10, 20),
        "backward": (0.0, 0.5, 1.0),
        "prior": (3.0, 10.0, 30.0, 100.0),
        "last": (1, 2, 5, 10),
        "history_decay": (0.4, 0.6, 0.8, 0.9),
        "half_life": (None, *task.half_lives()),
    }
    return _sweep(task, Markov(), grid, NLL, fit, task.nll)


def _item_knn(task: _Task) -> _Choice:
    size = len(task.catalog)
    popularity, chosen = shares(task.train, size, None, 1.0), choices(task.train, size)

    def fit(model: ItemKNN) -> Distribution:
        similarity = task.once(
            (model.neighbours, model.shrinkage),
            lambda: neighbourhood(task.train, size, model.neighbours, model.shrinkage),
        )
        return model.from_neighbours(similarity, popularity, chosen)

    grid = {
        "neighbours": (20, 100, 300),
        "shrinkage": (0.0, 10.0, 50.0),
        "last": (1, 5, 20, 50),
        "history_decay": (0.6, 0.8, 0.9, 1.0),
        "sharpness": (1.0, 1.5, 2.0),
        "share": (0.05, 0.1, 0.2, 0.4),
    }
    return _sweep(task, ItemKNN(), grid, NLL, fit, task.nll)


def _transition_graph(task: _Task) -> _Choice:
    vectors = title_vectors(task.catalog.titles)

    def fit(model: TransitionGraph) -> Scorer:
        return model.fit(task.train, len(task.catalog), vectors)

    return _sweep(task, TransitionGraph(), {"variant": (1, 2)}, NDCG, fit, task.ndcg)


def _text_knn(task: _Task, vectors: Vectors) -> _Choice:
    def fit(model: TextKNN) -> Distribution:
        return model.fit(vectors)

    return _sweep(task, TextKNN(), TEXT_GRID, NLL, fit, task.nll)


def _text_knn_genres(task: _Task) -> _Choice:
    if not task.catalog.genres:
        raise RecipeError(NO_GENRES)
    words, kinds = title_vectors(task.catalog.titles), genre_vectors(task.catalog.genres)

    def fit(model: GenreKNN) -> Distribution:
        return model.fit(task.once(model.share, lambda: side_by_side(words, kinds, model.share)))

    return _sweep(task, GenreKNN(), GENRE_GRID, NLL, fit, task.nll)


def _text_knn_sentences(task: _Task) -> _Choice:
    if task.search.sentences is None:
        raise RecipeError("text_knn_sentences needs vectors of a sentence encoder; none were given")
    return _text_knn(task, task.search.sentences())


def _network(task: _Task, kind: str) -> _Choice:
    from llmrec.baselines import network_tuning  # torch is loaded only where it is wanted

    store, start, trials = task.search.store, network_tuning.KINDS[kind](), task.search.trials
    if task.chosen is not None:
        start, trials = replace(_as_chosen(start, task.chosen), temperature=1.0), 1
    to_train = network_tuning.Task(
        task.train,
        len(task.catalog),
        task.every_valid,
        task.filter_seen,
        task.seed,
        None if store is None else network_tuning.Store(store),
    )
    found = network_tuning.tune(network_tuning.settings_to_try(start, trials), to_train)

    def fit(model: Any) -> Distribution:
        return replace(found.fitted, temperature=model.temperature)

    grid = {"temperature": (1.0, 0.8, 0.9, 1.1, 1.2, 1.4, 1.7)}
    chosen = _sweep(task, found.settings, grid, NLL, fit, task.nll)
    tried = [
        {**asdict(settings), NDCG: round(ndcg, 6), "epoch": epoch, "seconds": seconds}
        for settings, ndcg, epoch, seconds in found.trials
    ]
    return replace(
        chosen,
        hyperparameters={**chosen.hyperparameters, "epoch": found.fitted.epoch},
        trained=tried,
    )


def _json(value: float) -> float | None:
    """NaN and infinities are not JSON."""
    return round(value, 6) if np.isfinite(value) else None
