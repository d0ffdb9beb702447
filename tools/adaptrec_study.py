"""The study behind results/adaptrec.md: what similar users in the prompt are worth.

Every arm is a run folder below --runs, and every stage skips what stands, so the script can be
stopped at any moment and started again. All arms of a protocol and seed share data, test users,
candidates, training examples, learning rate and batch; they differ in whom the prompt shows.

    python tools/adaptrec_study.py --runs runs/adaptrec_study --out results/adaptrec.md
    python tools/adaptrec_study.py --runs runs/adaptrec_study --only among-s0    # a part of it
    python tools/adaptrec_study.py --runs runs/big --set model.base=meta-llama/Llama-2-7b-hf \
        --set rows.count=4096 --set data.subset.test=null      # a machine that affords more
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmrec.recipe_loading import load
from llmrec.stages import pipeline, recommend
from llmrec.stages.folder import RunFolder

SEEDS = (0, 1, 2)
COMMON = {
    "data": {
        "source": "ml-100k", "year_in_title": False, "split": "by_user",
        "subset": {"valid": 8, "test": 40},
    },
    "prompt": {"task": "similar_users", "domain": "movie", "max_history": 5},
    "objective": {"name": "msl"},
    "rows": {"shape": "single", "count": 48},
    "train": {
        "learning_rate": 1.0e-3, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3,
        "num_train_epochs": 1, "per_device_train_batch_size": 4, "eval_strategy": "epoch",
        "save_strategy": "epoch", "logging_steps": 4,
    },
    "decode": {
        "batch_size": 8, "beams": 10, "top_k": 10,
        "grounding": {"beams": 1, "max_new_tokens": 12},
    },
}  # fmt: skip
SHOWN = {"count": 3, "history": 5}
FREE = ["untuned_free", "tuned_free"]


@dataclass(frozen=True)
class Arm:
    """One line of the tables: the recipe's section `demonstrations`."""

    said: str
    demonstrations: dict | None


ARMS = {
    "none": Arm("no demonstrations", None),
    "random": Arm("random users", {**SHOWN, "by": "random"}),
    "retrieval": Arm("retrieved users", SHOWN),
    "selection": Arm(
        "retrieved, selected by the model", {**SHOWN, "selection": {"pool": 10, "reader": "score"}}
    ),
}


@dataclass(frozen=True)
class Cell:
    """One protocol and seed. `among`: 20 candidates, else the whole catalog; `few`: 64 users."""

    among: bool
    seed: int
    few: bool = False

    @property
    def name(self) -> str:
        """How it is called on the command line and in folders."""
        protocol = "among" if self.among else "whole"
        return f"{protocol}{'-few' * self.few}-s{self.seed}"

    @property
    def arms(self) -> tuple[str, ...]:
        """Which arms run in it."""
        return ("none", "retrieval") if self.few else tuple(ARMS)


def cells() -> Iterator[Cell]:
    """All of the study, seed by seed, few-shot last."""
    for seed in SEEDS:
        yield Cell(True, seed)
        yield Cell(False, seed)
    for seed in SEEDS:
        yield Cell(True, seed, few=True)


def recipe_of(cell: Cell, arm: str, given: argparse.Namespace):
    """The arm's recipe, written to a file so that the run can be looked at like any other."""
    tree = json.loads(json.dumps(COMMON))
    systems = ["tuned"] if cell.few else ["untuned", "tuned"]
    if arm == "none" and not cell.few:
        systems = ["popularity", "markov", *systems]
    if cell.among:
        tree["data"]["candidates"] = 20
        systems += FREE if arm in ("none", "retrieval") and not cell.few else []
    if cell.few:
        tree["data"]["train_users"] = 64
    tree |= {"name": f"{cell.name}-{arm}", "seed": cell.seed, "output_dir": str(given.runs),
             "systems": systems}  # fmt: skip
    if ARMS[arm].demonstrations is not None:
        tree["demonstrations"] = ARMS[arm].demonstrations
    path = given.runs / "recipes" / f"{tree['name']}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, indent=1), "utf-8")  # JSON is YAML
    recipe = load(path, given.set)
    return recipe, RunFolder.of(recipe)


def run(cell: Cell, given: argparse.Namespace) -> None:
    """Train and answer for every arm of a cell."""
    for arm in cell.arms:
        recipe, folder = recipe_of(cell, arm, given)
        logging.info("study: %s", recipe.name)
        pipeline.train(recipe, folder)
        recommend.run(recipe, folder)
        folder.keep(recipe)


def main() -> None:
    """Run what is missing, then write the page."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=Path, required=True)
    options.add_argument("--only", action="append", help="cells to run, such as among-s0")
    options.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE",
                         help="changed in every arm alike")  # fmt: skip
    options.add_argument("--out", type=Path, help="write the tables here")
    given = options.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    for cell in cells():
        if given.only is None or cell.name in given.only:
            run(cell, given)


if __name__ == "__main__":
    main()
