"""Recommending: every system answers every test user, again with the same bytes, also when cut."""

import json
import shutil

import numpy as np
import pytest
import torch

from llmrec import Recommender
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.errors import DataError, LlmrecError
from llmrec.evaluation.predictions import Predictions
from llmrec.stages import evaluate, recommend, recommend_histories, train
from llmrec.systems.linking import Linker
from llmrec.systems.raw_histories import read_histories
from llmrec.systems.resources import Resources


@pytest.fixture
def finished(recipe_of):
    recipe, folder = recipe_of()
    train.run(recipe, folder)
    folder.keep(recipe)
    return recipe, folder


def test_every_system_answers_every_user_with_open_items(finished):
    recipe, folder = finished
    recommend.run(recipe, folder)
    test = Examples.read(folder.examples("test"))
    for system in recipe.systems:
        answers = Predictions.read(folder.predictions(system))
        assert answers.user_ids.tolist() == test.user_ids.tolist()
        for index in range(len(test)):
            ranking = answers.ranking(index)
            assert len(set(ranking.tolist())) == len(ranking) > 0
            assert not set(ranking.tolist()) & set(test.history(index).tolist())
    guided = Predictions.read(folder.predictions("tuned_guided")).info.hyperparameters
    assert guided["weight"] in recipe.decode.guidance.grid
    assert guided["valid_nll"][f"{guided['weight']:g}"] == min(guided["valid_nll"].values())
    metrics = evaluate.run(recipe, folder)
    assert metrics


def test_a_likelihood_of_all_items_sums_to_one(finished):
    """Guidance with weight 0 is the baseline itself, with its very likelihood."""
    recipe, folder = finished
    recipe = recipe.model_copy(
        update={
            "decode": recipe.decode.model_copy(
                update={"guidance": recipe.decode.guidance.model_copy(update={"weight": 0.0})}
            )
        }
    )
    recommend.run(recipe, folder)
    guided = Predictions.read(folder.predictions("tuned_guided"))
    markov = Predictions.read(folder.predictions("markov"))
    np.testing.assert_allclose(guided.nll, markov.nll, atol=1e-6)
    assert guided.items.tolist() == markov.items.tolist()


def test_guidance_is_made_for_the_users_that_are_read_together(finished, monkeypatch):
    """Of all of them at once it would be an array of users x items."""
    recipe, folder = finished
    small = recipe.model_copy(
        update={
            "systems": ["tuned_guided"],
            "decode": recipe.decode.model_copy(update={"batch_size": 5}),
        }
    )
    made, asked = Resources.probabilities, []

    def counted(resources, scorer, histories):
        asked.append(len(histories))
        return made(resources, scorer, histories)

    monkeypatch.setattr(Resources, "probabilities", counted)
    recommend.run(small, folder)
    assert max(asked) == 5
    users = len(Examples.read(folder.examples("test")))
    assert sum(asked) >= users + len(Examples.read(folder.examples("valid")))


@pytest.mark.parametrize("search", ["beam", "best_first", "certified"])
def test_batches_that_take_turns_are_answered_alike(finished, search):
    """On a CPU too threads change in every wait, so what they share would show."""
    recipe, folder = finished
    found = []
    for count in (1, 3):
        decode = {"batch_size": 3, "search": search, "batches_in_flight": count}
        if search == "best_first":
            decode["beams"] = None
        decode["renormalise"] = search != "certified"
        taking_turns = recipe.model_copy(
            update={
                "systems": ["untuned", "tuned"],
                "decode": recipe.decode.model_copy(update=decode),
            }
        )
        recommend.run(taking_turns, folder)
        found.append([Predictions.read(folder.predictions(s)) for s in taking_turns.systems])
        for path in folder.predictions("x").parent.glob("*.parquet"):
            path.unlink()
    for one, other in zip(*found, strict=True):
        assert one.items.tolist() == other.items.tolist()
        assert one.scores.tolist() == other.scores.tolist()
        np.testing.assert_array_equal(one.nll, other.nll)


def test_an_interrupted_run_goes_on_by_batch_to_the_same_answers(finished, request):
    recipe, folder = finished
    recommend.run(recipe, folder)
    whole = {s: folder.predictions(s).read_bytes() for s in recipe.systems}
    for path in folder.predictions("x").parent.glob("*.parquet"):
        path.unlink()
    request.getfixturevalue("written_parts")  # from here on
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            recommend.run(recipe, folder)
    recommend.run(recipe, folder)
    for system in recipe.systems:
        again = Predictions.read(folder.predictions(system))
        folder.predictions(system).write_bytes(whole[system])
        before = Predictions.read(folder.predictions(system))
        assert again.items.tolist() == before.items.tolist()
        assert again.scores.tolist() == before.scores.tolist()
        np.testing.assert_array_equal(again.nll, before.nll)
    assert not list(folder.predictions("x").parent.glob(".parts/*/*"))


def test_what_stands_is_kept_and_what_changed_is_done_again(finished):
    recipe, folder = finished
    assert recommend.run(recipe, folder)["written"] == list(recipe.systems)
    assert recommend.run(recipe, folder)["written"] == []
    wider = recipe.model_copy(update={"decode": recipe.decode.model_copy(update={"beams": 8})})
    assert recommend.run(wider, folder)["written"] == ["untuned", "tuned", "tuned_guided"]


def test_every_search_finds_lists_and_says_how_many_are_proven(finished):
    recipe, folder = finished
    narrow = recipe.decode.model_copy(update={"beams": 2, "top_k": 2})
    found = {}
    for search in ("beam", "certified", "best_first"):
        decode = narrow.model_copy(update={"search": search})
        searching = recipe.model_copy(update={"decode": decode})
        assert "tuned_guided" in recommend.run(searching, folder)["written"]
        found[search] = {
            s: Predictions.read(folder.predictions(s)) for s in ("untuned", "tuned", "tuned_guided")
        }
    for system, beams in found["beam"].items():
        best = found["best_first"][system]
        assert (best.scores >= beams.scores - 1e-4).all()
        np.testing.assert_allclose(found["certified"][system].scores, best.scores, atol=1e-4)
        proven = {search: found[search][system].info.hyperparameters["proven"] for search in found}
        assert 0 <= proven.pop("beam") < 1
        assert set(proven.values()) == {1.0}
    folder.keep(searching)
    test = Examples.read(folder.examples("test"))
    recommender = Recommender.from_pretrained(folder.root)
    item_ids = recommender.catalog.item_ids
    asked = [[item_ids[i] for i in history] for history in test.histories()]
    table = recommender.recommend(asked, top_k=2)
    tuned = found["best_first"]["tuned"]
    assert [item_ids[i] for i in tuned.items] == table["item_id"].to_pylist()


def test_tuned_without_training_says_what_to_do(recipe_of):
    recipe, folder = recipe_of("systems=[tuned]")
    with pytest.raises(LlmrecError, match="llmrec train"):
        recommend.run(recipe, folder)


def test_the_recommender_takes_ids_and_titles_and_gives_a_table(finished):
    _, folder = finished
    recommender = Recommender.from_pretrained(folder.adapter)
    table = recommender.recommend([["i0", "The Man II"], ["dark city", "Last Sumer"]], top_k=3)
    assert table.column_names == ["user", "rank", "item_id", "title", "score"]
    rows = table.to_pylist()
    assert [r["rank"] for r in rows] == [1, 2, 3, 1, 2, 3]
    assert not {"i0", "i1"} & {r["item_id"] for r in rows[:3]}
    scores = [r["score"] for r in rows[:3]]
    assert scores == sorted(scores, reverse=True)
    assert recommender.recommend([[]], top_k=20).num_rows == 12
    both = Catalog(("i0", "i1"), ("Love", "i0"), ("Love", "i0"))
    recommender.linker = Linker(both)
    with pytest.raises(DataError, match=r"id of one item .* write \{\"id\": \"i0\"\} for the one"):
        recommender.recommend([["i0"]])
    recommender.linker = Linker(recommender.catalog)
    with pytest.raises(DataError, match="'Unheard of' is neither"):
        recommender.recommend([["i0", "Unheard of"]])
    with pytest.raises(LlmrecError, match="no run of llmrec"):
        Recommender.from_pretrained(folder.root.parent)


def answered(recipe, folder, lines, top_k):
    batches = recommend_histories.of_lines(recipe, lines)
    wanted = recommend_histories.Wanted(top_k)
    found = recommend_histories.tables(recipe, folder, batches, wanted)
    return [row for table in found for row in table.to_pylist()]


def test_raw_histories_come_as_json_lines(finished):
    recipe, folder = finished
    lines = ['["i0", "i1"]\n', "\n", json.dumps({"user": "me", "history": ["Love"]})]
    rows = answered(recipe, folder, lines, 2)
    assert [r["user"] for r in rows] == ["1", "1", "me", "me"]
    said = ['[{"id": "i0"}, {"title": "Love"}]', '["i0", "Love"]']
    rows = answered(recipe, folder, said, 3)
    assert [r["item_id"] for r in rows[:3]] == [r["item_id"] for r in rows[3:]]
    for bad in (
        "{",
        '{"history": 3}',
        "3",
        '[["nested"]]',
        '[{"name": "Love"}]',
        "[true]",
        '{"history": [], "candidates": "i1"}',
    ):
        with pytest.raises(DataError, match="line 1"):
            list(read_histories([bad]))


def test_two_processes_give_the_answers_of_one(finished, in_two_processes):
    recipe, folder = finished
    recommend.run(recipe, folder)
    alone = {system: Predictions.read(folder.predictions(system)) for system in recipe.systems}
    for path in folder.predictions("x").parent.glob("*.parquet"):
        path.unlink()
    in_two_processes("recommend", recipe)
    for system in recipe.systems:
        together = Predictions.read(folder.predictions(system))
        assert together.items.tolist() == alone[system].items.tolist()
        assert together.scores.tolist() == alone[system].scores.tolist()
        np.testing.assert_array_equal(together.nll, alone[system].nll)


def test_where_memory_runs_out_fewer_are_read_at_a_time_and_answers_stay(finished, monkeypatch):
    from llmrec.decoding.shared_prompt import SharedPrompt

    recipe, folder = finished
    recommend.run(recipe, folder)
    language = ("untuned", "tuned", "tuned_guided")
    whole = {name: Predictions.read(folder.predictions(name)) for name in language}
    shutil.rmtree(folder.predictions("x").parent)
    real, read = SharedPrompt.__init__, []

    def reading(self, model, prompts, *rest):
        read.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self, model, prompts, *rest)

    monkeypatch.setattr(SharedPrompt, "__init__", reading)
    recommend.run(recipe, folder)
    assert max(read) == recipe.decode.batch_size
    for name, before in whole.items():
        after = Predictions.read(folder.predictions(name))
        assert after.items.tolist() == before.items.tolist()
        np.testing.assert_allclose(after.nll, before.nll, atol=1e-5)
