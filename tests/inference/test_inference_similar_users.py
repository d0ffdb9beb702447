"""Similar users of every prompt: whose they are, from when, what stands on disk, what lacks."""

import logging
import random
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples, Interactions
from llmrec.errors import DataError, LlmrecError, RecipeError
from llmrec.evaluation.predictions import Predictions
from llmrec.inference.from_recipe import base_of, encoder_of
from llmrec.inference.history_texts import HistoryTexts
from llmrec.inference.pools import Neighbour, Pools
from llmrec.inference.prompting import prompting_of
from llmrec.inference.similar_users import SimilarUsers, item_vectors, shortfalls
from llmrec.inference.title_states import sentence_vectors, state_vectors
from llmrec.methods.method import Job
from llmrec.methods.windows import as_examples, training_windows
from llmrec.model.loading import load_model
from llmrec.model.states import text_states
from llmrec.retrieval.index import VectorIndex
from llmrec.retrieval.similarity import MEASURES
from llmrec.stages import prepare, recommend, retrieve

SIMILAR = ("prompt.task=similar_users", "demonstrations.count=2", "demonstrations.history=3")
SPLITS = ("train", "valid", "test")


@pytest.fixture
def crossing(tmp_path):
    """A CSV of 20 users who choose at the same times, some items twice; and its raw choices."""
    rng = random.Random(5)
    raw, lines = {}, ["user_id,item_id,timestamp,title"]
    for step in range(12):
        for user in rng.sample(range(20), 14):
            last = raw.setdefault(f"u{user}", [])
            item = rng.choice([i for i in range(9) if not last or i != last[-1][1]])
            last.append((100 * step + user, item))
            lines.append(f"u{user},{item},{100 * step + user},Film {item}")
    (tmp_path / "crossing.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return tmp_path / "crossing.csv", raw


@pytest.mark.parametrize("split", ["leave_one_out", "global_time", "sliding_window", "by_user"])
def test_a_training_window_knows_when_its_target_was_chosen_and_all_before_it(
    recipe_of, crossing, split
):
    source, raw = crossing
    recipe, folder = recipe_of(
        f"data.source={source}",
        f"data.split={split}",
        "data.window=5",
        "prompt.max_history=2",
        "systems=[popularity]",
        "data.ratios=[0.6, 0.2, 0.2]",
    )
    prepare.run(recipe, folder)
    train = Examples.read(folder.examples("train"))
    item_of = [int(item) for item in Catalog.read(folder.items).item_ids]
    windows = training_windows(recipe, train)
    asked = as_examples(windows, Interactions.read(folder.interactions))
    assert len(asked) == len(windows) > len(train)  # most are cut into several
    repeated = 0
    for window, example in zip(windows, asked, strict=True):
        choices = raw[window.user_id]
        # A user chooses at most once at a time, so the example's end is known.
        times = [time for time, _ in choices]
        last = times.index(int(train.timestamps[window.example]))
        begin = last - len(train.history(window.example))
        here = begin + window.end
        assert choices[here] == (example.timestamp, item_of[example.target])
        assert example.user_id == window.user_id
        assert example.target == window.target
        before = [item for _, item in choices[begin:here]]
        assert [item_of[i] for i in example.history] == before
        assert [item_of[i] for i in window.history] == before[-len(window.history) :]
        if split != "sliding_window":
            assert begin == 0
        items = [item for _, item in choices]
        repeated += items.count(item_of[example.target]) > 1
    assert repeated > 5, "an item alone does not say when it was chosen"


def test_examples_that_are_no_run_of_the_interactions_are_refused(recipe_of):
    recipe, folder = recipe_of("systems=[popularity]")
    prepare.run(recipe, folder)
    train = Examples.read(folder.examples("train"))
    interactions = Interactions.read(folder.interactions)
    windows = training_windows(recipe, train)
    assert len(as_examples(windows, interactions)) == len(windows)
    last = np.append(np.flatnonzero(np.diff(interactions.user)), len(interactions) - 1)
    fewer = interactions.take(np.delete(np.arange(len(interactions)), last[:1]))
    changed = interactions.position.copy()
    changed[last[0]] += 1
    other = replace(interactions, position=changed)
    stranger = [replace(windows[0], user_id="nobody")]
    for asked, over in ((windows, fewer), (windows, other), (stranger, interactions)):
        with pytest.raises(DataError, match="no run of that user's rows"):
            as_examples(asked, over)


def found_for(recipe, folder):
    """Split -> its examples and the pools that stand for them."""
    prepare.run(recipe, folder)
    job = Job.of(recipe, folder)
    assert job.prompting is not None
    examples = {"train": as_examples(job.windows, Interactions.read(folder.interactions))}
    for split in ("valid", "test"):
        examples[split] = Examples.read(folder.examples(split))
        prompting_of(recipe, folder, job.encoder, split, examples[split])
    return {split: (examples[split], Pools.read(folder.pools(split))) for split in SPLITS}


@pytest.mark.parametrize("by", ["retrieval", "random"])
def test_whom_a_prompt_may_show_stands_in_the_raw_log_with_its_rows(recipe_of, crossing, by):
    source, raw = crossing
    recipe, folder = recipe_of(
        *SIMILAR,
        f"data.source={source}",
        f"demonstrations.by={by}",
        "systems=[untuned]",
        "demonstrations.count=3",
    )
    rows = [line.split(",") for line in source.read_text("utf-8").splitlines()[1:]]
    for split, (examples, pools) in found_for(recipe, folder).items():
        titles = Catalog.read(folder.items).titles
        assert len(pools) == len(examples)
        for example, neighbours in zip(examples, pools.neighbours, strict=True):
            assert len({n.user_id for n in neighbours}) == len(neighbours) <= 3
            for n in neighbours:
                shown = [*n.history.tolist(), n.chosen]
                assert n.user_id != example.user_id
                assert 1 <= len(n.history) <= 3
                assert len(n.rows) == len(shown)
                for row, position in zip(n.rows.tolist(), shown, strict=True):
                    user, _, time, title = rows[row]
                    assert (user, title) == (n.user_id, titles[position])
                    assert int(time) < example.timestamp, split
                times = [int(rows[row][2]) for row in n.rows]
                whole = [time for time, _ in raw[n.user_id]]
                end = whole.index(times[-1])
                assert times == whole[max(0, end - 3) : end + 1]  # a run of the user's choices
            scores = [n.score for n in neighbours]
            assert scores == sorted(scores, reverse=True)


def test_fewer_training_users_are_among_more_of_them_and_nobody_else_is_shown(recipe_of):
    users = {}
    for count in (4, 8):
        recipe, folder = recipe_of(
            *SIMILAR,
            f"data.train_users={count}",
            f"name=few-{count}",
            "seed=3",
            "systems=[untuned]",
        )
        found = found_for(recipe, folder)
        users[count] = set(Examples.read(folder.examples("train")).user_ids)
        assert len(users[count]) == count
        known = Interactions.read(folder.interactions)
        assert set(known.user_ids[np.unique(known.user)]) == users[count]
        shown = {
            n.user_id for _, pools in found.values() for pool in pools.neighbours for n in pool
        }
        assert shown <= users[count]
        assert len(shown) > count // 2
        assert len(found["test"][0]) == 24  # everybody is asked about all the same
    assert users[4] < users[8]
    other, folder = recipe_of("data.train_users=4", "name=other", "seed=4", "systems=[untuned]")
    prepare.run(other, folder)
    assert set(Examples.read(folder.examples("train")).user_ids) != users[4]


def test_whoever_has_no_neighbours_is_shown_none_and_counted(recipe_of):
    """In this log a user's first choice comes after all choices of the user before."""
    recipe, folder = recipe_of(*SIMILAR, "systems=[untuned, popularity]")
    recommend.run(recipe, folder)
    test, pools = Examples.read(folder.examples("test")), Pools.read(folder.pools("test"))
    none, fewer = 0, 0
    encoder = encoder_of(recipe, Catalog.read(folder.items))
    prompts = prompting_of(recipe, folder, encoder, "test", test).ids()
    for example, pool, ids in zip(test, pools.neighbours, prompts, strict=True):
        assert len(pool) == min(2, int(example.user_id[1:]))
        none, fewer = none + (len(pool) == 0), fewer + (len(pool) == 1)
        shown = [f"Similar user {i}" for i in range(1, 4)]
        text = encoder.tokenizer.decode(ids.tolist())
        assert [s in text for s in shown] == [i < len(pool) for i in range(3)]
        if not pool:
            assert ids.tolist() == encoder.prompt(example.history).ids.tolist()
    assert (none, fewer) == (1, 1)
    said = Predictions.read(folder.predictions("untuned")).info.hyperparameters
    assert {key: said[key] for key in ("prompts", "no_users", "fewer_users", "empty_history")} == {
        "prompts": 24,
        "no_users": 1,
        "fewer_users": 1,
        "empty_history": 0,
    }
    assert (said["selection_failed"], said["other_users_than_retrieved"]) == (0, 0.0)
    assert "no_users" not in Predictions.read(folder.predictions("popularity")).info.hyperparameters


def test_an_empty_history_finds_nobody_alike_and_is_counted(recipe_of):
    recipe, folder = recipe_of(*SIMILAR, "systems=[untuned]")
    prepare.run(recipe, folder)
    flags = np.zeros(2, np.bool_)
    asked = Examples(
        np.array(["new", "u20"], object),
        np.array([0, 0, 2]),
        np.array([3, 4], np.int32),
        np.array([1, 5], np.int32),
        np.array([10**9, 10**9]),
        flags,
        flags,
    )
    pools = SimilarUsers(recipe, folder).find(asked)
    assert [len(pool) for pool in pools.neighbours] == [0, 2]
    assert shortfalls(pools, asked, 2) == {
        "prompts": 2,
        "fewer_users": 0,
        "no_users": 1,
        "empty_history": 1,
    }
    encoder = encoder_of(recipe, Catalog.read(folder.items))
    prompting = prompting_of(recipe, folder, encoder, "test", asked)
    assert prompting.ids()[0].tolist() == encoder.prompt([]).ids.tolist()
    anybody, _ = recipe_of(*SIMILAR, "demonstrations.by=random", "systems=[untuned]")
    found = SimilarUsers(anybody, folder).find(asked).neighbours
    assert [len(pool) for pool in found] == [2, 2]  # who is drawn needs no history
    assert "u20" not in {n.user_id for n in found[1]}


@pytest.fixture
def standing(recipe_of):
    """A recipe, its folder, its test examples and the pools that stand for them."""
    recipe, folder = recipe_of(*SIMILAR, "systems=[untuned]")
    prepare.run(recipe, folder)
    test = Examples.read(folder.examples("test"))
    SimilarUsers(recipe, folder).of("test", test)
    return recipe, folder, test


def test_pools_are_read_where_they_stand_by_these_settings_and_found_else(
    standing, recipe_of, monkeypatch
):
    recipe, folder, test = standing
    looked = []
    real = SimilarUsers.find

    def finding(self, examples, count=None):
        looked.append(len(examples))
        return real(self, examples, count)

    monkeypatch.setattr(SimilarUsers, "find", finding)
    whole = folder.pools("test").read_bytes()
    SimilarUsers(recipe, folder).of("test", test)
    selected, _ = recipe_of(
        *SIMILAR, "systems=[untuned]", "demonstrations.count=1", "demonstrations.selection.pool=2"
    )
    SimilarUsers(selected, folder).of("test", test)  # who is shown of them is another matter
    assert looked == []
    for change in (
        "demonstrations.count=3",
        "demonstrations.by=random",
        "seed=1",
        "demonstrations.history=2",
        "demonstrations.similarity.weights.lcs=0",
    ):
        other, _ = recipe_of(*SIMILAR, "systems=[untuned]", change)
        SimilarUsers(other, folder).of("test", test)
    SimilarUsers(other, folder).of("test", test.take(np.arange(5)))
    assert looked == [24] * 5 + [5]
    SimilarUsers(recipe, folder).of("test", test)
    assert folder.pools("test").read_bytes() == whole


def test_a_damaged_file_of_pools_is_found_again_or_refused(standing):
    recipe, folder, test = standing
    path = folder.pools("test")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    for damaged in (b"", b"PAR1 no PAR1", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"test\.parquet: holds no similar users"):
            Pools.read(path)
        SimilarUsers(recipe, folder).of("test", test)
        assert path.read_bytes() == whole
    path.write_bytes(bytes(flipped))
    SimilarUsers(recipe, folder).of("test", test)
    assert path.read_bytes() == whole
    path.with_suffix(".json").unlink()
    SimilarUsers(recipe, folder).of("test", test)
    assert path.read_bytes() == whole


def test_pools_come_back_as_they_were_written(tmp_path):
    def someone(name, history, score):
        rows = np.arange(len(history) + 1, dtype=np.int64) + 2**40
        return Neighbour(name, np.array(history, np.int32), 7, rows, score)

    pools = Pools(
        np.array(["a", "b", "ü"], object),
        np.array([1, 2**40, -3]),
        [[someone("x", [1, 2], 0.5), someone("y", [3], 0.25)], [], [someone("z", [4], 0.0)]],
    )
    pools.write(tmp_path / "deep" / "pools.parquet")
    again = Pools.read(tmp_path / "deep" / "pools.parquet")
    turned = again.take(np.array([2, 0]))
    for one, of in ((again, [0, 1, 2]), (turned, [2, 0])):
        assert one.user_ids.tolist() == [pools.user_ids[i] for i in of]
        assert one.timestamps.tolist() == [pools.timestamps[i] for i in of]
        for mine, i in zip(one.neighbours, of, strict=True):
            assert [
                (n.user_id, n.history.tolist(), n.chosen, n.rows.tolist(), n.score) for n in mine
            ] == [
                (n.user_id, n.history.tolist(), n.chosen, n.rows.tolist(), n.score)
                for n in pools.neighbours[i]
            ]


def test_an_index_of_other_data_is_built_anew_and_says_so(standing, recipe_of, caplog, monkeypatch):
    recipe, folder, test = standing
    place = folder.similar / "index"
    whole = folder.pools("test").read_bytes()
    stranger = VectorIndex.build(np.eye(4, dtype=np.float32))
    stranger.write(place, "of something else")
    with pytest.raises(DataError, match="is over other data"):
        VectorIndex.read(place, "of this")
    monkeypatch.setattr(logging.getLogger("llmrec"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="llmrec"):
        folder.pools("test").unlink()
        SimilarUsers(recipe, folder).of("test", test)
    [said] = [r.getMessage() for r in caplog.records]
    assert "building the index anew" in said
    assert "other data" in said
    assert folder.pools("test").read_bytes() == whole

    caplog.clear()
    fewer, _ = recipe_of(*SIMILAR, "systems=[untuned]", "data.train_users=8")
    prepare.run(fewer, folder)
    with caplog.at_level(logging.WARNING, logger="llmrec"):
        pools = SimilarUsers(fewer, folder).of("test", Examples.read(folder.examples("test")))
    assert any("building the index anew" in r.getMessage() for r in caplog.records)
    train_users = set(Examples.read(folder.examples("train")).user_ids)
    assert {n.user_id for pool in pools.neighbours for n in pool} <= train_users


def test_the_sentence_encoder_is_asked_for_by_name_where_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(LlmrecError, match=r"sentence-transformers.*pip install 'llmrec\[embed\]'"):
        sentence_vectors(str(tmp_path), ["Blue"])

    def encoder(place, device, **_):
        assert device == "cpu"
        raise OSError(f"{place} has no config")

    package = types.ModuleType("sentence_transformers")
    package.SentenceTransformer = encoder
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    with pytest.raises(LlmrecError, match=rf"encoder '{tmp_path}'.*no config.*all-minilm-l6-v2"):
        sentence_vectors(str(tmp_path), ["Blue"])


def test_sentence_vectors_are_those_of_the_encoder_less_their_mean(monkeypatch, tmp_path):
    class Encoder:
        def __init__(self, place, device, trust_remote_code, model_kwargs):
            assert place == str(tmp_path)
            assert not trust_remote_code
            assert model_kwargs == {"use_safetensors": True}

        def encode(self, texts, **_):
            return np.array([[len(t), t.count("e"), 5.0] for t in texts])

    package = types.ModuleType("sentence_transformers")
    package.SentenceTransformer = Encoder
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    found = sentence_vectors(str(tmp_path), ["Blue", "Love", "Here we are"])
    mean = [19 / 3, 2.0, 5.0]
    for row, raw in zip(found, ([4, 1, 5], [4, 1, 5], [11, 4, 5]), strict=True):
        off = [value - m for value, m in zip(raw, mean, strict=True)]
        length = sum(value**2 for value in off) ** 0.5
        np.testing.assert_allclose(row, [value / length for value in off], atol=1e-6)


def mean_state(model, ids):
    """The mean of a text's token states, read alone, token by token."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([list(map(int, ids))]), output_hidden_states=True)
    states = output.hidden_states[-1][0].double()
    total = torch.zeros(states.shape[1], dtype=torch.float64)
    for token in range(len(ids)):
        total += states[token]
    return (total / len(ids)).numpy()


@pytest.mark.parametrize("budget", [1, 40, 4096])
def test_a_mean_state_is_the_mean_of_the_states_read_alone(tiny_model, budget):
    rng = np.random.default_rng(4)
    texts = [rng.integers(3, 300, rng.integers(1, 15)).astype(np.int32) for _ in range(17)]
    found = text_states(tiny_model, texts, budget, mean=True)
    for text, state in zip(texts, found, strict=True):
        np.testing.assert_allclose(state, mean_state(tiny_model, text), rtol=1e-5, atol=1e-5)
    last = text_states(tiny_model, texts, budget)
    assert any(not np.allclose(a, b, atol=1e-2) for a, b in zip(found, last, strict=True))


def test_titles_lie_where_their_tokens_do_on_average(recipe_of):
    recipe, folder = recipe_of(
        *SIMILAR, "demonstrations.similarity.vectors=states", "systems=[untuned]"
    )
    prepare.run(recipe, folder)
    catalog = Catalog.read(folder.items)
    encoder, model = encoder_of(recipe, catalog), load_model(base_of(recipe), "cpu")
    states = [mean_state(model, encoder.title_tokens(title)) for title in catalog.titles]
    mean = sum(states) / len(states)
    found = state_vectors(recipe, catalog)
    for row, state in zip(found, states, strict=True):
        off = state - mean
        np.testing.assert_allclose(row, off / np.linalg.norm(off), atol=1e-5)
    stored = item_vectors(recipe, folder, "states")
    np.testing.assert_array_equal(stored, found)
    [kept] = folder.similar.glob("items-states-*.npy")
    before = kept.stat().st_mtime_ns
    np.testing.assert_array_equal(item_vectors(recipe, folder, "states"), stored)
    assert kept.stat().st_mtime_ns == before  # what stands is read, a model is not asked again
    assert item_vectors(recipe, folder, "factors").shape[0] == len(catalog)


WHOLE = ("demonstrations.similarity.vectors=states", "demonstrations.similarity.embed=history")


def test_whole_histories_are_searched_as_one_text(recipe_of, crossing):
    """Neighbours against a loop: every earlier state of others read alone, mean taken off."""
    source, _ = crossing
    weights = ",".join(f"{m}: {int(m == 'cosine')}" for m in MEASURES)
    recipe, folder = recipe_of(
        *SIMILAR,
        *WHOLE,
        f"data.source={source}",
        "data.subset.test=8",
        f"demonstrations.similarity.weights={{{weights}}}",
        "systems=[untuned]",
    )
    prepare.run(recipe, folder)
    test = Examples.read(folder.examples("test"))
    finder = SimilarUsers(recipe, folder)
    pools = finder.find(test)
    catalog = Catalog.read(folder.items)
    encoder, model = encoder_of(recipe, catalog), load_model(base_of(recipe))

    def read(history):
        text = "; ".join(catalog.titles[p] for p in history)
        [state] = text_states(model, [encoder.standing_alone(text)], mean=True)
        return state.astype(np.float64)

    snapshots = finder.snapshots
    states = np.stack([read(snapshots.history(i).tolist()) for i in range(len(snapshots))])
    mean = states.mean(axis=0)
    codes = {name: code for code, name in enumerate(finder.interactions.user_ids.tolist())}
    for example, pool in zip(test, pools.neighbours, strict=True):
        own = read(example.history[-3:].tolist()) - mean
        own /= np.linalg.norm(own)
        best = {}
        for i in range(len(snapshots)):
            if (
                snapshots.time[i] >= example.timestamp
                or snapshots.user[i] == codes[example.user_id]
            ):
                continue
            other = states[i] - mean
            cosine = max(0.0, float(own @ other / np.linalg.norm(other)))
            user = int(snapshots.user[i])
            best[user] = max(best.get(user, 0.0), cosine)
        wanted = sorted(best.values(), reverse=True)[:2]
        np.testing.assert_allclose([n.score for n in pool], wanted, atol=2e-4)
    assert len({round(n.score, 3) for pool in pools.neighbours for n in pool}) > 4


def test_whole_histories_need_titles_and_are_kept(recipe_of, monkeypatch):
    with pytest.raises(RecipeError, match="states or sentences"):
        recipe_of(*SIMILAR, "demonstrations.similarity.embed=history")
    recipe, folder = recipe_of(*SIMILAR, *WHOLE, "systems=[untuned]")
    found = retrieve.run(recipe, folder)
    assert found["retrievers"][0]["vectors"] == "states, whole histories"
    kinds = {row["vectors"] for row in found["retrievers"]}
    assert kinds == {"states, whole histories", "states"}
    monkeypatch.setattr(HistoryTexts, "_read", None)
    kept = SimilarUsers(recipe, folder).whole
    assert kept.snapshots.shape == (found["index"]["states"], 32)
