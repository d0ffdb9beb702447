"""The model chooses whom its prompts show: how it is asked, and how that goes on in training."""

import json
import math

import numpy as np
import pytest
import torch

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.decoding.free import Written
from llmrec.errors import RecipeError
from llmrec.inference import engine as module
from llmrec.inference.engine import Engine
from llmrec.inference.from_recipe import encoder_of
from llmrec.inference.pools import Neighbour, Pools
from llmrec.inference.ratings import Selected, Selecting, rating_in
from llmrec.methods.adaptrec import Reselecting
from llmrec.methods.windows import training_windows
from llmrec.model.kept_weights import read_log
from llmrec.model.trainer import TreeTrainer
from llmrec.recipe import shipped
from llmrec.recipe.decoding import Decode
from llmrec.recipe.demonstrations import Demonstrations
from llmrec.stages import train
from llmrec.text.encoding import Context, PromptEncoder
from llmrec.text.questions import all_in_one, one_by_one
from llmrec.text.rows import single
from llmrec.text.templates import PromptTemplate

MOVIE = PromptTemplate(shipped.prompt_text("similar_users/movie"), "similar_users/movie")
TITLES = [
    "The Man",
    "The Man II",
    "Dark City",
    "A Star",
    "Last Summer",
    "Love",
    "River: the End",
    "Blue",
    "Red",
    "The World",
]
HISTORIES = [np.array(h, np.int32) for h in ([3, 1], [0], [5, 6, 7, 8], [2, 9], [4])]
SIMILAR = ("prompt.task=similar_users", "demonstrations.count=2", "demonstrations.history=3")
SELECTED = (*SIMILAR, "demonstrations.selection.pool=3")
SMALL = ("data.subset.valid=4", "train.eval_steps=20")


def neighbour(history, chosen=0):
    return Neighbour("someone", np.array(history, np.int32), chosen, np.zeros(0, np.int64), 0.5)


POOLS = [
    [neighbour([2, 4]), neighbour([9]), neighbour([1, 2, 3, 4])],
    [neighbour([5, 6]), neighbour([7, 8])],
    [neighbour([0]), neighbour([3, 1]), neighbour([6, 5, 4]), neighbour([9, 8])],
    [neighbour([1])],
    [],
]


@pytest.fixture
def selecting(tokenizer):
    """A function from settings to a Selecting over TITLES that shows two users."""

    def make(**settings):
        selection = {"pool": 4} | settings
        wanted = Demonstrations.model_validate({"count": 2, "selection": selection})
        return Selecting(PromptEncoder(MOVIE, tokenizer, TITLES), wanted)

    return make


def engine(model, chooser):
    return Engine(model, chooser.encoder, Decode())


def rated_alone(model, encoder, history, other):
    """Mean rating of one user: a forward pass for each answer behind the whole question."""
    trunk, [branch] = one_by_one(encoder, history, [other.history])
    question = [*trunk.tolist(), *branch.tolist()]
    logs = []
    for rating in range(1, 11):
        answer = encoder.title_tokens(f'{{"similarity": {rating}}}').tolist()
        with torch.no_grad():
            logits = model(torch.tensor([[*question, *answer]])).logits[0].double()
        log = 0.0
        for place, token in enumerate(answer):
            log += float(logits[len(question) + place - 1].log_softmax(-1)[token])
        logs.append(log)
    total = sum(math.exp(log - max(logs)) for log in logs)
    return sum(r * math.exp(log - max(logs)) / total for r, log in enumerate(logs, start=1))


def test_a_rating_is_the_mean_of_ten_answers_each_read_alone(tiny_model, selecting):
    chooser = selecting()
    found = chooser.select(engine(tiny_model, chooser), HISTORIES, POOLS)
    apart = set()
    for history, pool, selected in zip(HISTORIES[:3], POOLS[:3], found[:3], strict=True):
        alone = [rated_alone(tiny_model, chooser.encoder, history, other) for other in pool]
        np.testing.assert_allclose(selected.ratings, alone, atol=1e-5)
        best = sorted(range(len(pool)), key=lambda at, alone=alone: -alone[at])
        assert selected.shown == tuple(best[:2])
        apart |= {round(rating, 3) for rating in alone}
    assert len(apart) > 3, "the ratings tell users apart"


@pytest.mark.parametrize("tokens", [1, 700, 10**6])
def test_other_users_and_batches_change_no_rating(tiny_llama, selecting, monkeypatch, tokens):
    chooser = selecting()
    monkeypatch.setattr(module, "TREE_TOKENS", tokens)
    together = chooser.select(engine(tiny_llama, chooser), HISTORIES, POOLS)
    for i in range(3):
        [alone] = chooser.select(
            engine(tiny_llama, chooser), HISTORIES[i : i + 1], POOLS[i : i + 1]
        )
        assert alone.shown == together[i].shown
        np.testing.assert_allclose(alone.ratings, together[i].ratings, atol=1e-5)
        turned = chooser.select(engine(tiny_llama, chooser), HISTORIES[i : i + 1], [POOLS[i][::-1]])
        np.testing.assert_allclose(turned[0].ratings[::-1], together[i].ratings, atol=1e-5)


def test_equal_ratings_stand_in_the_order_of_retrieval(tiny_llama, selecting, monkeypatch):
    ratings = [[3.0, 7.0, 7.0], [5.0, 5.0], [1.0, 9.5, 1.0, 9.5]]
    monkeypatch.setattr(Selecting, "_scored", lambda *_: [np.array(r) for r in ratings])
    chooser = selecting()
    found = chooser.select(engine(tiny_llama, chooser), HISTORIES, POOLS)
    assert [selected.shown for selected in found] == [(1, 2), (0, 1), (1, 3), (0,), ()]
    assert [list(selected.ratings) for selected in found] == [*ratings, [], []]


@pytest.mark.parametrize("reader", ["score", "generate"])
def test_nobody_is_asked_about_a_pool_of_one_or_none(selecting, reader):
    def untouched(*_, **__):
        raise AssertionError("there is nothing to choose")

    model = torch.nn.Linear(1, 1)
    model.forward = untouched
    chooser = selecting(reader=reader)
    found = chooser.select(engine(model, chooser), HISTORIES[:2], [POOLS[3], []])
    assert found == [Selected((0,), ()), Selected((), ())]
    assert chooser.select(engine(model, chooser), [], []) == []


@pytest.fixture
def written(monkeypatch, tokenizer):
    """Puts answers into the model's mouth, one list of texts for each question."""

    def put(answers):
        said = iter(answers)

        def search(prompts, *, beams, end, max_new_tokens):
            assert (beams, end) == (1, tokenizer.eos_token_id)
            texts = next(said)
            assert len(prompts) == len(texts)
            return [[Written(np.array(tokenizer(t)["input_ids"], np.int32), 0.0)] for t in texts]

        monkeypatch.setattr(module, "free_beam_search", search)

    return put


def test_written_ratings_rank_and_unreadable_ones_leave_the_order(tiny_llama, selecting, written):
    written(
        [
            ['{"similarity": 2}', 'Yes: {"similarity": 9.5}. Done', '{"similarity": 2}'],
            ['{"similarity": 3}', '{"similarity": eight}'],
            ['{"similarity": 3}', '{"similarity": 11}', '{"similarity": 4}', '{"similarity": 10}'],
        ]
    )
    chooser = selecting(reader="generate")
    found = chooser.select(engine(tiny_llama, chooser), HISTORIES, POOLS)
    assert found == [
        Selected((1, 0), (2.0, 9.5, 2.0)),
        Selected((0, 1), (), failed=True),
        Selected((0, 1), (), failed=True),
        Selected((0,), ()),
        Selected((), ()),
    ]


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ('{"similarity": 1}', 1.0),
        ('{"similarity": 10}', 10.0),
        ('{"similarity":7.25}', 7.25),
        ('It is {"why": "both dark", "similarity": 8} {"similarity": 2}', 8.0),
        ('\n{\n "similarity" : 4\n}\n', 4.0),
        ('[{"similarity": 6}]', 6.0),
        ('{"similarity": 0}', None),
        ('{"similarity": 10.5}', None),
        ('{"similarity": -3}', None),
        ('{"similarity": "7"}', None),
        ('{"similarity": true}', None),
        ('{"similarity": null}', None),
        ('{"similarity": NaN}', None),
        ('{"similarity": Infinity}', None),
        ('{"similarity": [7]}', None),
        ('{"likeness": 7}', None),
        ('{"similarity": 7', None),
        ("7", None),
        ("", None),
        ('{broken} {"similarity": 7}', None),
        ("{}", None),
    ],
)
def test_a_rating_is_read_from_the_first_object_or_not_at_all(text, rating):
    assert rating_in(text) == rating


def untimed(folder):
    return [
        {k: v for k, v in line.items() if k != "seconds"} for line in read_log(folder.train_log)
    ]


def selections(folder):
    """Step -> for each training prompt which of its pool are shown."""
    return {
        int(path.stem): [one["shown"] for one in json.loads(path.read_text("utf-8"))]
        for path in folder.selected.glob("*.json")
    }


def weights(folder):
    return (folder.adapter / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def read_in_training(monkeypatch):
    """Step -> number of a row -> its prompt, as the trainer read it in that step."""
    seen, real = {}, TreeTrainer.piece_of

    def watched(self, fetched):
        step = seen.setdefault(self.state.global_step, {})
        for number in np.asarray(fetched["row_numbers"]).tolist():
            step[number] = self.train_dataset.rows[number].segments[0].ids.tolist()
        return real(self, fetched)

    monkeypatch.setattr(TreeTrainer, "piece_of", watched)
    return seen


def test_the_live_model_selects_anew_and_the_rows_follow(recipe_of, read_in_training):
    recipe, folder = recipe_of(*SELECTED, *SMALL, "demonstrations.selection.refresh=3")
    steps = train.run(recipe, folder)["steps"]
    known = selections(folder)
    assert sorted(known) == [step for step in range(steps) if step % 3 == 0]
    assert sorted(read_in_training) == list(range(steps))

    encoder = encoder_of(recipe, Catalog.read(folder.items))
    windows = training_windows(recipe, Examples.read(folder.examples("train")))
    pools = Pools.read(folder.pools("train")).neighbours
    different = 0
    for step, rows in read_in_training.items():
        newest = known[step - step % 3]
        for number, prompt in rows.items():
            shown = tuple(pools[number][at].shown() for at in newest[number])
            assert len(shown) == min(2, len(pools[number]))
            expected = encoder.prompt(windows[number].history, Context(shown))
            assert prompt == expected.ids.tolist()
            retrieved = tuple(n.shown() for n in pools[number][:2])
            first = encoder.prompt(windows[number].history, Context(retrieved))
            different += prompt != first.ids.tolist()
    assert different, "the model shows others than retrieval does"

    lines = [line for line in untimed(folder) if "selection_changed" in line]
    assert [line["step"] for line in lines] == sorted(known)
    before = [list(range(min(2, len(pool)))) for pool in pools]
    for line in lines:
        now = known[line["step"]]
        changed = [old != new for old, new in zip(before, now, strict=True)]
        new = [
            len([at for at in n if at not in o]) / max(1, len(n))
            for o, n in zip(before, now, strict=True)
        ]
        assert line["selection_changed"] == pytest.approx(sum(changed) / len(changed))
        assert line["users_changed"] == pytest.approx(sum(new) / len(new))
        assert line["selection_failed"] == 0
        before = now
    assert any(line["selection_changed"] > 0 for line in lines[1:]), "learning changes the choice"


def test_without_refresh_the_untrained_model_chooses_once(recipe_of):
    recipe, folder = recipe_of(
        *SELECTED,
        *SMALL,
        "rows.count=8",
        "train.num_train_epochs=1",
        "demonstrations.selection.reader=generate",
    )
    train.run(recipe, folder)
    assert sorted(selections(folder)) == [0]
    [line] = [line for line in untimed(folder) if "selection_changed" in line]
    # A model this small writes no JSON, so whoever was asked about failed.
    pools = Pools.read(folder.pools("train")).neighbours
    assert line["selection_failed"] == sum(len(pool) > 1 for pool in pools) > 0
    assert line["selection_changed"] == 0


def test_without_selection_nothing_is_selected(recipe_of, read_in_training):
    recipe, folder = recipe_of(*SIMILAR, *SMALL, "train.num_train_epochs=1")
    train.run(recipe, folder)
    assert not folder.selected.exists()
    assert not any("selection_changed" in line for line in untimed(folder))
    encoder = encoder_of(recipe, Catalog.read(folder.items))
    windows = training_windows(recipe, Examples.read(folder.examples("train")))
    pools = Pools.read(folder.pools("train")).neighbours
    for rows in read_in_training.values():
        for number, prompt in rows.items():
            shown = tuple(n.shown() for n in pools[number][:2])
            expected = encoder.prompt(windows[number].history, Context(shown))
            assert prompt == expected.ids.tolist()


@pytest.mark.parametrize(
    "overrides", [(), ("data.candidates=4", "systems=[tuned]"), ("prompt.task=similar_users",)]
)
def test_without_demonstrations_the_rows_are_those_of_the_history_alone(
    recipe_of, overrides, monkeypatch
):
    class Stopped(Exception):
        pass

    made = []

    def stopped(model, arguments, rows, *_):
        made.extend(rows)
        raise Stopped

    monkeypatch.setattr(train, "TreeTrainer", stopped)
    recipe, folder = recipe_of(*overrides)
    with pytest.raises(Stopped):
        train.run(recipe, folder)
    plain, _ = recipe_of()
    encoder = encoder_of(plain, Catalog.read(folder.items))
    windows = training_windows(recipe, Examples.read(folder.examples("train")))
    assert len(made) == len(windows) > 20
    for row, window in zip(made, windows, strict=True):
        expected = single(encoder, window.history, window.target)
        for mine, theirs in zip(row.segments, expected.segments, strict=True):
            assert mine.ids.tolist() == theirs.ids.tolist()
            assert (mine.parent, mine.target) == (theirs.parent, theirs.target)


def test_interrupted_training_goes_on_with_the_users_it_had_to_the_same_bytes(
    recipe_of, monkeypatch
):
    """Between two refreshes, before one is done, before it is logged, and right after it."""
    settings = (*SELECTED, *SMALL, "demonstrations.selection.refresh=3")
    straight, folder_a = recipe_of("name=straight", *settings)
    train.run(straight, folder_a)

    cut, folder_b = recipe_of("name=cut", *settings)
    moments = [("loss", 5), ("select", 6), ("log", 6), ("loss", 6), ("loss", 7), ("loss", 10)]
    learn, select, write = TreeTrainer.compute_loss, Reselecting._selected, TreeTrainer._write_log
    asked = []

    def due(kind, step):
        if moments and moments[0] == (kind, step):
            moments.pop(0)
            raise KeyboardInterrupt

    def learning(self, *arguments, **named):
        due("loss", self.state.global_step)
        return learn(self, *arguments, **named)

    def selecting(self, model):
        asked.append(max([x["step"] for x in read_log(folder_b.train_log)], default=0))
        due("select", asked[-1])
        return select(self, model)

    def writing(self, line):
        if "selection_changed" in line:
            due("log", line["step"])
        write(self, line)

    monkeypatch.setattr(TreeTrainer, "compute_loss", learning)
    monkeypatch.setattr(Reselecting, "_selected", selecting)
    monkeypatch.setattr(TreeTrainer, "_write_log", writing)
    while moments:
        left = len(moments)
        with pytest.raises(KeyboardInterrupt):
            train.run(cut, folder_b)
        assert len(moments) == left - 1
    train.run(cut, folder_b)
    # Training goes on from steps 4, 6, 6, 6, 6 and 10, and what was chosen by then is not asked
    # again.
    assert asked == [0, 3, 6, 6, 9, *range(12, max(selections(folder_a)) + 1, 3)]
    assert untimed(folder_b) == untimed(folder_a)
    assert selections(folder_b) == selections(folder_a)
    assert weights(folder_b) == weights(folder_a)


def rated_in_one(model, encoder, history, pool):
    """Mean ratings of a pool that is asked about in one prompt, each of ten answers read alone."""
    question = all_in_one(encoder, history, [n.history for n in pool]).tolist()
    found = []
    for number in range(1, len(pool) + 1):
        logs = []
        for rating in range(1, 11):
            answer = encoder.title_tokens(f'{{"user {number}": {rating}}}').tolist()
            with torch.no_grad():
                logits = model(torch.tensor([[*question, *answer]])).logits[0].double()
            of_answer = logits[len(question) - 1 : -1].log_softmax(-1)
            logs.append(float(of_answer[range(len(answer)), answer].sum()))
        p = np.exp(np.array(logs) - max(logs))
        found.append(float((p * range(1, 11)).sum() / p.sum()))
    return found


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_all_are_asked_about_in_one_prompt(tiny_llama, selecting, tokenizer, form):
    chooser = selecting(ask="listwise")
    chooser.encoder = PromptEncoder(MOVIE, tokenizer, TITLES, form=form)
    found = chooser.select(engine(tiny_llama, chooser), HISTORIES, POOLS)
    for history, pool, selected in zip(HISTORIES[:3], POOLS[:3], found[:3], strict=True):
        alone = rated_in_one(tiny_llama, chooser.encoder, history, pool)
        np.testing.assert_allclose(selected.ratings, alone, atol=1e-5)
        assert selected.shown == tuple(sorted(range(len(pool)), key=lambda at: -alone[at])[:2])
    text = tokenizer.decode(
        all_in_one(chooser.encoder, HISTORIES[0], [n.history for n in POOLS[0]]).tolist()
    )
    lines = text.split("\n")
    for number, other in enumerate(POOLS[0], start=1):
        at = lines.index(f"User {number} watched these movies, oldest first:")
        titles = [TITLES[p] for p in other.history]
        assert lines[at + 1 : at + 1 + len(titles)] == titles
    assert text.startswith("<|im_start|>user") == (form == "chat")
    assert text.endswith("assistant\n" if form == "chat" else "JSON:\n")


def test_a_list_of_ratings_is_read_from_one_answer(tiny_llama, selecting, monkeypatch):
    said = ['{"user 1": 3, "user 2": 9, "user 3": 9}', '{"user 1": 4}', "no JSON"]

    def written(self, prompts, beams, tokens, together):
        assert [len(batch) for batch in together] == [1, 1, 1]
        ids = [self.encoder.title_tokens(text) for text in said]
        return [[Written(one, 0.0)] for one in ids]

    monkeypatch.setattr(Engine, "write", written)
    chooser = selecting(ask="listwise", reader="generate")
    found = chooser.select(engine(tiny_llama, chooser), HISTORIES, POOLS)
    assert (found[0].shown, found[0].ratings) == ((1, 2), (3.0, 9.0, 9.0))
    assert [one.failed for one in found] == [False, True, True, False, False]
    assert found[1].shown == found[2].shown == (0, 1)  # as retrieved


def test_a_list_that_is_too_long_shows_fewer_titles_of_everybody(tokenizer):
    whole = PromptEncoder(MOVIE, tokenizer, TITLES)
    others = [n.history for n in POOLS[2]]
    question = all_in_one(whole, HISTORIES[2], others)
    longest = max(map(len, whole.completions))
    tight = PromptEncoder(MOVIE, tokenizer, TITLES, max_tokens=len(question) + longest - 1)
    cut = all_in_one(tight, HISTORIES[2], others)
    assert len(cut) < len(question)
    titles = [h[-3:] for h in (HISTORIES[2], *others)]
    assert cut.tolist() == all_in_one(whole, titles[0], titles[1:]).tolist()
    with pytest.raises(RecipeError, match="raise it"):
        all_in_one(PromptEncoder(MOVIE, tokenizer, TITLES, max_tokens=80), HISTORIES[2], others)


@pytest.mark.parametrize(
    ("ratings", "order"),
    [
        ([1.0, 3.0, 2.0], [1, 2, 0]),
        ([2.5, 2.5000004, 2.4999997], [0, 1, 2]),
        ([2.0000049, 2.0000051, 3.0], [2, 0, 1]),  # on both sides of a rounded digit
        ([7.0], [0]),
    ],
)
def test_users_that_rounding_alone_tells_apart_stand_as_they_came(ratings, order):
    from llmrec.inference import ratings as module

    assert module._best_first(np.array(ratings)).tolist() == order
