"""This tree against an earlier commit: the same training steps and searches, in turns in one run.

Each side is a process of its own that imports its own tree. It trains a LoRA over the shipped
recipe `demo` for a few steps and then answers users by beams and by best-first search; what loading
and the first step cost is taken off by doing a part of the same work before. Losses and lists of
both sides are said to be equal or not; seconds are the processor's, so what else runs tells little.
One line of JSON for each figure on stdout.

    python tools/bench/before.py 525cd73 --repeats 5
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "data.subset.valid=8",
    "systems=[untuned]",
    "model.adapter=null",
    "rows.count=64",
    "train.per_device_train_batch_size=4",
    "train.num_train_epochs=1",
    "train.logging_steps=1",
    "train.save_strategy=no",
    "train.eval_strategy=no",
    "decode.batch_size=8",
]


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("commit", help="what this tree is compared with")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--steps", type=int, default=6, help="timed training steps")
    options.add_argument("--users", type=int, default=24, help="users answered, timed")
    options.add_argument("--side", help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.side:
        print(json.dumps(measured(Path(asked.side), asked.steps, asked.users)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(before), asked.commit], check=True)
        try:
            turns = [
                {side: ran(tree, asked) for side, tree in (("now", ROOT), ("before", before))}
                for _ in range(asked.repeats)
            ]
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)
    for what in ("step", "beams", "best_first"):
        ratios = sorted(
            turn["now"]["seconds"][what] / turn["before"]["seconds"][what] for turn in turns
        )
        figure = {
            "figure": what,
            "time of before": round(statistics.median(ratios), 3),
            "range": [round(ratios[0], 3), round(ratios[-1], 3)],
            "seconds now": round(statistics.median(t["now"]["seconds"][what] for t in turns), 3),
            "equal": all(t["now"]["told"][what] == t["before"]["told"][what] for t in turns),
            "repeats": asked.repeats,
            "commit": asked.commit,
        }
        print(json.dumps(figure))


def ran(tree: Path, asked: argparse.Namespace) -> dict:
    """What one side measured, in a process that imports `tree`."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as scratch:
        sizes = ["--steps", str(asked.steps), "--users", str(asked.users)]
        command = [sys.executable, __file__, asked.commit, "--side", scratch, *sizes]
        done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{tree}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(scratch: Path, steps: int, users: int) -> dict:
    """Processor seconds of a training step, and of a user by either search; losses and lists."""
    seconds, told = {}, {}
    short, long = (trained(scratch, count) for count in (2, 2 + steps))
    seconds["step"] = (long[0] - short[0]) / steps
    told["step"] = [round(loss, 3) for loss in long[1]]
    for name, search in (("beams", "beam"), ("best_first", "best_first")):
        few, all_ = (answered(scratch, search, count) for count in (8, 8 + users))
        seconds[name] = (all_[0] - few[0]) / users
        told[name] = all_[1]
    return {"seconds": seconds, "told": told}


def trained(scratch: Path, steps: int) -> tuple[float, list[float]]:
    """Seconds and losses of a run of so many steps."""
    from llmrec.stages import train

    recipe, folder = _run(scratch, f"train{steps}", [f"train.max_steps={steps}"])
    started = time.process_time()
    train.run(recipe, folder)
    lines = [json.loads(line) for line in folder.train_log.read_text("utf-8").splitlines()]
    return time.process_time() - started, [line["loss"] for line in lines if "loss" in line]


def answered(scratch: Path, search: str, users: int) -> tuple[float, list]:
    """Seconds and lists of so many users."""
    from llmrec.evaluation.predictions import Predictions
    from llmrec.stages import prepare, recommend

    overrides = [f"data.subset.test={users}", f"decode.search={search}", "decode.beams=10"]
    recipe, folder = _run(scratch, f"{search}{users}", overrides)
    prepare.run(recipe, folder)
    started = time.process_time()
    recommend.run(recipe, folder)
    spent = time.process_time() - started
    return spent, Predictions.read(folder.predictions("untuned")).items.tolist()


def _run(scratch: Path, name: str, overrides: list[str]) -> tuple:
    from llmrec.recipe import shipped
    from llmrec.recipe.loading import load
    from llmrec.runs.folder import RunFolder

    where = [f"name={name}", f"output_dir={scratch}"]
    recipe = load(shipped.found("demo"), [*where, *SETTINGS, *overrides])
    return recipe, RunFolder.of(recipe)


if __name__ == "__main__":
    main()
