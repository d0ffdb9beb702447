"""Fine-tuning a language model with conformal prediction: its candidates and how it goes on."""

import json
import random
from collections import Counter

import numpy as np
import pytest

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples, Interactions
from llmrec.decoding.beam import Scoring, beam_search
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.errors import DataError, LlmrecError
from llmrec.inference.from_recipe import base_of, encoder_of
from llmrec.methods import conformal
from llmrec.methods.conformal import LiveCandidates
from llmrec.methods.method import Job
from llmrec.methods.windows import training_windows
from llmrec.model.kept_weights import read_log
from llmrec.model.loading import load_model
from llmrec.model.trainer import TreeTrainer
from llmrec.stages import prepare, preview, prompts, train

ITEMS, USERS = 40, 16
WORDS = ["The", "Man", "Dark", "City", "Star", "Last", "Summer", "Dance", "Love", "River", "Blue"]
CONFORMAL = (
    "conformal.candidates.beams=3",
    "conformal.candidates.sampled=4",
    "conformal.candidates.refresh=3",
    "conformal.beta=1",
)


@pytest.fixture(scope="module")
def wide_log(tmp_path_factory):
    """A CSV of 16 users with 7 to 14 of 40 movies each, none twice."""
    rng = random.Random(5)
    lines = ["user_id,item_id,timestamp,title"]
    titles = [f"{' '.join(rng.sample(WORDS, 2))} {number}" for number in range(ITEMS)]
    for user in range(USERS):
        start = rng.randrange(ITEMS)
        for step in range(rng.randint(7, 14)):
            item = (start + step) % ITEMS
            lines.append(f"u{user},i{item},{100 * (start + step) + user},{titles[item]}")
    path = tmp_path_factory.mktemp("wide") / "log.csv"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture
def conformal_of(recipe_of, wide_log):
    """The Recipe and RunFolder of a small run with conformal prediction."""

    def make(*overrides):
        return recipe_of(
            f"data.source={wide_log}",
            "systems=[tuned]",
            "prompt.max_history=3",
            "train.eval_steps=20",
            *CONFORMAL,
            *overrides,
        )

    return make


def made(recipe, folder):
    """Encoder, windows and rows of a recipe."""
    prepare.run(recipe, folder)
    job = Job.of(recipe, folder)
    return job.encoder, job.windows, conformal.rows(job)


def training_items(folder):
    """User -> positions of the training rows, oldest first."""
    log = Interactions.read(folder.interactions)
    return {
        str(name): log.position[log.user == code].tolist() for code, name in enumerate(log.user_ids)
    }


def views_of(row):
    """The candidates of a row: the target, those of the first view, those of the second."""
    found = {
        kind: [s.target for s in row.segments if s.target >= 0 and s.kind == kind]
        for kind in (0, 1, 2)
    }
    return found[0], found[0] + found[1], found[2]


def untimed(folder):
    return [
        {k: v for k, v in line.items() if k != "seconds"} for line in read_log(folder.train_log)
    ]


def files(folder):
    return {
        int(p.stem): json.loads(p.read_text("utf-8")) for p in folder.candidate_sets.glob("*.json")
    }


def weights(folder):
    return (folder.adapter / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("view", ["valid", "train"])
@pytest.mark.parametrize("split", ["leave_one_out", "global_time", "sliding_window", "by_user"])
def test_the_second_view_reads_one_item_further_and_none_later(conformal_of, split, view):
    recipe, folder = conformal_of(f"data.split={split}", f"conformal.view={view}", "data.window=5")
    encoder, windows, rows = made(recipe, folder)
    sequences, valid = training_items(folder), Examples.read(folder.examples("valid"))
    test = Examples.read(folder.examples("test"))
    never = {(str(u), t) for u, t in zip(test.user_ids, test.targets, strict=True)}
    seen = Counter()
    for number, window in enumerate(windows):
        sequence = sequences[window.user_id]
        at = sequence.index(window.target)  # nobody chose an item twice
        further = [window.target]
        if view == "valid":
            if at + 1 < len(sequence):
                further.append(sequence[at + 1])
            else:
                after = [
                    (e.timestamp, e.target)
                    for e in valid
                    if e.user_id == window.user_id and e.history[-1] == window.target
                ]
                further += [target for _, target in sorted(after)[:1]]
        seen[len(further), at + 1 == len(sequence)] += 1
        assert rows.known[number].further.tolist() == further
        assert rows.known[number].before.tolist() == sequence[:at]
        assert not {(window.user_id, item) for item in further} & never
        first, second = rows.views(number).prompts()
        assert first.tolist() == encoder.prompt(window.history).ids.tolist()
        wide = encoder_of(
            recipe.model_copy(
                update={"prompt": recipe.prompt.model_copy(update={"max_history": 9})}
            ),
            Catalog.read(folder.items),
        )
        shown = [*window.history.tolist(), *further]
        assert second.tolist() == wide.prompt(shown).ids.tolist()
    if view == "train":
        assert {count for count, _ in seen} == {1}
    else:
        assert seen[2, False] > 5
        assert seen[1, False] == 0
        assert (seen[2, True] > 0) is (split != "by_user"), "validation users train nothing there"


def test_candidates_are_the_target_live_ones_and_unseen_random_ones(conformal_of):
    recipe, folder = conformal_of()
    _, windows, rows = made(recipe, folder)
    sequences = training_items(folder)
    random_only = [views_of(rows[n]) for n in range(len(rows))]
    assert [views_of(row) for row in rows] == random_only, "the same whenever they are asked for"
    rows.beams = {0: ([windows[0].target, 1, 2], [3]), 1: ([], [4, 5, 6])}
    for number, window in enumerate(windows):
        target, first, second = views_of(rows[number])
        further = rows.known[number].further.tolist()
        assert target == [window.target]
        assert len(set(first)) == len(first) == len(set(second)) == len(second) == 8
        live = rows.beams.get(number, ([], []))
        unseen = set(range(ITEMS)) - {*sequences[window.user_id], *further}
        assert set(first) - {window.target, *live[0]} <= unseen
        assert set(second) - set(live[1]) <= unseen
        assert [item for item in live[0] if item != window.target] == first[1:][
            : len(set(live[0]) - {window.target})
        ]
        assert second[: len(live[1])] == live[1]
        if number > 1:
            assert views_of(rows[number]) == random_only[number]
    drawn = Counter(item for _, first, second in random_only for item in first[1:] + second)
    assert len(drawn) == ITEMS, "every item is drawn at some time"
    rows.step = 3
    assert views_of(rows[5]) != random_only[5], "others at another step"
    assert views_of(rows[-1]) == views_of(rows[len(rows) - 1])
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_too_few_unseen_items_are_refused_with_the_number(conformal_of):
    recipe, folder = conformal_of("conformal.candidates.sampled=30")
    with pytest.raises(DataError, match=r"conformal.candidates asks for 34"):
        made(recipe, folder)


def test_live_candidates_are_those_of_the_search_behind_each_view(conformal_of):
    recipe, folder = conformal_of()
    encoder, windows, rows = made(recipe, folder)
    model = load_model(base_of(recipe), "cpu").eval()
    live = LiveCandidates(recipe, folder, rows)
    refreshed, facts = live(model, 0, lambda steps: list(range(4 * steps)))
    [said] = files(folder).values()
    assert [one["row"] for one in said] == list(range(12))
    hits = 0
    for one in said:
        number = one["row"]
        prompts, known = rows.views(number).prompts(), rows.known[number]
        closed = [known.before, np.append(known.before, known.further)]
        for view, prompt, shut in zip(("first", "second"), prompts, closed, strict=True):
            [alone] = beam_search(
                SharedPrompt(model, [prompt]),
                OpenItems(encoder.trie, [shut]),
                beams=3,
                top_k=3,
                scoring=Scoring(True),
            )
            assert one[view] == alone.positions.tolist()
            assert not set(one[view]) & set(shut.tolist())
        hits += windows[number].target in one["first"]
        _, first, second = views_of(refreshed[number])
        assert set(one["first"]) <= set(first)
        assert set(one["second"]) <= set(second)
    assert facts == {"candidates_refreshed": 12, "target_in_beams": pytest.approx(hits / 12)}
    assert live(model, 1, None) is None
    assert live(model, 2, None) is None


@pytest.fixture
def read_in_training(monkeypatch):
    """Step -> row -> whether its live candidates were there when the trainer read it."""
    seen, real = {}, TreeTrainer.piece_of

    def watched(self, fetched):
        seen.setdefault(self.state.global_step, []).extend(fetched["row_numbers"])
        return real(self, fetched)

    monkeypatch.setattr(TreeTrainer, "piece_of", watched)
    return seen


@pytest.mark.parametrize("smooth", ["true", "false"])
def test_training_learns_with_live_candidates_in_every_row_it_reads(
    conformal_of, read_in_training, smooth, caplog
):
    recipe, folder = conformal_of(
        f"conformal.smooth={smooth}", "objective.name=msl", "train.per_device_train_batch_size=3"
    )
    steps = train.run(recipe, folder)["steps"]
    known = files(folder)
    assert sorted(known) == list(range(0, steps, 3))
    assert sorted(read_in_training) == list(range(steps))
    for step, numbers in read_in_training.items():
        assert set(numbers) <= {one["row"] for one in known[step - step % 3]}
    for step, said in known.items():
        read = {n for s in range(step, step + 3) for n in read_in_training.get(s, [])}
        assert {one["row"] for one in said} == read
    lines = [line for line in untimed(folder) if "loss" in line]
    assert all(
        line["loss"]
        == pytest.approx(line["cross_entropy"] + line["set_size"] + line["set_distance"], rel=1e-4)
        for line in lines
    )
    assert lines[-1]["targets"] == 2 * len(
        training_windows(recipe, Examples.read(folder.examples("train")))
    )
    assert any(line["set_distance"] > 0 for line in lines)
    epochs = [line["losses"] for line in untimed(folder) if "losses" in line]
    assert [one["self"] for one in epochs] == [None, None]
    assert 0 < epochs[1]["real"] < 0.97 * epochs[0]["real"], "the same rows cost less"
    found = [line for line in untimed(folder) if "candidates_refreshed" in line]
    assert [line["candidates_refreshed"] for line in found] == [
        len(known[s]) for s in sorted(known)
    ]
    warned = [record for record in caplog.records if "no gradient" in record.message]
    assert len(warned) == (smooth == "false")
    with pytest.raises(LlmrecError, match="other settings"):
        train.run(
            *conformal_of(
                "conformal.alpha=0.2", "objective.name=msl", "train.per_device_train_batch_size=3"
            )
        )


def test_accumulation_gives_the_trajectory_of_the_whole_batch(conformal_of):
    whole, folder_a = conformal_of("name=whole", "conformal.smooth=true")
    cut, folder_b = conformal_of(
        "name=cut",
        "conformal.smooth=true",
        "train.per_device_train_batch_size=1",
        "train.gradient_accumulation_steps=4",
    )
    train.run(whole, folder_a)
    train.run(cut, folder_b)
    losses = [
        [(x["loss"], x["set_size"], x["set_distance"]) for x in untimed(f) if "loss" in x]
        for f in (folder_a, folder_b)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_interrupted_training_goes_on_with_the_candidates_it_had_to_the_same_bytes(
    conformal_of, monkeypatch
):
    """Between two refreshes, before one is done, before it is logged, and right after it."""
    straight, folder_a = conformal_of("name=straight", "conformal.smooth=true")
    train.run(straight, folder_a)

    cut, folder_b = conformal_of("name=cut", "conformal.smooth=true")
    moments = [("loss", 5), ("find", 6), ("log", 6), ("loss", 6), ("loss", 7), ("loss", 10)]
    learn, find, write = TreeTrainer.compute_loss, LiveCandidates._find, TreeTrainer._write_log
    asked = []

    def due(kind, step):
        if moments and moments[0] == (kind, step):
            moments.pop(0)
            raise KeyboardInterrupt

    def learning(self, *arguments, **named):
        due("loss", self.state.global_step)
        return learn(self, *arguments, **named)

    def finding(self, model, path, numbers):
        asked.append(int(path.stem))
        due("find", asked[-1])
        return find(self, model, path, numbers)

    def writing(self, line):
        if "candidates_refreshed" in line:
            due("log", line["step"])
        write(self, line)

    monkeypatch.setattr(TreeTrainer, "compute_loss", learning)
    monkeypatch.setattr(LiveCandidates, "_find", finding)
    monkeypatch.setattr(TreeTrainer, "_write_log", writing)
    while moments:
        left = len(moments)
        with pytest.raises(KeyboardInterrupt):
            train.run(cut, folder_b)
        assert len(moments) == left - 1
    train.run(cut, folder_b)
    # Training goes on from steps 4, 6, 6, 6, 6 and 10; what was found by then is not asked again.
    assert asked == [0, 3, 6, 6, 9, *range(12, max(files(folder_a)) + 1, 3)]
    assert untimed(folder_b) == untimed(folder_a)
    assert files(folder_b) == files(folder_a)
    assert weights(folder_b) == weights(folder_a)


def test_two_processes_give_the_trajectory_of_one(conformal_of, in_two_processes):
    """Two processes over gloo, with half the batch each."""
    settings = ("conformal.smooth=true", "train.num_train_epochs=1")
    one, folder_a = conformal_of("name=one", *settings)
    train.run(one, folder_a)
    two, folder_b = conformal_of("name=two", *settings, "train.per_device_train_batch_size=2")
    in_two_processes("train", two)
    ours, theirs = (
        [
            (x["step"], x["loss"], x["set_size"], x["set_distance"], x["targets"])
            for x in untimed(f)
            if "loss" in x
        ]
        for f in (folder_b, folder_a)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert [sorted(one["row"] for one in said) for _, said in sorted(files(folder_b).items())] == [
        sorted(one["row"] for one in said) for _, said in sorted(files(folder_a).items())
    ]


def test_what_is_shown_before_training_are_the_rows_that_are_trained(conformal_of):
    recipe, folder = conformal_of("rows.count=30")
    _, windows, rows = made(recipe, folder)
    told = preview.run(recipe, folder)
    assert told["row_tokens"]["p100"] == max(len(row) for row in rows)
    for user in ("u3", "u7"):
        number = max((w.end, number) for number, w in enumerate(windows) if w.user_id == user)[1]
        shown = prompts.render(recipe, folder, user)
        assert shown["tokens"] == len(rows[number])
        assert [piece["ids"] for piece in shown["pieces"]] == [
            segment.ids.tolist() for segment in rows[number].segments
        ]
        target, first, second = views_of(rows[number])
        by_use = {
            use: [p["title"] for p in shown["pieces"] if p[use]] for use in ("learned", "compared")
        }
        titles = Catalog.read(folder.items).titles
        assert by_use["learned"] == [titles[item] for item in target]
        assert by_use["compared"] == [titles[item] for item in first[1:] + second]
        assert "--- branch" in prompts.painted(shown, colour=False)
    assert told["prompt"] == prompts.render(recipe, folder)
    with pytest.raises(DataError, match="no training row among the 30"):
        prompts.render(recipe, folder, "nobody")


def test_a_dry_run_counts_the_candidates_tokens_and_one_target_a_row(conformal_of):
    recipe, folder = conformal_of()
    told = preview.run(recipe, folder)
    plain = preview.run(recipe.model_copy(update={"conformal": None}), folder)
    assert told["targets"] == told["rows"] == plain["rows"]
    assert told["row_tokens"]["p50"] > 2 * plain["row_tokens"]["p50"]
