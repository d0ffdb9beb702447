"""Choosing hyperparameters: on validation alone, recorded, and fitted to training alone."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from llmrec.baselines import tuning
from llmrec.baselines.item_knn import ItemKNN
from llmrec.baselines.markov import Markov
from llmrec.baselines.popularity import Popularity, RecentPopularity
from llmrec.baselines.ranking import target_nll
from llmrec.baselines.sequential import Sequential
from llmrec.baselines.text_knn import TextKNN
from llmrec.baselines.title_vectors import title_vectors
from llmrec.baselines.tuning import Search, choose, refitted
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples, Interactions, concatenated, offsets_of
from llmrec.errors import RecipeError

SIZE = 15
TITLES = tuple(f"Film {i}" for i in range(SIZE))
CATALOG = Catalog(TITLES, TITLES, TITLES)


def walkers(users: int = 30, length: int = 8) -> tuple[Interactions, Examples]:
    """Users who mostly step to the next item; each one's last item is the target."""
    rng = np.random.default_rng(0)
    steps = rng.choice([1, 1, 1, 2, 5], size=(users, length + 1))
    walks = ((np.cumsum(steps, axis=1) + rng.integers(SIZE, size=(users, 1))) % SIZE).astype(
        np.int32
    )
    rows = np.arange(users * length)
    train = Interactions(
        np.repeat(np.arange(users), length).astype(np.int32),
        walks[:, :-1].ravel(),
        rows,
        rows,
        np.arange(users).astype(object),
    )
    flags = np.zeros(users, dtype=bool)
    histories = list(walks[:, :-1])
    return train, Examples(
        np.arange(users).astype(object),
        offsets_of(histories),
        concatenated(histories),
        walks[:, -1],
        np.zeros(users, np.int64),
        flags,
        flags,
    )


TRAIN, VALID = walkers()
MODELS = {
    "popularity": Popularity,
    "recent_popularity": RecentPopularity,
    "markov": Markov,
    "item_knn": ItemKNN,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_its_hyperparameters_fitted_to_training_alone(name):
    tuned = choose(name, TRAIN, VALID, CATALOG, filter_seen=False, seed=0)
    again = MODELS[name](**tuned.hyperparameters).fit(TRAIN, SIZE)
    histories = VALID.histories()
    np.testing.assert_array_equal(
        tuned.fitted.probabilities(histories), again.probabilities(histories)
    )


@pytest.mark.parametrize("name", [*MODELS, "tgh"])
def test_what_was_chosen_is_fitted_again_without_a_search(name, monkeypatch):
    tuned = choose(name, TRAIN, VALID, CATALOG, filter_seen=False, seed=0)
    chosen = json.loads(json.dumps(tuned.described["chosen"]))
    for judge in ("target_nll", "predict"):  # what a search would measure with
        monkeypatch.setattr(tuning, judge, None)
    again = refitted(name, chosen, TRAIN, VALID, CATALOG, filter_seen=False, seed=0)
    histories = VALID.histories()
    np.testing.assert_array_equal(again.scores(histories), tuned.fitted.scores(histories))
    with pytest.raises(RecipeError, match="does not exist"):
        refitted("best", chosen, TRAIN, VALID, CATALOG, filter_seen=False, seed=0)


def test_a_network_that_is_kept_is_not_trained_again(monkeypatch, tmp_path):
    asked = (TRAIN, VALID, CATALOG, True, 0, Search(trials=1, store=tmp_path))
    tuned = choose("gru4rec", *asked)
    monkeypatch.setattr(Sequential, "fit", None)
    again = refitted("gru4rec", json.loads(json.dumps(tuned.described["chosen"])), *asked)
    histories = VALID.histories()
    np.testing.assert_array_equal(again.scores(histories), tuned.fitted.scores(histories))


@pytest.mark.parametrize("name", MODELS)
def test_the_choice_is_the_best_of_what_was_tried(name):
    tuned = choose(name, TRAIN, VALID, CATALOG, filter_seen=False, seed=0)
    assert tuned.criterion == "valid_nll"
    assert tuned.value == min(value for _, value in tuned.trials)
    assert (tuned.hyperparameters, tuned.value) in tuned.trials
    nll = target_nll(tuned.fitted, VALID.histories(), VALID.targets, SIZE, filter_seen=False)
    assert tuned.value == pytest.approx(nll.mean())
    for key, values in tuned.grid.items():
        assert tuned.hyperparameters[key] in values
    assert json.loads(json.dumps(tuned.described))["chosen"] == tuned.hyperparameters


def test_order_helps_where_there_is_order():
    value = {name: choose(name, TRAIN, VALID, CATALOG, False, 0).value for name in MODELS}
    assert value["markov"] < value["popularity"] - 0.3


def test_the_graph_is_chosen_by_ndcg():
    tuned = choose("tgh", TRAIN, VALID, CATALOG, filter_seen=True, seed=0)
    assert tuned.criterion == "valid_ndcg@10"
    assert tuned.value == max(value for _, value in tuned.trials)
    assert {asked["variant"] for asked, _ in tuned.trials} == {1, 2}


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_a_network_is_recorded_with_what_was_trained(monkeypatch, name):
    from llmrec.baselines import network_tuning

    kind = network_tuning.KINDS[name]
    small = {name: lambda: kind(hidden=8, max_length=5, max_epochs=2)}
    monkeypatch.setattr(network_tuning, "KINDS", small)
    monkeypatch.setattr(network_tuning, "CHANGES", ({"dropout": 0.5}, {"width": 2}))
    tuned = choose(name, TRAIN, VALID, CATALOG, True, 0, Search(trials=2))
    trained = tuned.described["trained"]
    assert [(t["dropout"], t["hidden"]) for t in trained] == [(0.3, 8), (0.5, 8)]
    best = max(trained, key=lambda t: t["valid_ndcg@10"])
    assert tuned.hyperparameters["dropout"] == best["dropout"]
    assert tuned.hyperparameters["epoch"] == best["epoch"] in (1, 2)
    assert len(tuned.trials) == len(tuned.grid["temperature"])
    json.dumps(tuned.described)


def test_text_knn_is_chosen_by_nll_and_gets_its_vectors_from_outside():
    words = choose("text_knn", TRAIN, VALID, CATALOG, True, 0)
    assert words.value == min(value for _, value in words.trials)
    again = TextKNN(**words.hyperparameters).fit(title_vectors(TITLES))
    histories = VALID.histories()
    np.testing.assert_array_equal(
        words.fitted.probabilities(histories), again.probabilities(histories)
    )
    given = np.eye(SIZE)[:, ::-1]
    search = Search(sentences=lambda: given)
    tuned = choose("text_knn_sentences", TRAIN, VALID, CATALOG, True, 0, search)
    np.testing.assert_array_equal(tuned.fitted.vectors, given)
    with pytest.raises(RecipeError, match="vectors of a sentence encoder"):
        choose("text_knn_sentences", TRAIN, VALID, CATALOG, True, 0)


def test_genres_speak_beside_titles_by_a_share_that_is_chosen():
    kinds = tuple("Sci-Fi|War" if n % 2 else "Children's, Comedy" for n in range(SIZE))
    catalog = replace(CATALOG, genres=kinds)
    tuned = choose("text_knn_genres", TRAIN, VALID, catalog, True, 0)
    assert tuned.value == min(value for _, value in tuned.trials)
    assert {asked["share"] for asked, _ in tuned.trials} == {0.25, 0.5, 0.75, 1.0}
    share = tuned.hyperparameters["share"]
    alike = (tuned.fitted.vectors @ tuned.fitted.vectors.T).toarray()
    of_titles = (title_vectors(TITLES) @ title_vectors(TITLES).T).toarray()
    same = np.equal.outer(kinds, kinds)  # two words each, and none in common
    np.testing.assert_allclose(alike, share * same + (1 - share) * of_titles, atol=1e-12)
    again = refitted("text_knn_genres", tuned.hyperparameters, TRAIN, VALID, catalog, True, 0)
    histories = VALID.histories()
    np.testing.assert_array_equal(
        again.probabilities(histories), tuned.fitted.probabilities(histories)
    )
    with pytest.raises(RecipeError, match=r"no genres; name their column in data\.items_columns"):
        choose("text_knn_genres", TRAIN, VALID, CATALOG, True, 0)


def test_targets_that_may_not_be_recommended_do_not_count():
    histories = [np.array([0, 1], np.int32), np.array([2], np.int32)]
    flags = np.zeros(2, dtype=bool)
    valid = Examples(
        np.array(["a", "b"], object),
        offsets_of(histories),
        concatenated(histories),
        np.array([1, 3], np.int32),
        np.zeros(2, np.int64),
        flags,
        flags,
    )
    tuned = choose("popularity", TRAIN, valid, CATALOG, filter_seen=True, seed=0)
    assert np.isfinite(tuned.value)
    unanswerable = choose("popularity", TRAIN, valid.take(np.array([0])), CATALOG, True, 0)
    assert unanswerable.hyperparameters == {"smoothing": 1.0}
    assert unanswerable.described["value"] is None


def test_many_examples_are_sampled_by_seed(monkeypatch):
    monkeypatch.setattr(tuning, "MAX_EXAMPLES", 10)
    value = [choose("popularity", TRAIN, VALID, CATALOG, False, seed).value for seed in (0, 0, 1)]
    assert value[0] == value[1] != value[2]


def test_half_lives_are_shares_of_the_time_span():
    tuned = choose("recent_popularity", TRAIN, VALID, CATALOG, True, 0)
    span = float(TRAIN.timestamp.max() - TRAIN.timestamp.min())
    assert tuned.grid["half_life"] == [span * part for part in tuning.HALF_LIVES]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(RecipeError, match="'markof' does not exist; choose from popularity"):
        choose("markof", TRAIN, VALID, CATALOG, True, 0)


def test_torch_is_imported_for_sasrec_alone():
    code = "import sys, llmrec.baselines.tuning; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
