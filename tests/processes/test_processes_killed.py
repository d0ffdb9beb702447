"""A process that is killed takes its job along, and the same command goes on, under torchrun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load_file

from llmrec.recipe.loading import dump
from llmrec.stages import train

pytestmark = pytest.mark.long
SETTINGS = ("train.num_train_epochs=12", "train.per_device_train_batch_size=2", "systems=[tuned]")
LAUNCH = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "llmrec")


def started(path):
    return subprocess.Popen(
        [sys.executable, *LAUNCH, "-q", "train", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
    )


def rank_of(process, rank):
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError(f"no rank {rank}")


def waited(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "too late"
        time.sleep(0.05)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_leaves_no_orphan_and_training_goes_on(recipe_of, tmp_path, rank):
    straight, alone = recipe_of("name=alone", *SETTINGS, "train.per_device_train_batch_size=4")
    train.run(straight, alone)
    recipe, folder = recipe_of("name=killed", *SETTINGS)
    path = Path(tmp_path / "two.yaml")
    path.write_text(dump(recipe), "utf-8")
    process = started(path)
    waited(lambda: len(list(folder.checkpoints.glob("checkpoint-*"))) > 0, 120)
    family = psutil.Process(process.pid).children(recursive=True)
    rank_of(process, rank).send_signal(signal.SIGKILL)
    killed = time.monotonic()
    waited(lambda: process.poll() is not None, 60)
    waited(lambda: not any(p.is_running() and p.status() != "zombie" for p in family), 60)
    assert time.monotonic() - killed < 60
    assert process.returncode != 0
    assert not folder.adapter.exists()
    again = started(path)
    said, _ = again.communicate(timeout=200)
    assert again.returncode == 0, said
    mine, its = (load_file(f.adapter / "adapter_model.safetensors") for f in (folder, alone))
    for name, weights in mine.items():
        assert abs(weights - its[name]).max() < 1e-2, name  # a learning rate of 0.01 amplifies
