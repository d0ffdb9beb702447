"""Every row of the table answers raw histories with the very lists that it has in the table."""

import json
import math
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from llmrec import Recommender
from llmrec.baselines import tuning
from llmrec.cli import app
from llmrec.data.candidates import read_candidates
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.errors import DataError, LlmrecError, RecipeError
from llmrec.evaluation.predictions import Predictions
from llmrec.inference.grounded import TextGrounding
from llmrec.recipe.loading import load
from llmrec.recipe.systems import System, parsed
from llmrec.runs.folder import RunFolder
from llmrec.stages import pipeline, recommend
from llmrec.systems import guidance
from llmrec.systems.recommender import served

RECIPE = """name: small
output_dir: {place}
data: {{source: {log}}}
model: {{base: {base}, lora: {{r: 4}}}}
prompt: {{max_history: 4, max_tokens: 300}}
decode: {{beams: 6, top_k: 6, batch_size: 5, guidance: {{grid: [0.0, 0.3, 0.7]}},
  grounding: {{beams: 2, max_new_tokens: 4, fusion: markov}}}}
evaluate: {{k: [1, 5], samples: 100}}
train: {{learning_rate: 0.01, per_device_train_batch_size: 4, max_steps: 4, warmup_steps: 0,
  logging_steps: 1, save_strategy: steps, save_steps: 2, eval_strategy: steps, eval_steps: 4,
  dataloader_pin_memory: false}}
"""
# The systems of a run of each kind, and what its recipe says besides.
RUNS = {
    "catalog": (
        [
            *("popularity", "recent_popularity", "markov", "item_knn", "tgh", "sasrec"),
            *("untuned", "tuned", "untuned_guided", "tuned_guided"),
            *("untuned_grounded", "tuned_grounded"),
        ],
        ["baselines.trials=1"],
    ),
    "candidates": (
        ["popularity", "tgh", "untuned", "tuned", "untuned_free", "tuned_free"],
        ["data.candidates=4", "prompt.task=similar_users"],
    ),
    "soft": (["tuned", "tuned_sft"], ["soft.distill.beams=2", "soft.probe=4"]),
    "networks": (
        ["popularity", "network", "network_ce", "network_cpft"],
        [
            *("network.hidden=8", "network.layers=1", "network.heads=1", "network.max_length=6"),
            *("network.max_epochs=1", "conformal.max_epochs=1"),
        ],
    ),
}
EVERY = [(kind, name) for kind, (names, _) in RUNS.items() for name in names]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_base, small_log):
    """A function from a kind of run to its folder, trained and recommended once."""
    made = {}

    def run(kind):
        if kind not in made:
            place = tmp_path_factory.mktemp(kind)
            text = RECIPE.format(place=place, log=small_log, base=tiny_base)
            (place / "recipe.yaml").write_text(text, "utf-8")
            names, overrides = RUNS[kind]
            recipe = load(place / "recipe.yaml", [f"systems=[{','.join(names)}]", *overrides])
            made[kind] = RunFolder.of(recipe)
            pipeline.train(recipe, made[kind])
            recommend.run(recipe, made[kind])
            made[kind].keep(recipe)
        return made[kind]

    return run


@pytest.fixture
def copied(runs, tmp_path):
    """A copy of the run that ranks the catalog, to spoil."""
    return RunFolder(shutil.copytree(runs("catalog").root, tmp_path / "copy"))


def requests_of(folder):
    """Users, histories and candidates of the test split, as item ids."""
    test, ids = Examples.read(folder.examples("test")), Catalog.read(folder.items).item_ids
    histories = [[ids[p] for p in history] for history in test.histories()]
    candidates = None
    if folder.candidates("test").exists():
        candidates = [[ids[p] for p in row] for row in read_candidates(folder.candidates("test"))]
    return test.user_ids.tolist(), histories, candidates


def rows_of(folder, system):
    """What the table has of a system: user, item id and score, row by row."""
    kept, ids = Predictions.read(folder.predictions(system)), Catalog.read(folder.items).item_ids
    users = [u for u, ranking in zip(kept.user_ids, kept.rankings(), strict=True) for _ in ranking]
    return list(zip(users, [ids[p] for p in kept.items], kept.scores.tolist(), strict=True))


def served_rows(table):
    return list(zip(*(table[c].to_pylist() for c in ("user", "item_id", "score")), strict=True))


@pytest.mark.parametrize(("kind", "system"), EVERY)
def test_a_row_of_the_table_is_served_as_it_stands_there(runs, kind, system, monkeypatch):
    folder = runs(kind)
    users, histories, candidates = requests_of(folder)
    # What was chosen for the table is not chosen again.
    monkeypatch.setattr(tuning, "choose", None)
    monkeypatch.setattr(guidance, "chosen_guidance", None)
    monkeypatch.setattr("llmrec.systems.resources.choose", None)
    recommender = Recommender.from_pretrained(folder.root, system)
    assert recommender.system == System.parse(system)
    table = recommender.recommend(
        histories, load(folder.recipe, []).decode.top_k, users, candidates=candidates
    )
    expected = rows_of(folder, system)
    assert served_rows(table) == expected
    assert expected or System.parse(system).way == "free"  # which is tested further below


@pytest.mark.parametrize("system", ["untuned_free", "tuned_free"])
def test_the_candidate_that_is_named_is_served(runs, tmp_path, system, monkeypatch):
    folder = RunFolder(shutil.copytree(runs("candidates").root, tmp_path / "copy"))

    def first_shown(self, engine, prompts):
        lines = [self.encoder.tokenizer.decode(ids.tolist()).split("\n") for ids in prompts]
        begin = [1 + next(i for i, x in enumerate(one) if "one of these" in x) for one in lines]
        return [one[at] if len(one[at]) % 2 else "no" for one, at in zip(lines, begin, strict=True)]

    monkeypatch.setattr(TextGrounding, "written", first_shown)
    folder.predictions(system).unlink()
    recommend.run(load(folder.recipe, []), folder)
    users, histories, candidates = requests_of(folder)
    recommender = Recommender.from_pretrained(folder.root, system)
    table = recommender.recommend(histories, 4, users, candidates=candidates)
    assert served_rows(table) == rows_of(folder, system)
    assert 0 < table.num_rows < len(users)


@pytest.mark.parametrize("system", [name for kind, name in EVERY if kind == "catalog"])
def test_what_is_excluded_or_out_of_stock_is_never_given(runs, system):
    recommender = Recommender.from_pretrained(runs("catalog").root, system)
    histories, ids = [["i1", "i2"], []], set(recommender.catalog.item_ids)
    before = recommender.recommend(histories, 12)
    shut = {"i5", "i11"}
    stock = [{"id": one} for one in sorted(ids - shut)]
    for settings in ({"exclude": ["i5", {"id": "i11"}]}, {"candidates": stock}):
        table = recommender.recommend(histories, 12, **settings)
        rows = table.to_pylist()
        assert {r["item_id"] for r in rows if r["user"] == "0"} == ids - shut - {"i1", "i2"}
        assert {r["item_id"] for r in rows if r["user"] == "1"} == ids - shut
        if recommender.system.gives_probabilities:
            total = sum(math.exp(r["score"]) for r in rows)
            assert total == pytest.approx(2, abs=1e-4)
        if recommender.system.kind == "baseline":  # whose items know nothing of each other
            kept = [r["item_id"] for r in before.to_pylist() if r["item_id"] not in shut]
            assert [r["item_id"] for r in rows] == kept
    with pytest.raises(DataError, match="nothing is left"):
        recommender.recommend(histories, exclude=np.array(sorted(ids)))


def test_networks_give_nothing_that_is_excluded(runs):
    network = Recommender.from_pretrained(runs("networks").root)
    rows = network.recommend([["i1"]], 12, candidates=["i1", "i3", "i4"], exclude=["i4"])
    assert rows["item_id"].to_pylist() == ["i3"]
    assert rows["score"].to_pylist() == [pytest.approx(0, abs=1e-6)]


def test_items_in_stock_are_the_candidates_of_every_history_where_prompts_show_them(runs):
    among = Recommender.from_pretrained(runs("candidates").root, "tuned")
    each = among.recommend([["i1"], ["i2"]], candidates=[["i3", "i4", "i5"]] * 2)
    assert among.recommend([["i1"], ["i2"]], candidates=["i3", "i4", "i5"]).equals(each)
    with pytest.raises(LlmrecError, match="take it out of every history's candidates"):
        among.recommend([["i1"]], candidates=["i3", "i4"], exclude=["i4"])


def test_another_row_of_the_table_shares_what_is_loaded(runs):
    folder = runs("catalog")
    tuned = Recommender.from_pretrained(folder.root, "tuned")
    for name in ("untuned", "tuned_guided", "popularity"):
        other = tuned.with_system(name)
        assert other._resources is tuned._resources
        alone = Recommender.from_pretrained(folder.root, name)
        assert other.recommend([["i1"]], 5).equals(alone.recommend([["i1"]], 5))
    assert tuned.system.name == "tuned"
    with pytest.raises(RecipeError, match=r"did you mean tuned\?"):
        tuned.with_system("tuned_")


def test_every_kind_of_system_is_among_those_served():
    kinds = {(s.kind, s.way, s.has_adapter) for s in parsed([name for _, name in EVERY])}
    assert len(kinds) == 10


def test_the_command_line_serves_a_row_by_its_name(runs, tmp_path):
    folder = runs("catalog")
    users, histories, _ = requests_of(folder)
    lines = [json.dumps({"user": u, "history": h}) for u, h in zip(users, histories, strict=True)]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines), "utf-8")
    command = ["recommend", str(folder.root), "--histories", str(tmp_path / "asked.jsonl")]
    done = CliRunner().invoke(app, [*command, "--system", "markov", "--top-k", "6"])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["user"], r["item_id"], pytest.approx(r["score"])) for r in rows] == rows_of(
        folder, "markov"
    )


def test_candidates_of_json_lines_are_chosen_from(runs, tmp_path):
    folder = runs("candidates")
    lines = [json.dumps({"history": ["i1", "i2"], "candidates": ["i8", "Love", "i5"]})]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines), "utf-8")
    command = ["recommend", str(folder.root), "--histories", str(tmp_path / "asked.jsonl")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(r["item_id"] for r in rows) == ["i5", "i7", "i8"]


def test_overrides_hold_for_raw_histories(runs, tmp_path):
    folder = runs("catalog")
    (tmp_path / "asked.jsonl").write_text('["i1", "i2", "i3"]\n', "utf-8")
    asked = ["--histories", str(tmp_path / "asked.jsonl"), "--top-k", "12"]
    for system in ("markov", "tuned", "untuned_grounded"):
        found = {}
        for value in ("true", "false"):
            command = ["recommend", str(folder.root), f"decode.filter_seen={value}", *asked]
            done = CliRunner().invoke(app, [*command, "--system", system])
            assert done.exit_code == 0, done.output
            found[value] = [json.loads(line)["item_id"] for line in done.stdout.splitlines()]
        assert len(found["true"]) == 9
        assert sorted({*found["true"], "i1", "i2", "i3"}) == sorted(found["false"])
    network = Recommender.from_pretrained(runs("networks").root, None, ["decode.filter_seen=false"])
    assert network.recommend([["i1", "i2", "i3"]], 12).num_rows == 12
    python = Recommender.from_pretrained(folder.root, "markov", ["decode.filter_seen=false"])
    assert python.recommend([["i1", "i2", "i3"]], 12).num_rows == 12


def test_hyperparameters_are_chosen_anew_where_those_of_the_table_were_chosen_otherwise(copied):
    recorded = Predictions.read(copied.predictions("markov")).info.hyperparameters["chosen"]
    seen = Recommender.from_pretrained(copied.root, "markov", ["decode.filter_seen=false"])
    assert len(seen._resources._fitted) == 1
    longer = Recommender.from_pretrained(copied.root, "markov", ["decode.top_k=3"])
    assert not longer._resources._fitted
    copied.predictions("tuned_guided").unlink()
    fresh = Recommender.from_pretrained(copied.root, "tuned_guided")
    users, histories, _ = requests_of(copied)
    kept = rows_of(RunFolder(copied.root), "untuned_guided")
    assert fresh.recommend(histories, 6, users).num_rows == len(kept)
    assert recorded == Predictions.read(copied.predictions("markov")).info.hyperparameters["chosen"]


def test_what_a_run_has_not_is_refused_with_what_it_has(runs, copied):
    names = "popularity, .*, untuned, tuned, untuned_guided, tuned_guided, .*tuned_grounded"
    for system, why in [
        ("best", "there is no system 'best'"),
        ("network", "is of a network, and the recipe has no network"),
        ("tuned_sft", "is the first step of SOFT, and the recipe has no soft"),
        ("tuned_free", "answers by one of some candidates, and the recipe has no data.candidates"),
    ]:
        with pytest.raises(LlmrecError, match=f"{why}; there are {names}$"):
            Recommender.from_pretrained(copied.root, system)
    with pytest.raises(RecipeError, match=r"'tuned_guide'; did you mean tuned_guided\?"):
        Recommender.from_pretrained(copied.root, "tuned_guide")
    shutil.rmtree(copied.adapter)
    with pytest.raises(
        LlmrecError, match=r"run `llmrec train` first; there are .*untuned_grounded$"
    ):
        Recommender.from_pretrained(copied.root, "tuned_guided")
    assert Recommender.from_pretrained(copied.root).system == System("untuned")
    assert served(load(runs("networks").recipe, []), runs("networks"))[-3:] == [
        "network",
        "network_ce",
        "network_cpft",
    ]
    with pytest.raises(LlmrecError, match=r"the recipe has data\.candidates"):
        Recommender.from_pretrained(runs("candidates").root, "tuned_guided")


def test_candidates_are_as_many_for_every_history_and_known(runs):
    among = Recommender.from_pretrained(runs("candidates").root, "popularity")
    with pytest.raises(DataError, match="equally many"):
        among.recommend([["i1"], ["i2"]], candidates=[["i3", "i4"], ["i5"]])
    with pytest.raises(DataError, match="equally many"):
        among.recommend([["i1"], ["i2"]], candidates=[["i3"]])
    with pytest.raises(DataError, match="named twice"):
        among.recommend([["i1"]], candidates=[["i3", "i3"]])
    with pytest.raises(DataError, match="neither an item id nor a title"):
        among.recommend([["i1"]], candidates=[["i3", "Unheard of"]])
    guided = Recommender.from_pretrained(runs("catalog").root, "tuned_guided")
    with pytest.raises(LlmrecError, match="from the whole catalog"):
        guided.recommend([["i1"]], candidates=[["i3", "i4"]])
    free = Recommender.from_pretrained(runs("candidates").root, "untuned_free")
    with pytest.raises(LlmrecError, match="give every history its candidates"):
        free.recommend([["i1"]])


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("prompt.max_history=2", r"prompt.max_history \(4 -> 2\)"),
        ("prompt.domain=product", "prompt template"),
        ("prompt.form=chat", r"prompt.form"),
        ("prompt.task=similar_users", "prompt template"),
        ("model.base={other}", "model configuration"),
    ],
)
def test_an_adapter_is_not_served_other_prompts_than_it_was_trained_with(
    copied, tiny_base, tmp_path, override, key
):
    other = shutil.copytree(tiny_base, tmp_path / "other")
    with (other / "config.json").open("a", encoding="utf-8") as stream:
        stream.write("\n")
    override = override.format(other=other)
    with pytest.raises(LlmrecError, match=f"was trained with other prompts.*{key}"):
        Recommender.from_pretrained(copied.root, "tuned", [override])
    copied.keep(load(copied.recipe, [override]))
    for system in ("tuned", "tuned_guided", "tuned_grounded", None):
        with pytest.raises(LlmrecError, match=f"was trained with other prompts.*{key}"):
            Recommender.from_pretrained(copied.root, system)
    Recommender.from_pretrained(copied.root, "untuned").recommend([["i1"]])
    Recommender.from_pretrained(copied.root, "popularity").recommend([["i1"]])


def test_a_damaged_adapter_is_not_served(copied):
    [weights] = copied.adapter.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(LlmrecError, match=r"adapter is damaged \(.*run `llmrec train`"):
        Recommender.from_pretrained(copied.root, "tuned")


@pytest.mark.parametrize("name", ["items", "interactions"])
def test_damaged_data_are_not_served(copied, name):
    path = copied.data / f"{name}.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.parquet is damaged.*run `llmrec prepare`"):
        Recommender.from_pretrained(copied.root, "markov")


def test_a_text_where_a_list_is_wanted_is_not_taken_letter_by_letter(runs):
    recommender = Recommender.from_pretrained(runs("catalog").root, "popularity")
    with pytest.raises(DataError, match=r"'i1' is no list of histories; write \[\['i1'\]\]"):
        recommender.recommend("i1")
    for entry in ("i1", {"id": "i1"}):
        with pytest.raises(DataError, match=r"user 0: .* is no list of item ids or titles"):
            recommender.recommend([entry])


def test_settings_that_change_no_prompt_are_served(copied):
    changed = Recommender.from_pretrained(
        copied.root, "tuned", ["decode.beams=8", "model.dtype=bfloat16", "seed=3"]
    )
    assert changed.recommend([["i1"]], 3).num_rows == 3


def test_the_column_of_scores_says_what_they_are(runs):
    for system, what in [
        ("markov", b"log-probability"),
        ("tgh", b"weight"),
        ("untuned_grounded", b"minus the distance of the title's state from that of the text"),
    ]:
        table = Recommender.from_pretrained(runs("catalog").root, system).recommend([["i1"]])
        assert table.schema.field("score").metadata == {b"is": what}


def test_the_flags_are_for_histories(runs):
    for flag in (["--system", "network"], ["--top-k", "3"]):
        refused = CliRunner().invoke(app, ["recommend", str(runs("networks").root), *flag])
        assert isinstance(refused.exception, RecipeError)
