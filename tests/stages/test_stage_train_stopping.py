"""A training that is told to stop saves at the end of the step, publishes nothing and goes on alike
afterwards."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from llmrec import stopping
from llmrec.data import sealed
from llmrec.errors import LlmrecError, RecipeError
from llmrec.model.callbacks import Finite
from llmrec.model.kept_weights import read_log
from llmrec.recipe.loading import dump
from llmrec.stages import train


@pytest.fixture(autouse=True)
def without_a_wish():
    yield
    stopping.withdraw()


def adapter_bytes(folder):
    return (folder.adapter / "adapter_model.safetensors").read_bytes()


def logged(folder):
    lines = read_log(folder.train_log)
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("at", ["middle", "end of an epoch", "end", "second"])
def test_training_saves_at_the_step_and_goes_on_alike(at, recipe_of, trained, monkeypatch):
    _, folder = trained
    whole, lines = adapter_bytes(folder), logged(folder)
    shutil.rmtree(folder.root)
    last = max(line["step"] for line in lines)
    step = {"middle": last // 2 + 1, "end of an epoch": last // 2, "end": last, "second": 2}[at]
    real = Finite.on_pre_optimizer_step

    def wishing(self, args, state, control, **context):
        if state.global_step + 1 == step:
            stopping.request(75)
        real(self, args, state, control, **context)

    recipe, folder = recipe_of("train.save_steps=100")
    with monkeypatch.context() as patch:
        patch.setattr(Finite, "on_pre_optimizer_step", wishing)
        if at == "end":  # it reached its end, so it is published
            train.run(recipe, folder)
        else:
            with pytest.raises(stopping.Stopped) as end:
                train.run(recipe, folder)
            assert end.value.code == 75
            assert not folder.adapter.exists()
    newest, _ = sealed.newest(folder.checkpoints, "checkpoint-")
    assert sealed.facts(newest)["step"] == step
    stopping.withdraw()
    train.run(recipe, folder)
    assert adapter_bytes(folder) == whole
    assert logged(folder) == lines


def test_a_training_that_another_stopped_is_not_published(recipe_of, monkeypatch):
    def stops(self, args, state, control, **_):
        control.should_training_stop = state.global_step == 3

    monkeypatch.setattr(Finite, "on_step_end", stops, raising=False)
    recipe, folder = recipe_of()
    with pytest.raises(LlmrecError, match=r"stopped at step 3 of \d+, before its end"):
        train.run(recipe, folder)
    assert not folder.adapter.exists()


def test_no_other_listens_for_signals(recipe_of):
    with pytest.raises(RecipeError, match="saves at the end of the step"):
        recipe_of("train.enable_jit_checkpoint=true")


def test_a_signal_to_one_of_two_processes_ends_both_at_a_step(recipe_of, tmp_path):
    """Over gloo, as a launcher starts them: a checkpoint, 75 from both, and the table of one."""
    recipe, folder = recipe_of("train.num_train_epochs=400", "train.save_steps=100000")
    path = tmp_path / "two.yaml"
    path.write_text(dump(recipe), "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "1",
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "llmrec", "-q", "train", str(path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]
    until = time.monotonic() + 200
    while len(read_log(folder.train_log)) < 5 and time.monotonic() < until:
        assert all(rank.poll() is None for rank in ranks), [r.communicate()[1] for r in ranks]
        time.sleep(0.05)
    ranks[1].send_signal(signal.SIGTERM)
    told = [rank.communicate(timeout=100)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [75, 75], told
    assert "Traceback" not in "".join(told)
    newest, _ = sealed.newest(folder.checkpoints, "checkpoint-")
    steps = [line["step"] for line in read_log(folder.train_log) if "loss" in line]
    assert sealed.facts(newest)["step"] >= max(steps) - 1
    assert not folder.adapter.exists()
