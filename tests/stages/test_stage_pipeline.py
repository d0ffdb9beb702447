"""`llmrec run` under a launcher: who runs which stage, who waits, and how a failure ends it."""

import json
import os
import subprocess
import sys

import pytest

from llmrec.recipe.loading import dump
from llmrec.stages import pipeline

# The main process is slow to write what it recommends, so that whoever does not wait comes early.
SLOW = """
import os, time
from llmrec.evaluation.predictions import Predictions
from llmrec.terminal import is_main_process
write = Predictions.write
def slowly(self, path):
    time.sleep(2.0 if is_main_process() else 0.0)
    write(self, path)
Predictions.write = slowly
from llmrec.cli import main
main()
"""

# Every training of a network leaves the rank of its process in a file.
COUNTED = """
import os
from llmrec.runs.artifact import Artifact
seal = Artifact.seal
def counted(self, staged, **facts):
    if "network" in self.place.parts:
        with open("trained", "a") as stream:
            stream.write(os.environ["RANK"])
    seal(self, staged, **facts)
Artifact.seal = counted
from llmrec.cli import main
main()
"""


def launched(tmp_path, recipe, port, program):
    (tmp_path / "two.yaml").write_text(dump(recipe), "utf-8")
    (tmp_path / "program.py").write_text(program, "utf-8")
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    return subprocess.run(
        [
            sys.executable,
            *launcher,
            str(tmp_path / "program.py"),
            "-q",
            "run",
            str(tmp_path / "two.yaml"),
            "--json",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
    )


def test_two_processes_end_with_the_table_of_one(recipe_of, tmp_path):
    systems = "systems=[popularity, untuned, tuned]"
    one, folder = recipe_of("name=one", systems)
    pipeline.run(one, folder)
    two, together = recipe_of("name=two", systems, "train.per_device_train_batch_size=2")
    done = launched(tmp_path, two, 29751, SLOW)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(together.root)
    tables = [json.loads(f.metrics.read_text("utf-8"))["table"] for f in (folder, together)]
    assert (
        tables[0]["systems"].keys()
        == tables[1]["systems"].keys()
        == {"popularity", "untuned", "tuned"}
    )
    for system, metrics in tables[0]["systems"].items():
        for metric, groups in metrics.items():
            ours, theirs = (
                groups["all"]["mean"],
                tables[1]["systems"][system][metric]["all"]["mean"],
            )
            assert theirs == (ours and pytest.approx(ours, rel=1e-4))
    assert together.report.exists()


def test_a_failure_of_the_main_process_ends_all_with_its_code(recipe_of, tmp_path):
    recipe, folder = recipe_of("systems=[popularity]", "data.k_core=50")
    done = launched(tmp_path, recipe, 29752, "from llmrec.cli import main\nmain()\n")
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    # What the launcher says of the first process that ended: the code for data, and why.
    assert "exitcode  : 3" in done.stderr
    assert not folder.metrics.exists()


def test_a_network_trains_once_whatever_the_processes(recipe_of, tmp_path):
    small = ("network.hidden=8", "network.max_epochs=1", "network.trials=1")
    recipe, folder = recipe_of("systems=[popularity, network]", *small)
    done = launched(tmp_path, recipe, 29753, COUNTED)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "trained").read_text("utf-8") == "0"
    assert folder.report.exists()


def test_every_stage_says_who_runs_it(recipe_of):
    recipe, _ = recipe_of("evaluate.calibration.alpha=[0.5]")
    told = {stage.name: stage.everyone for stage in pipeline.stages_of(recipe)}
    assert told == {
        "prepare": False,
        "train": True,
        "recommend": True,
        "evaluate": False,
        "calibrate": False,
        "report": False,
    }
