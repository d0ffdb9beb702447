"""SIGTERM and SIGINT at random moments of every verb, on the installed command and on forks that
have imported everything: none is ignored, and training loses one step at most."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from llmrec.data import sealed
from llmrec.model.kept_weights import CHECKPOINT, read_log
from tests.long.conftest import rounds

pytestmark = pytest.mark.long
CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
INSTALLED = [sys.executable, "-m", "llmrec"]


def verbs(path, folder, histories):
    """Every verb that does something, with what it is given."""
    out = histories.with_name("out")
    return {
        "prepare": ["prepare", path],
        "validate": ["validate", path],
        "train": ["train", path],
        "train --dry-run": ["train", path, "--dry-run"],
        "retrieve": ["retrieve", path, "demonstrations={}", "prompt.task=similar_users"],
        "recommend": ["recommend", path],
        "recommend --histories": ["recommend", path, "--histories", histories],
        "--out": ["recommend", path, "--histories", histories, "--out", f"{out}.csv"],
        "evaluate": ["evaluate", path],
        "report": ["report", path],
        "export": ["export", path],
        "check leakage": ["check", "leakage", path],
        "prompts render": ["prompts", "render", path],
        "run": ["run", path],
    }


class Installed:
    """The installed command, started as a person does."""

    def start(self, *arguments):
        self.process = subprocess.Popen(
            [*INSTALLED, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return self

    def poll(self):
        return self.process.poll()

    def send(self, number):
        self.process.send_signal(number)

    def ended(self, seconds=130):
        out, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, errors


def signalled(start, arguments, longest, rng):
    """One signal at a random moment; whether it landed, and what the command told."""
    number = rng.choice(list(CODES))
    process = start(*arguments)
    until = time.monotonic() + rng.uniform(0.01, longest)
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    landed = process.poll() is None
    if landed:
        process.send(number)
    begun = time.monotonic()
    code, _, errors = process.ended()
    # Until Python has found the command, it ends as any program of Python's.
    ours = any(f"/llmrec/{name}" in errors for name in ("__main__", "cli", "terminal"))
    starting = landed and code == -number and not ours
    assert "Traceback" not in errors or starting, (arguments, errors)
    assert time.monotonic() - begun < 30, arguments
    # One that comes before the interpreter listens ends it as any process.
    if landed and code not in (CODES[number], -number):
        assert code == 0, (arguments, code, errors)
        assert "stopping" not in errors, f"{arguments}: told, and ignored"
        return False  # it had ended between the look and the signal
    return landed


@pytest.mark.parametrize("how", ["installed", "forked"])
def test_no_signal_is_ignored(how, recipe_of, written, histories, forks, tmp_path):
    rng, landed, lost = random.Random(how), {}, []
    recipe, folder = recipe_of()
    path = written(recipe)
    assert forks.run("-q", "run", path)[0] == 0
    start = Installed().start if how == "installed" else forks.start
    all_verbs, wanted = verbs(path, folder, histories), rounds(100)
    longest = {}
    names = list(all_verbs)
    while sum(landed.values()) < wanted:
        name = names[sum(landed.values()) % len(names)]
        arguments = all_verbs[name]
        if name not in longest:
            begun = time.monotonic()
            start(*arguments).ended()
            longest[name] = max(0.05, time.monotonic() - begun)
        if name in ("train", "recommend", "run"):
            folder.train_log.unlink(missing_ok=True)
            for done in (folder.adapter, folder.checkpoints, folder.predictions("x").parent):
                if name != "recommend" or done.name == "predictions":
                    shutil.rmtree(done, ignore_errors=True)
            longest[name] = max(longest[name], 3.0 if how == "forked" else 12.0)
        found = signalled(start, arguments, longest[name], rng)
        landed[name] = landed.get(name, 0) + found
        if name == "train" and found and not folder.adapter.exists() and folder.train_log.exists():
            steps = [line["step"] for line in read_log(folder.train_log) if "loss" in line]
            newest, _ = sealed.newest(folder.checkpoints, CHECKPOINT)
            saved = sealed.facts(newest)["step"] if newest else 0
            lost.append(max(steps, default=0) - saved)
            assert lost[-1] <= 1
        if name in ("train", "recommend", "run"):  # whole again
            assert forks.run("-q", "run", path)[0] == 0
    print(f"\n{how}: {sum(landed.values())} signals landed, by verb {landed}; steps lost {lost}")
