"""SIGKILL at random moments of every verb that takes long, then the same command again: the bytes
of a run that nobody killed, each user once."""

import random
import shutil
import time

import pytest

from llmrec.evaluation.predictions import Predictions
from llmrec.model.kept_weights import read_log
from tests.long.conftest import rounds

pytestmark = pytest.mark.long
SOFT = ("rows.shape=all_targets", "objective.name=msl", "soft.probe=8")


def killed_until_done(forks, seed, longest, *arguments):
    """Start a command, kill it at a random moment, start it again; kills that landed."""
    rng, landed = random.Random(seed), 0
    while True:
        process = forks.start("-q", *arguments)
        until = time.monotonic() + rng.uniform(0.02, longest)
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        if process.poll() is None and landed < 6:
            process.send()
        code, _, errors = process.ended()
        assert code in (0, -9), errors
        assert "Traceback" not in errors
        if code == 0:
            return landed
        landed += 1


def bytes_of(folder):
    """What a training leaves, less what tells the time."""
    log = [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(folder.train_log)]
    files = [p for p in folder.root.rglob("*.safetensors") if "checkpoints" not in p.parts]
    return log, {p.relative_to(folder.root): p.read_bytes() for p in files}


def counted(name, landed, record_property):
    record_property("landed", landed)
    print(f"\n{name}: {landed} kills landed, 0 failures")


def test_training(recipe_of, written, forks, record_property):
    """300 kills that landed: losses and adapter bytes equal."""
    straight, folder_a = recipe_of("name=straight")
    assert forks.run("-q", "train", written(straight))[0] == 0
    whole = bytes_of(folder_a)
    killed, folder_b = recipe_of("name=killed")
    path, landed, wanted = written(killed), 0, rounds(300)
    while landed < wanted:
        landed += killed_until_done(forks, landed, 1.2, "train", path)
        assert bytes_of(folder_b) == whole
        shutil.rmtree(folder_b.root)
    counted("train", landed, record_property)


@pytest.mark.parametrize("step", ["distill", "soft"])
def test_soft(step, recipe_of, written, forks, record_property):
    """20 kills of its own two steps each, from where the step before ended: answers, losses and
    adapter bytes equal. The first step is a training as any other."""
    recipe, folder = recipe_of(*SOFT)
    path, kept = written(recipe), folder.root.with_name("kept")
    for before in ("sft", "distill")[: 1 + (step == "soft")]:
        assert forks.run("-q", "train", path, "--only", before)[0] == 0
    shutil.copytree(folder.root, kept)
    begun = time.monotonic()
    assert forks.run("-q", "train", path, "--only", step)[0] == 0
    longest = time.monotonic() - begun
    whole, answers = bytes_of(folder), (folder.answers / "answers.parquet").read_bytes()
    landed, wanted = 0, rounds(20)
    while landed < wanted:
        shutil.rmtree(folder.root)
        shutil.copytree(kept, folder.root)
        landed += killed_until_done(forks, landed, longest, "train", path, "--only", step)
        assert bytes_of(folder) == whole
        assert (folder.answers / "answers.parquet").read_bytes() == answers
    counted(f"train --only {step}", landed, record_property)


def test_recommending_and_evaluating(trained, written, forks, histories, record_property):
    """20 kills each of recommend, evaluate, and recommend --histories --out."""
    recipe, folder = trained
    path = written(recipe)
    out = histories.with_name("out.parquet")
    raw = ("recommend", folder.root, "--histories", histories, "--out", out)
    for arguments in (("recommend", path), ("evaluate", path), raw):
        assert forks.run("-q", *arguments)[0] == 0
    kept = [folder.predictions(name) for name in recipe.systems]
    whole = [Predictions.read(file) for file in kept]
    others = [folder.metrics, folder.per_user, out]
    others = {file: file.read_bytes() for file in others}
    landed = dict.fromkeys(("recommend", "evaluate", "recommend --histories"), 0)
    while min(landed.values()) < rounds(20):
        seed = sum(landed.values())
        shutil.rmtree(folder.predictions("x").parent)
        landed["recommend"] += killed_until_done(forks, seed, 1.5, "recommend", path)
        for file, before in zip(kept, whole, strict=True):
            after = Predictions.read(file)
            assert after.user_ids.tolist() == before.user_ids.tolist()
            assert after.items.tolist() == before.items.tolist()
            assert after.nll.tolist() == before.nll.tolist()
        folder.metrics.unlink()
        folder.per_user.unlink()
        landed["evaluate"] += killed_until_done(forks, seed, 0.15, "evaluate", path)
        out.unlink()
        landed["recommend --histories"] += killed_until_done(forks, seed, 0.5, *raw)
        for file in (folder.per_user, out):
            assert file.read_bytes() == others[file]
    for name, count in landed.items():
        counted(name, count, record_property)
