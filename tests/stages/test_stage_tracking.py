"""Trackers of experiments are told losses and validation, and keep them in the run folder."""

import json
import os

import pytest

from llmrec.runs.folder import RunFolder
from llmrec.stages import train
from llmrec.stages.tracking import tracking


def test_tensorboard_has_what_the_log_has(recipe_of):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe, folder = recipe_of("train.report_to=tensorboard")
    train.run(recipe, folder)
    kept = events.EventAccumulator(str(folder.tracking / "tensorboard"))
    kept.Reload()
    logged = [json.loads(line) for line in folder.train_log.read_text().splitlines()]
    for tag, key in (("train/loss", "loss"), ("eval/valid_nll", "valid_nll")):
        expected = {line["step"]: line[key] for line in logged if key in line}
        assert {e.step: e.value for e in kept.Scalars(tag)} == pytest.approx(expected, rel=1e-3)
        assert len(expected) > 1
    assert not list(folder.checkpoints.glob("runs"))  # where the library would have put it


def test_a_run_has_a_place_of_its_own_and_the_environment_is_as_it_was(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", "mine")
    before = dict(os.environ)
    for run in ("one", "two"):
        folder = RunFolder(tmp_path / run)
        with tracking(folder, "wandb"):
            assert os.environ["WANDB_DIR"] == str(folder.tracking)
            assert os.environ["WANDB_MODE"] == "offline"
            assert os.environ["TRACKIO_DIR"] == "mine"
        assert os.environ == before
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with tracking(RunFolder(tmp_path / "one"), ["wandb"]):
        assert "WANDB_MODE" not in os.environ
    with tracking(RunFolder(tmp_path / "three"), "none"):
        assert "WANDB_DIR" not in os.environ
    assert not (tmp_path / "three").exists()
