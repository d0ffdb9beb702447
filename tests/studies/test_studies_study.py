"""A study on a tiny model and log: cells, gates, what is shared, resumption, budget, the page."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmrec.errors import RecipeError
from llmrec.recipe.loading import dump
from llmrec.stages import pipeline, prepare
from llmrec.studies import running, study
from llmrec.studies.cells import Cell, Line, planned
from llmrec.studies.sharing import Shared

TUNED = """
seeds: [0, 1]
start: [sft]
metrics: [NLL, HR@5]
set: {evaluate: {k: [5]}, systems: [tuned], train.num_train_epochs: 1}
arms:
  sft: {title: SFT, set: {systems: [popularity, untuned, tuned]}}
  longer:
    set: {train: {num_train_epochs: 2}}
    sweep: {train.learning_rate: [0.001, 0.02]}
    against: [sft]
compare: [["sft:tuned", "sft:untuned"]]
"""
# Two baselines: seconds for all cells.
BASELINES = """
seeds: [0, 1]
system: markov
metrics: [NLL]
set: {evaluate: {k: [5]}}
arms:
  one: {set: {systems: [popularity, markov]}, against: ["one:popularity"]}
  two: {set: {systems: [markov], data.ties: item_id}, against: [one]}
"""


def file_of(folder, recipe, text, name="small_study"):
    (folder / "base.yaml").write_text(dump(recipe), "utf-8")
    path = folder / f"{name}.yaml"
    head = f"name: {name}\nrecipe: base.yaml\noutput_dir: {folder / 'runs'}\n"
    path.write_text(head + text, "utf-8")
    return path


@pytest.fixture
def study_of(tmp_path, recipe_of):
    """A function from the keys of a study to its file; its recipe is the small one."""
    return lambda text, *overrides: file_of(tmp_path, recipe_of(*overrides)[0], text)


@pytest.fixture
def ran(monkeypatch):
    """The cells whose stages run, in order."""
    real, names = pipeline.run, []

    def counted(recipe, folder):
        names.append(recipe.name)
        return real(recipe, folder)

    monkeypatch.setattr(pipeline, "run", counted)
    return names


def test_a_study_of_a_model_tests_gates_and_draws(study_of, tmp_path, ran):
    path = study_of(TUNED)
    result = study.run(path)
    lines = ("sft", "longer-learning_rate-0.001", "longer-learning_rate-0.02")
    assert ran == [f"{line}-s{seed}" for seed in (0, 1) for line in lines] == result["standing"]
    root = tmp_path / "runs/small_study"
    found = result["groups"][0]
    assert (found["n"], found["users"]) == (48, 24)
    nll = {
        system: [
            pq.read_table(
                root / f"sft-s{seed}/per_user.parquet", filters=[("system", "==", system)]
            )["NLL"].to_numpy()
            for seed in (0, 1)
        ]
        for system in ("tuned", "untuned", "popularity")
    }
    assert found["means"]["sft:tuned"]["NLL"]["mean"] == pytest.approx(np.mean(nll["tuned"]))
    gap = np.concatenate(nll["tuned"]) - np.concatenate(nll["untuned"])
    test = next(t for t in found["tests"] if t["reference"] == "sft:untuned")
    assert test["difference"] == pytest.approx(gap.mean())
    assert test["low"] < gap.mean() < test["high"]
    assert test["seeds_alike"] == sum(
        np.sign(gap[part].mean()) == np.sign(gap.mean()) for part in (slice(24), slice(24, 48))
    )
    # One family for each metric: three pairs, and Holm keeps the order of the plain p-values.
    assert [t["metric"] for t in found["tests"]] == ["NLL"] * 3 + ["HR@5"] * 3
    family = found["tests"][:3]
    assert all(t["p_holm"] >= t["p_value"] for t in family)
    gates = result["gates"]["sft:tuned"]
    over = np.mean(nll["tuned"]) - np.mean(nll["popularity"])
    assert gates["over_popularity"]["mean"] == pytest.approx(over)
    assert gates["sensitivity"]["n"] == 48
    assert bool(gates["failed"]) == result["void"]
    page = (root / "study.md").read_text("utf-8")
    html = (root / "study.html").read_text("utf-8")
    for drawing in ("study-training.svg", "study-all-learning_rate-NLL.svg"):
        assert drawing in page
        assert (root / drawing).read_text("utf-8").startswith("<svg ")
    assert html.count("<svg ") == 3
    assert "longer, learning_rate 0.02" in html


def test_a_start_that_fails_a_gate_makes_the_study_void(study_of, tmp_path):
    text = TUNED.replace("start: [sft]", 'start: ["sft:untuned"]').replace("[0, 1]", "[0]")
    result = study.run(study_of(text), only=["sft"])
    assert result["void"]
    assert "SFT, untuned: its NLL stands +" in result["verdict"]
    page = (tmp_path / "runs/small_study/study.md").read_text("utf-8")
    assert page.splitlines()[2].startswith("**Void.** What the methods start from")
    assert "1 of 3 cells stand" in page


def test_a_killed_study_goes_on_and_a_lost_folder_is_made_again(study_of, tmp_path, monkeypatch):
    path, root = study_of(BASELINES), tmp_path / "runs/small_study"
    real, names = pipeline.run, []

    def killed(recipe, folder):
        names.append(recipe.name)
        if len(names) == 3:
            raise KeyboardInterrupt
        return real(recipe, folder)

    monkeypatch.setattr(pipeline, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        study.run(path)
    result = study.run(path)
    assert names == ["one-s0", "two-s0", "one-s1", "one-s1", "two-s1"]
    assert len(result["standing"]) == 4
    before = (root / "study.md").read_bytes()
    shutil.rmtree(root / "two-s0")
    result = study.run(path)
    assert names[5:] == ["two-s0"]
    assert result["cells"]["two-s0"]["made"] == 2
    page = (root / "study.md").read_text("utf-8")
    assert "Made more than once, as their run folders were lost: two-s0." in page
    tables = [text.split("## Hours")[0].split("##", 1)[1] for text in (before.decode(), page)]
    assert tables[0] == tables[1]
    study.run(path)
    assert len(names) == 6


def test_another_recipe_is_another_cell(study_of, ran):
    path = study_of(BASELINES)
    study.run(path, only=["one-s0"])
    study.run(path, ["decode.top_k=5"], only=["one-s0"])
    assert ran == ["one-s0"] * 2


def test_the_budget_ends_a_study_between_cells(study_of, ran, caplog):
    path = study_of(BASELINES)
    result = study.run(path, ["study.budget=1e-6"])
    assert ran == ["one-s0"] == result["standing"]
    assert "raise it with study.budget=HOURS" in caplog.text
    assert "of a budget of 1e-06" in (planned(path).root / "study.md").read_text("utf-8")


def test_what_fails_is_told_and_the_others_go_on(study_of, ran, tmp_path):
    text = BASELINES.replace("two: {set: {", f"two: {{set: {{data.source: {tmp_path}/none.csv, ")
    result = study.run(study_of(text.replace("[0, 1]", "[0]")))
    assert result["standing"] == ["one-s0"]
    assert result["failed"] == ["two-s0"]
    assert "Failed: two-s0: " in (tmp_path / "runs/small_study/study.md").read_text("utf-8")


def test_soft_arms_share_data_adapter_and_answers(study_of, tmp_path, caplog):
    text = """
start: []
metrics: [NLL]
set: {systems: [tuned], objective.name: msl, train.num_train_epochs: 1}
arms:
  sft: {}
  soft:
    set: {soft: {probe: 4, sft_adapter: "run:sft/adapter"}}
    sweep: {soft.alpha: [1, 100]}
    against: [sft]
"""
    caplog.set_level("INFO", "llmrec")
    study.run(study_of(text))
    root = tmp_path / "runs/small_study"
    told = [r.getMessage() for r in caplog.records]
    assert sum(m.startswith("prepare: reading") for m in told) == 1
    assert sum("answers in" in m for m in told) == 1
    one, two = (root / f"soft-alpha-{a}-s0" for a in (1, 100))
    answers = [(own / "distilled/answers.parquet").read_bytes() for own in (one, two)]
    assert answers[0] == answers[1]
    assert not (one / "sft").exists()


def test_dry_run_lists_the_cells_and_runs_nothing(study_of, ran):
    path = study_of(TUNED)
    told = study.described(planned(path))
    assert [cell["cell"] for cell in told["cells"]][:2] == [
        "sft-s0",
        "longer-learning_rate-0.001-s0",
    ]
    assert not ran


def test_every_mistake_is_told_at_once_with_its_line(study_of, tmp_path):
    path = study_of("seedz: [1]\nmetrics: NLL\narms:\n  a: {titel: A}\nbudget: -1\n")
    with pytest.raises(RecipeError) as told:
        study.run(path)
    assert str(told.value).splitlines() == [
        f"{path}: 4 errors",
        f"  {path}:4: unknown key seedz; did you mean seeds?",
        f'  {path}:5: metrics is "NLL"; allowed: a list, each text',
        f"  {path}:7: unknown key arms.a.titel; did you mean title?",
        f"  {path}:8: budget is -1; allowed: a number, above 0, at most 1000000000 or null",
    ]
    path = study_of(
        """start: [b]
metrics: [NLL, HR@7]
set: {decode.beans: 3}
arms:
  a:
    set: {train: {learning_rate: fast}}
    against: [c]
  b: {set: {model.adapter: "run:nobody/adapter", decode.top_k: 4}}
"""
    )
    with pytest.raises(RecipeError) as told:
        study.run(path, ["decode.top_k=3"])
    lines = str(told.value).splitlines()
    assert lines[0] == f"{path}: 5 errors"
    for line, said in (
        (6, "unknown key decode.beans; did you mean decode.beams?"),
        (9, 'train.learning_rate is "fast"'),
        (10, "c: no arm of that name; there are a, b"),
        (11, "run:nobody/adapter: no arm of that name"),
    ):
        assert any(text.strip().startswith(f"{path}:{line}: {said}") for text in lines), said
    assert any("the arms or seeds of the study differ in it" in text for text in lines)
    assert not (tmp_path / "runs").exists()


def test_what_is_no_study_is_told_alone(study_of):
    with pytest.raises(RecipeError, match=r"no such file, and no shipped study .* soft"):
        study.run("nowhere")
    path = study_of("arms: [\n")
    with pytest.raises(RecipeError, match=r"1 error\n.*: not YAML"):
        study.run(path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("system: tuned", "has no system tuned"),
        ("metrics: [HR@7]", "HR@7 needs evaluate.k to hold 7"),
        ("metrics: [recall]", "none of NLL, HR@k"),
        ("compare: [[one, one]]", "compared with itself"),
        ("start: [two]", "popularity, which is not among the systems"),
        ("start: [three]", "no arm of that name"),
    ],
)
def test_what_cannot_be_compared_is_refused(study_of, changed, said):
    key = changed.partition(":")[0]
    kept = [line for line in BASELINES.splitlines() if not line.startswith(f"{key}:")]
    with pytest.raises(RecipeError, match=said):
        study.run(study_of("\n".join([changed, *kept])))


def test_a_language_model_needs_a_start(study_of):
    with pytest.raises(RecipeError, match="start is missing"):
        study.run(study_of(TUNED.replace("start: [sft]\n", "")))


def test_arms_that_need_each_other_are_refused(study_of):
    text = "start: []\nset: {systems: [tuned]}\narms:\n"
    text += "".join(
        f"  {a}: {{set: {{model.adapter: 'run:{b}/adapter'}}}}\n" for a, b in ("xy", "yx")
    )
    with pytest.raises(RecipeError, match="x, y need each other"):
        study.run(study_of(text))


def test_the_verb_prints_tables_or_json_and_says_what_failed(study_of, capsys):
    from typer.testing import CliRunner

    from llmrec.cli import app

    path = study_of(BASELINES)
    done = CliRunner().invoke(app, ["study", str(path), "--only", "s0", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["standing"] == ["one-s0", "two-s0"]
    done = CliRunner().invoke(app, ["study", str(path), "--only", "s0"])
    assert "Paired differences" in done.stdout
    assert "VOID" not in done.stdout


def test_under_a_launcher_the_main_process_decides_and_writes(study_of, tmp_path):
    path = study_of(BASELINES.replace("[0, 1]", "[0]"))
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29761"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "llmrec", "-q", "study", str(path), "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["standing"] == ["one-s0", "two-s0"]
    assert made(tmp_path) == {"one-s0": 1, "two-s0": 1}


def made(folder):
    """How often each cell was made, by its record."""
    records = sorted((folder / "runs/small_study/cells").glob("*.json"))
    return {path.stem: json.loads(path.read_text("utf-8"))["made"] for path in records}


def test_what_another_process_is_making_for_a_cell_is_waited_for(study_of, monkeypatch):
    plan = planned(study_of(BASELINES))
    one, two = [cell for cell in plan.cells if cell.seed == 0]  # other data, by their ties
    same = Cell(Line("again", "again", "again", "markov"), 0, one.recipe, two.folder)
    plan = replace(plan, cells=(one, same))
    record, shared, held = running.Record(plan), Shared.of(plan.cells), []
    monkeypatch.setattr(running, "holder_of", lambda root: root in held)

    def decided(cell):
        said = running._decided(plan, cell, record, [cell], shared)[0]
        if said == "run":
            running.release(cell.folder.root)
        return said

    assert decided(same) == "run"
    held.append(one.folder.root)
    assert decided(same) == "wait"
    record.cells[one.name] = {"seconds": 0.0, "failed": "no matter"}
    assert decided(same) == "run"  # it was given up, though its process lives
    del record.cells[one.name]
    assert decided(same) == "wait"
    prepare.run(one.recipe, one.folder)
    assert decided(same) == "run"  # it can be copied now
    assert not Shared.of([one, two]).awaits(two, one, [])


def test_several_processes_share_the_cells(study_of, tmp_path):
    text = BASELINES.replace("two: {set: {", "two: {set: {data.min_rating: null, ")
    path = study_of(text)
    result = study.run(path, jobs=3)
    names = ["one-s0", "two-s0", "one-s1", "two-s1"]
    assert result["standing"] == names
    assert made(tmp_path) == dict.fromkeys(sorted(names), 1)
    assert not result["failed"]
