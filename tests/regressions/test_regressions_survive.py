"""What kills, signals and changed files once did to a run."""

import json

import pytest

from llmrec.data import sealed
from llmrec.errors import DataError
from llmrec.model.kept_weights import CHECKPOINT, read_log
from llmrec.model.saving import SavingTrainer
from llmrec.stages import evaluate, recommend, train


def untimed(folder):
    return [
        {k: v for k, v in line.items() if k != "seconds"} for line in read_log(folder.train_log)
    ]


def test_killed_between_the_last_save_and_the_end(recipe_of, monkeypatch):
    """The last epoch's losses were missing and its validation was done twice."""
    straight, folder_a = recipe_of("name=straight")
    train.run(straight, folder_a)
    last = max(line["step"] for line in untimed(folder_a))
    killed, folder_b = recipe_of("name=killed")
    real = SavingTrainer._save_checkpoint

    def saving(self, model, trial):
        real(self, model, trial)
        if self.state.global_step == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SavingTrainer, "_save_checkpoint", saving)
        with pytest.raises(KeyboardInterrupt):
            train.run(killed, folder_b)
    newest, _ = sealed.newest(folder_b.checkpoints, CHECKPOINT)
    assert newest.name == f"{CHECKPOINT}{last}"
    train.run(killed, folder_b)
    assert untimed(folder_b) == untimed(folder_a)


def test_a_manifest_that_is_cut(trained):
    """Evaluating ended with a traceback, though it needs no adapter."""
    recipe, folder = trained
    recommend.run(recipe, folder)
    manifest = folder.adapter / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:200])
    with pytest.raises(DataError, match=r"adapter/manifest\.json is damaged"):
        folder.keep(recipe)


def test_predictions_that_are_gone(trained, caplog):
    """The table was shorter without a word on stderr."""
    recipe, folder = trained
    recommend.run(recipe, folder)
    folder.predictions("tuned").unlink()
    evaluate.run(recipe, folder)
    assert "no predictions of tuned" in caplog.text


def test_a_line_of_the_log_that_was_changed(trained, caplog):
    """What it said of validation counted all the same."""
    _, folder = trained
    lines = folder.train_log.read_text("utf-8").splitlines(keepends=True)
    number = next(n for n, line in enumerate(lines) if "score" in json.loads(line))
    lines[number] = lines[number].replace('"score": [', '"score": [-')
    folder.train_log.write_text("".join(lines), "utf-8")
    assert len(read_log(folder.train_log)) == len(lines) - 1
    assert f"{folder.train_log}:{number + 1} is not what was written there" in caplog.text
