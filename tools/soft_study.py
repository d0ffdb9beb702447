"""The study behind results/soft.md: SFT against SOFT, arm by arm, seed by seed.

Every arm is a run folder below --runs, and every stage skips what stands, so the script can be
stopped at any moment and started again. All arms of a seed share data, rows, test users, learning
rate and batch; they differ in what is named here and in nothing else.

    python tools/soft_study.py --runs runs/soft_study --out results/soft.md
    python tools/soft_study.py --runs runs/soft_study --beauty FOLDER --out results/soft.md
    python tools/soft_study.py --only ml-msl-s0 --runs runs/soft_study    # a part of it
    python tools/soft_study.py --runs runs/big --set model.base=meta-llama/Llama-3.2-3B \
        --set rows.count=400 --set train.bf16=true                # a machine that affords more
"""

import argparse
import json
import logging
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llmrec.data.records import Examples
from llmrec.evaluation.intervals import holm, mean_interval, paired_test
from llmrec.evaluation.metrics import hit_rate, ndcg
from llmrec.evaluation.predictions import Predictions
from llmrec.methods.soft.answer_file import Answers
from llmrec.model.kept_weights import read_log
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder
from llmrec.stages import pipeline, recommend

SEEDS = (0, 1, 2)
ALPHAS = (10.0, 100.0)
COMMON = {
    "model": {"lora": {"r": 8}},
    "rows": {"shape": "all_targets"},
    "train": {
        "learning_rate": 1.0e-3,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 5,
        "per_device_train_batch_size": 4,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_steps": 4,
    },
    "decode": {"batch_size": 8, "beams": 10, "top_k": 10},
}
MOVIES = {
    "data": {"source": "ml-100k", "year_in_title": False, "subset": {"valid": 48, "test": 150}},
    "prompt": {"domain": "movie"},
}
SIZES = {  # rows are windows of ten titles and one more, each ten training examples
    "ml": {"rows": 30, "epochs": 3, "probe": 64, "beams": 4},
    "beauty": {"rows": 24, "epochs": 2, "probe": 32, "beams": 4},
}


@dataclass(frozen=True)
class Arm:
    """One line of the tables. `soft`: its section, None for plain fine-tuning; `longer`: epochs."""

    name: str
    said: str
    soft: dict | None = None
    longer: int = 1


ARMS = {
    "sft": Arm("sft", "SFT"),
    "long": Arm("long", "SFT, as many steps as SFT and SOFT together", longer=2),
    "none": Arm("none", "SOFT without scheduler (own answers alone)", {"schedule": "none"}),
    **{
        f"a{alpha:g}": Arm(f"a{alpha:g}", f"SOFT, alpha {alpha:g}", {"alpha": alpha})
        for alpha in ALPHAS
    },
}


@dataclass(frozen=True)
class Cell:
    """One data set, objective and seed, and the arms that run on it, the first one SFT."""

    data: str
    objective: str
    seed: int
    arms: tuple[str, ...]
    untuned: bool = False
    overrides: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How it is called on the command line and in folders."""
        return f"{self.data}-{self.objective}-s{self.seed}"


def cells(beauty: Path | None, better: str) -> Iterator[Cell]:
    """All of the study, the parts that matter most first. `better`: SOFT's arm for the rest."""
    for seed in SEEDS:
        yield Cell("ml", "msl", seed, tuple(ARMS), untuned=True)
    for seed in SEEDS:
        yield Cell("ml", "sft", seed, ("sft", better))
    if beauty is not None:
        yield Cell("beauty", "msl", 0, ("sft", "long", better), untuned=True)


def recipe_of(cell: Cell, arm: Arm, given: argparse.Namespace):
    """The arm's recipe, written to a file so that the run can be looked at like any other."""
    size = SIZES[cell.data]
    tree = json.loads(json.dumps(COMMON | (MOVIES if cell.data == "ml" else beauty_of(given))))
    tree |= {
        "name": f"{cell.name}-{arm.name}",
        "seed": cell.seed,
        "output_dir": str(given.runs),
        "objective": {"name": cell.objective},
        "systems": ["tuned"],
    }
    tree["rows"]["count"] = size["rows"]
    tree["train"]["num_train_epochs"] = size["epochs"] * arm.longer
    if arm.soft is not None:
        first = next(a for a in cell.arms if ARMS[a].soft is not None)
        decode = "constrained" if cell.objective == "msl" else "free"
        tree["soft"] = {
            **arm.soft,
            "probe": size["probe"],
            "distill": {"beams": size["beams"], "decode": decode, "max_new_tokens": 24},
            "sft_adapter": str(given.runs.absolute() / f"{cell.name}-sft" / "adapter"),
        }
        if arm.name != first:
            answers = given.runs.absolute() / f"{cell.name}-{first}" / "distilled"
            tree["soft"]["answers"] = str(answers)
    path = given.runs / "recipes" / f"{tree['name']}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, indent=1), "utf-8")  # JSON is YAML
    recipe = load(path, given.set)
    return recipe, RunFolder.of(recipe)


def beauty_of(given: argparse.Namespace) -> dict:
    """Amazon Beauty (2014, 5-core) from a folder of interactions.parquet and items.parquet."""
    folder = given.beauty.absolute()
    return {
        "data": {
            "source": str(folder / "interactions.parquet"),
            "format": "parquet",
            "items": str(folder / "items.parquet"),
            "columns": {"timestamp": "order", "rating": None},
            "max_title_chars": 60,
            "subset": {"valid": 32, "test": 100},
        },
        "prompt": {"domain": "product", "max_history": 5},
    }


def run(cell: Cell, given: argparse.Namespace) -> None:
    """Train and answer for every arm of a cell."""
    for name in cell.arms:
        recipe, folder = recipe_of(cell, ARMS[name], given)
        logging.info("study: %s", recipe.name)
        pipeline.train(recipe, folder)
        if name == "sft":
            others = ["popularity", "markov"] + (["untuned"] if cell.untuned else [])
            recipe = recipe.model_copy(update={"systems": [*others, "tuned"]})
        recommend.run(recipe, folder)
        folder.keep(recipe)


def measured(cell: Cell, given: argparse.Namespace) -> dict[str, dict[str, np.ndarray]]:
    """Per-user HR@10, NDCG@10 and NLL of each system of a finished cell, and the user ids."""
    found = {}
    for name in cell.arms:
        _, folder = recipe_of(cell, ARMS[name], given)
        test = Examples.read(folder.examples("test"))
        for path in sorted((folder.root / "predictions").glob("*.parquet")):
            answers = Predictions.read(path)
            lists = [answers.ranking(i) for i in range(len(answers))]
            found[name if path.stem == "tuned" else path.stem] = {
                "HR@10": hit_rate(lists, test.targets, 10),
                "NDCG@10": ndcg(lists, test.targets, 10),
                "NLL": answers.nll,
                "user": answers.user_ids,
            }
    return found


def table(group: list[Cell], given: argparse.Namespace) -> list[str]:
    """Means over all seeds and users, with intervals over users; then the tests against SFT."""
    by_cell = [measured(cell, given) for cell in group]
    systems = [s for s in ("popularity", "markov", "untuned", *ARMS) if s in by_cell[0]]
    pooled = {
        s: {k: np.concatenate([one[s][k] for one in by_cell]) for k in by_cell[0][s]}
        for s in systems
    }
    n, users = len(pooled[systems[0]]["NLL"]), len(set(pooled[systems[0]]["user"]))
    lines = [
        f"n = {n} (user, seed) pairs of {users} users, {len(group)} seed(s):",
        "",
        "| | HR@10 | NDCG@10 | target NLL, nats | NLL by seed |",
        "|---|---|---|---|---|",
    ]
    for s in systems:
        shown = []
        for metric in ("HR@10", "NDCG@10", "NLL"):
            i = mean_interval(pooled[s][metric], pooled[s]["user"])
            shown.append(f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]")
        seeds = ", ".join(f"{one[s]['NLL'].mean():.2f}" for one in by_cell)
        lines.append(f"| {said(s)} | {' | '.join(shown)} | {seeds} |")
    against = [s for s in systems if s in ARMS and s != "sft"]
    tests = [
        (s, m, paired_test(pooled[s][m], pooled["sft"][m], pooled[s]["user"]))
        for m in ("HR@10", "NDCG@10", "NLL")
        for s in against
    ]
    adjusted = holm([t.p_value for _, _, t in tests])
    lines += [
        "",
        "Paired differences from SFT, the same users and seeds (p by sign flips of users, "
        "after Holm over this table):",
        "",
        "| | metric | difference | p |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {said(s)} | {m} | {t.difference:+.3f} [{t.low:+.3f}, {t.high:+.3f}] | {p:.3f} |"
        for (s, m, t), p in zip(tests, adjusted, strict=True)
    ]
    return [*lines, ""]


def said(system: str) -> str:
    """How a system is called in the tables."""
    return ARMS[system].said if system in ARMS else system


def curves(group: list[Cell], given: argparse.Namespace) -> list[str]:
    """What each epoch's curriculum measured, seed by seed, and the losses of both kinds."""
    lines = [
        "| seed | arm | epoch | lambda | distance | equal to truth (probe) | loss, real | "
        "loss, own answers | validation NLL |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in group:
        for name in cell.arms:
            _, folder = recipe_of(cell, ARMS[name], given)
            logged = read_log(folder.train_log)
            for epoch in sorted({x["epoch"] for x in logged if "epoch" in x}):
                at = {k: v for x in logged if x.get("epoch") == epoch for k, v in x.items()}
                valid = [
                    x["valid_nll"] for x in logged if "valid_nll" in x and x["step"] == at["step"]
                ]
                lines.append(
                    f"| {cell.seed} | {said(name)} | {epoch} | {_number(at.get('lambda'))} | "
                    f"{_number(at.get('distance'))} | {_number(at.get('probe_equal_to_truth'))} | "
                    f"{_number(at['losses']['real'])} | {_number(at['losses']['self'])} | "
                    f"{_number(valid[-1] if valid else None)} |"
                )
    return [*lines, ""]


def distilled(group: list[Cell], given: argparse.Namespace) -> list[str]:
    """The answers that were distilled, and how much easier they are than the truth."""
    lines = [
        "| seed | answers | equal to truth | no catalog item | different | mean distance | "
        "first epoch's loss: real (SFT) | own answers (SOFT) | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in group:
        soft = [name for name in cell.arms if ARMS[name].soft is not None]
        _, folder = recipe_of(cell, ARMS[soft[0]], given)
        figures = Answers.read(folder.answers).figures
        real = _first_loss(recipe_of(cell, ARMS["sft"], given)[1], "real")
        own = _first_loss(folder, "self")
        lines.append(
            f"| {cell.seed} | {figures['count']} | {figures['share_equal_to_truth']:.3f} | "
            f"{figures['share_no_catalog_item']:.3f} | {figures['distinct']} | "
            f"{figures['mean_distance']:.2f} | {real:.3f} | {own:.3f} | {own / real:.2f} |"
        )
    return [*lines, ""]


def _first_loss(folder: RunFolder, kind: str) -> float:
    for line in read_log(folder.train_log):
        if "losses" in line:
            return float(line["losses"][kind])
    return math.nan


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def page(given: argparse.Namespace) -> str:
    """The measured part of results/soft.md."""
    groups = [
        ("MovieLens-100K, cross-entropy over allowed tokens (`msl`)", "ml", "msl"),
        ("MovieLens-100K, cross-entropy over the vocabulary (`sft`)", "ml", "sft"),
        ("Amazon Beauty, cross-entropy over allowed tokens (`msl`)", "beauty", "msl"),
    ]
    lines = [_made_with(given), ""]
    for title, data, objective in groups:
        group = [
            c
            for c in cells(given.beauty, given.better)
            if (c.data, c.objective) == (data, objective) and _finished(c, given)
        ]
        if group:
            lines += [
                f"## {title}",
                "",
                *table(group, given),
                "Distilled answers:",
                "",
                *distilled(group, given),
                "By epoch:",
                "",
                *curves(group, given),
            ]
    return "\n".join(lines)


def _made_with(given: argparse.Namespace) -> str:
    recipe, folder = recipe_of(next(cells(given.beauty, given.better)), ARMS["sft"], given)
    known = folder.provenance(recipe)
    packages = ", ".join(f"{name} {version}" for name, version in known["packages"].items())
    changed = f"; changed in every arm: {', '.join(given.set)}" if given.set else ""
    return f"llmrec {known['llmrec']}, Python {known['python']}, {packages}{changed}."


def _finished(cell: Cell, given: argparse.Namespace) -> bool:
    return all(recipe_of(cell, ARMS[a], given)[1].predictions("tuned").exists() for a in cell.arms)


def main() -> None:
    """Run what is missing, then write the page."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=Path, required=True)
    options.add_argument("--beauty", type=Path, help="folder of Amazon Beauty's Parquet files")
    options.add_argument(
        "--better",
        default="a10",
        choices=[a for a in ARMS if ARMS[a].soft],
        help="SOFT's arm for the other objective and data",
    )
    options.add_argument("--only", action="append", help="cells to run, such as ml-msl-s0")
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="changed in every arm alike",
    )
    options.add_argument("--out", type=Path, help="write the tables here")
    given = options.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    for cell in cells(given.beauty, given.better):
        if given.only is None or cell.name in given.only:
            run(cell, given)
    if given.out:
        given.out.write_text(page(given), "utf-8")


if __name__ == "__main__":
    main()
