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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples, Interactions
from llmrec.evaluation.intervals import holm, mean_interval, paired_test
from llmrec.evaluation.metrics import hit_rate, ndcg
from llmrec.evaluation.predictions import Predictions
from llmrec.inference.pools import Pools
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder
from llmrec.stages import pipeline, recommend

SEEDS = (0, 1, 2)
COMMON = {
    "data": {
        "source": "ml-100k",
        "year_in_title": False,
        "split": "by_user",
        "subset": {"valid": 8, "test": 40},
    },
    "prompt": {"task": "similar_users", "domain": "movie", "max_history": 5},
    "objective": {"name": "msl"},
    "rows": {"shape": "single", "count": 48},
    "train": {
        "learning_rate": 1.0e-3,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 3,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_steps": 4,
    },
    "decode": {
        "batch_size": 8,
        "beams": 10,
        "top_k": 10,
        "grounding": {"beams": 1, "max_new_tokens": 12},
    },
}
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
    tree |= {
        "name": f"{cell.name}-{arm}",
        "seed": cell.seed,
        "output_dir": str(given.runs),
        "systems": systems,
    }
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


PROTOCOLS = {
    "among": ("Among 20 candidates", "HR@1", "NDCG@10"),
    "whole": ("The whole catalog", "HR@10", "NDCG@10"),
    "among-few": ("Few-shot, among 20 candidates: 64 training users", "HR@1", "NDCG@10"),
}
METRICS = ("HR@1", "HR@10", "NDCG@10", "NLL")
Values = dict[str, np.ndarray]


def measured(cell: Cell, given: argparse.Namespace) -> dict[str, Values]:
    """Per-user metrics of each system of a finished cell by "arm system", and the user ids."""
    found = {}
    for arm in cell.arms:
        _, folder = recipe_of(cell, arm, given)
        test = Examples.read(folder.examples("test"))
        for path in sorted((folder.root / "predictions").glob("*.parquet")):
            answers = Predictions.read(path)
            lists = answers.rankings()
            valid = np.array([len(one) > 0 for one in lists], float)
            values = {"NLL": answers.nll, "user": answers.user_ids, "valid": valid}
            for k in (1, 10):
                values[f"HR@{k}"] = hit_rate(lists, test.targets, k)
            values["NDCG@10"] = ndcg(lists, test.targets, 10)
            values["HR@1 of valid"] = np.where(valid > 0, values["HR@1"], np.nan)
            found[f"{arm} {path.stem}"] = values
    return found


def pooled_over(by_cell: list[dict[str, Values]]) -> dict[str, Values]:
    """The same with the users of all seeds end to end."""
    return {
        name: {k: np.concatenate([one[name][k] for one in by_cell]) for k in values}
        for name, values in by_cell[0].items()
    }


def said(name: str) -> str:
    """How "arm system" is called in the tables."""
    arm, system = name.split()
    return system if system in ("popularity", "markov") else f"{system}, {ARMS[arm].said}"


def order_of(names: Iterable[str]) -> list[str]:
    """Baselines, then untuned, then tuned, each through the arms."""
    systems = ["popularity", "markov", "untuned", "tuned", *FREE]
    return sorted(
        names, key=lambda n: (systems.index(n.split()[1]), list(ARMS).index(n.split()[0]))
    )


def cell_of(values: np.ndarray, users: np.ndarray) -> str:
    """Mean and interval over users as text."""
    i = mean_interval(values, users)
    if not i.n:
        return "none"
    return f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]"


def means(pooled: dict[str, Values], by_cell: list[dict[str, Values]]) -> list[str]:
    """The table of means with intervals over users, and the NLL of each seed."""
    ranked = [n for n in order_of(pooled) if not n.endswith("_free")]
    lines = [
        "| | HR@1 | HR@10 | NDCG@10 | target NLL, nats | NLL by seed |",
        "|---|---|---|---|---|---|",
    ]
    for name in ranked:
        v = pooled[name]
        seeds = ", ".join(f"{np.mean(one[name]['NLL']):.2f}" for one in by_cell)
        cells_ = " | ".join(cell_of(v[m], v["user"]) for m in METRICS)
        lines.append(f"| {said(name)} | {cells_} | {seeds} |")
    free = [n for n in order_of(pooled) if n.endswith("_free")]
    if free:
        lines += [
            "",
            "Answers written freely (greedy), as the paper asks for them:",
            "",
            "| | HR@1 over all users | HR@1 over valid answers | valid answers |",
            "|---|---|---|---|",
        ]
        for name in free:
            v = pooled[name]
            cells_ = [cell_of(v[m], v["user"]) for m in ("HR@1", "HR@1 of valid", "valid")]
            lines.append(f"| {said(name)} | {' | '.join(cells_)} |")
    return [*lines, ""]


def tests(pooled: dict[str, Values], metrics: tuple[str, ...]) -> list[str]:
    """Paired differences between arms, after Holm over each metric."""
    wanted = [
        ("random", "none"),
        ("retrieval", "none"),
        ("selection", "none"),
        ("retrieval", "random"),
        ("selection", "retrieval"),
    ]
    asked = []
    for system in ("untuned", "tuned"):
        pairs = [(f"{a} {system}", f"{b} {system}") for a, b in wanted]
        asked += [(a, b, m) for a, b in pairs if a in pooled and b in pooled for m in metrics]
    asked += [("none tuned", "none untuned", m) for m in metrics if "none untuned" in pooled]
    lines = ["| | against | metric | difference | p |", "|---|---|---|---|---|"]
    for metric in metrics:
        family = [(a, b) for a, b, m in asked if m == metric]
        found = [
            paired_test(pooled[a][metric], pooled[b][metric], pooled[a]["user"]) for a, b in family
        ]
        adjusted = holm([t.p_value for t in found])
        for (a, b), t, p in zip(family, found, adjusted, strict=True):
            lines.append(
                f"| {said(a)} | {said(b)} | {metric} | {t.difference:+.3f} "
                f"[{t.low:+.3f}, {t.high:+.3f}] | {p:.3f} |"
            )
    return [*lines, ""]


def prompts_of(cell: Cell, arm: str, system: str, given: argparse.Namespace) -> Values:
    """What each test prompt of an arm showed, as groups that may tell where it helped."""
    _, folder = recipe_of(cell, arm, given)
    test, pools = Examples.read(folder.examples("test")), Pools.read(folder.pools("test"))
    shown = json.loads(folder.shown(system).read_text("utf-8"))
    counts = np.bincount(
        Interactions.read(folder.interactions).position, minlength=len(Catalog.read(folder.items))
    )
    users = [[pool[i] for i in at] for pool, at in zip(pools.neighbours, shown, strict=True)]
    likeness = np.array([max((n.score for n in few), default=0.0) for few in users])
    chosen = [t in [n.chosen for n in few] for few, t in zip(users, test.targets, strict=True)]
    there = [any(t in n.history for n in few) for few, t in zip(users, test.targets, strict=True)]
    return {
        "target is what a shown user chose next": np.array(chosen),
        "target stands in a shown history": np.array(there),
        "target is shown nowhere": ~(np.array(chosen) | np.array(there)),
        "most similar user: upper half": likeness > np.median(likeness),
        "most similar user: lower half": likeness <= np.median(likeness),
        "target popular: upper half": counts[test.targets] > np.median(counts[test.targets]),
        "target popular: lower half": counts[test.targets] <= np.median(counts[test.targets]),
    }


def helped(group: list[Cell], pooled: dict[str, Values], given: argparse.Namespace) -> list[str]:
    """NLL with retrieved users less NLL without, by what the prompt showed."""
    lines = [
        "| prompts where | untuned: NLL difference | n | tuned: NLL difference | n |",
        "|---|---|---|---|---|",
    ]
    columns: dict[str, list[str]] = {}
    for system in ("untuned", "tuned"):
        parts = [prompts_of(cell, "retrieval", system, given) for cell in group]
        mine, other = pooled[f"retrieval {system}"], pooled[f"none {system}"]
        for name in parts[0]:
            rows = np.concatenate([part[name] for part in parts])
            text = "none"
            if rows.sum() > 1:
                t = paired_test(mine["NLL"][rows], other["NLL"][rows], mine["user"][rows])
                text = f"{t.difference:+.3f} [{t.low:+.3f}, {t.high:+.3f}]"
            columns.setdefault(name, []).append(f"{text} | {int(rows.sum())}")
    return [*lines, *(f"| {name} | {' | '.join(shown)} |" for name, shown in columns.items()), ""]


def selections(group: list[Cell], given: argparse.Namespace) -> list[str]:
    """How far the model's selection departs from retrieval, and how it rates."""
    lines = [
        "| seed | shown users that are not retrieval's first three (untuned, tuned) | ratings "
        "of the ten (training prompts) |",
        "|---|---|---|",
    ]
    for cell in group:
        _, folder = recipe_of(cell, "selection", given)
        shares = [
            np.mean(
                [
                    len(set(at) - set(range(len(at)))) / max(1, len(at))
                    for at in json.loads(folder.shown(system).read_text("utf-8"))
                ]
            )
            for system in ("untuned", "tuned")
        ]
        first = json.loads((folder.selected / "0.json").read_text("utf-8"))
        spread = np.mean([np.ptp(one["ratings"]) for one in first if one["ratings"]])
        mean = np.mean([np.mean(one["ratings"]) for one in first if one["ratings"]])
        lines.append(
            f"| {cell.seed} | {shares[0]:.2f}, {shares[1]:.2f} | mean {mean:.2f}, "
            f"largest less smallest {spread:.2f} |"
        )
    return [*lines, ""]


def page(given: argparse.Namespace) -> str:
    """The measured part of results/adaptrec.md."""
    lines = [_made_with(given), ""]
    for key, (title, *metrics) in PROTOCOLS.items():
        group = [c for c in cells() if c.name.rpartition("-")[0] == key and _finished(c, given)]
        if not group:
            continue
        by_cell = [measured(cell, given) for cell in group]
        pooled = pooled_over(by_cell)
        first = next(iter(pooled.values()))["user"]
        lines += [
            f"## {title}",
            "",
            f"n = {len(first)} (user, seed) pairs of {len(set(first))} "
            f"users, {len(group)} seed(s):",
            "",
            *means(pooled, by_cell),
            "Paired differences, the same users and seeds (p by sign flips of users, after "
            "Holm over each metric's):",
            "",
            *tests(pooled, (*metrics, "NLL")),
        ]
        if "retrieval untuned" in pooled:
            lines += [
                "Which prompts retrieved users helped (below 0) or hurt:",
                "",
                *helped(group, pooled, given),
                "What the model selected:",
                "",
                *selections(group, given),
            ]
    return "\n".join(lines)


def _made_with(given: argparse.Namespace) -> str:
    recipe, folder = recipe_of(next(cells()), "none", given)
    known = folder.provenance(recipe)
    packages = ", ".join(f"{name} {version}" for name, version in known["packages"].items())
    changed = f"; changed in every arm: {', '.join(given.set)}" if given.set else ""
    return f"llmrec {known['llmrec']}, Python {known['python']}, {packages}{changed}."


def _finished(cell: Cell, given: argparse.Namespace) -> bool:
    """Whether every answer that the cell's recipes ask for stands."""
    recipes = [recipe_of(cell, arm, given) for arm in cell.arms]
    return all(folder.predictions(s).exists() for recipe, folder in recipes for s in recipe.systems)


def main() -> None:
    """Run what is missing, then write the page."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=Path, required=True)
    options.add_argument(
        "--only", action="append", help="cells to run, such as among-s0; none: only the page"
    )
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
    for cell in cells():
        if given.only is None or cell.name in given.only:
            run(cell, given)
    if given.out:
        given.out.write_text(page(given), "utf-8")


if __name__ == "__main__":
    main()
