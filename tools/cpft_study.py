"""The study behind results/cpft.md: a network, fine-tuned with and without conformal prediction.

Every arm of a cell (data set, network, seed) is a file below --runs, and what stands is not made
again, so the script can be stopped at any moment and started again. All arms of a cell go on from
one base network with the same batches and rate; every arm keeps its best fine-tuning epoch by
validation NDCG@10. Test users are cut in two: one half finds the thresholds of the prediction sets,
the other measures them.

    python tools/cpft_study.py --runs runs/cpft_study --out results/cpft.md
    python tools/cpft_study.py --runs runs/cpft_study --beauty FOLDER --out results/cpft.md
    python tools/cpft_study.py --runs runs/cpft_study --only ml-sasrec-s0     # a part of it
    python tools/cpft_study.py --runs runs/cpft_study --only none --out results/cpft.md
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from llmrec.baselines.fine_tuning import FineTuning
from llmrec.baselines.ranking import chunks, predict
from llmrec.baselines.sequential import FittedNetwork
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples, Interactions
from llmrec.evaluation.calibration import ece_intervals, listed, top_k_mass
from llmrec.evaluation.conformal import Rule, set_sizes, target_scores, threshold
from llmrec.evaluation.intervals import holm, mean_interval, paired_test
from llmrec.evaluation.metrics import hit_rate, ndcg
from llmrec.methods import networks
from llmrec.methods.network_sets import places_loss
from llmrec.recipe.conformal import Conformal
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder
from llmrec.stages import pipeline, prepare

ALPHAS = (0.1, 0.3)
LAC = Rule("lac")
ML_SEEDS, BEAUTY_SEEDS = range(5), range(3)
# MovieLens: the recipe's defaults. Beauty: the better of those and these by validation NDCG@10.
SIZES = {
    "ml": {},
    "beauty": {"learning_rate": 1.0e-3, "batch_size": 128, "max_epochs": 30, "dropout": 0.3},
}
# Fine-tuning: at most so many epochs, and how many without a better one end it.
EPOCHS = {"ml": (5, 2), "beauty": (2, 1)}
CONFIDENT = 5_000  # test users of a cell, at most, whose prediction sets are measured


@dataclass(frozen=True)
class Arm:
    """One line of the tables; `losses` None: cross-entropy alone."""

    said: str
    losses: dict | None = None


ARMS = {
    "ce": Arm("CE alone, as many epochs"),
    "both": Arm("CE + 10 CPS + CPD, hard (as published)", {"beta": 10.0, "gamma": 1.0}),
    "light": Arm("CE + CPS + CPD, hard", {"beta": 1.0, "gamma": 1.0}),
    "cps": Arm("CE + CPS, hard", {"beta": 1.0, "gamma": 0.0}),
    "cpd": Arm("CE + CPD, hard", {"beta": 0.0, "gamma": 1.0}),
    "smooth": Arm("CE + 0.01 CPS + CPD, smooth", {"beta": 0.01, "gamma": 1.0, "smooth": True}),
}
# A machine of two cores affords these on Beauty; CE runs for as many epochs, so it comes last.
ARMS_OF = {
    "ml": (*(name for name in ARMS if name != "ce"), "ce"),
    "beauty": ("light", "cps", "cpd", "ce"),
}


@dataclass(frozen=True)
class Cell:
    """One data set, network and seed."""

    data: str
    kind: str
    seed: int

    @property
    def name(self) -> str:
        """How it is called on the command line and in folders."""
        return f"{self.data}-{self.kind}-s{self.seed}"


def cells(given: argparse.Namespace) -> Iterator[Cell]:
    """All of the study."""
    for seed in ML_SEEDS:
        yield Cell("ml", "sasrec", seed)
        yield Cell("ml", "gru4rec", seed)
    if given.beauty is not None:
        for seed in BEAUTY_SEEDS:
            yield Cell("beauty", "sasrec", seed)


def recipe_of(cell: Cell, given: argparse.Namespace):
    """The cell's recipe and the folder of its data and base network."""
    tree = {
        "name": cell.name,
        "seed": cell.seed,
        "output_dir": str(given.runs),
        "data": {"source": "ml-100k"},
        "network": {"kind": cell.kind, **SIZES[cell.data]},
        "systems": ["network"],
    }
    if cell.data == "beauty":
        folder = given.beauty.absolute()
        tree["data"] = {
            "source": str(folder / "interactions.parquet"),
            "format": "parquet",
            "items": str(folder / "items.parquet"),
            "columns": {"timestamp": "order", "rating": None},
        }
        tree["prompt"] = {"domain": "product"}
    path = given.runs / "recipes" / f"{cell.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, indent=1), "utf-8")  # JSON is YAML
    recipe = load(path, [])
    return recipe, RunFolder.of(recipe)


def run(cell: Cell, given: argparse.Namespace) -> None:
    """Train and measure every arm of a cell that does not stand."""
    recipe, folder = recipe_of(cell, given)
    prepare.run(recipe, folder)
    made = pipeline.train(recipe, folder)["base"]
    base = networks.fitted(recipe, folder, "base")
    train, valid = Interactions.read(folder.interactions), Examples.read(folder.examples("valid"))
    if not _file(folder, "base").exists():
        _measure(folder, "base", base, cell, {**made, "valid": base.ndcg(valid, True)})
    for name in ARMS_OF[cell.data]:
        if _file(folder, name).exists():
            continue
        arm, loss, (epochs, patience) = ARMS[name], None, EPOCHS[cell.data]
        if arm.losses is not None:
            loss = places_loss(Conformal(**arm.losses))
        else:
            ended = [_read(folder, n)[1]["epochs"] for n in ARMS_OF[cell.data] if n != "ce"]
            patience, epochs = None, max(ended)
        plan = FineTuning(max_epochs=epochs, patience=patience)
        tuned = plan.fit(base, train, valid, True, cell.seed, loss)
        save_file(tuned.fitted.network.state_dict(), folder.root / f"{name}.safetensors")
        _measure(
            folder,
            name,
            tuned.fitted,
            cell,
            {
                "epoch": tuned.fitted.epoch,
                "epochs": tuned.epochs,
                "seconds": tuned.seconds,
                "valid": tuned.ndcg,
                "base_valid": tuned.base_ndcg,
                "plan": asdict(plan),
            },
        )


def _measure(folder: RunFolder, name: str, fitted: FittedNetwork, cell: Cell, facts: dict) -> None:
    """Every figure of every test user, in one file; users in chunks.

    Figures of confidence need the whole catalog's ranking, so those of users beyond `CONFIDENT` are
    NaN. `calibrates`: 1 for users that find thresholds, 0 for those that measure, else NaN.
    """
    begun = time.monotonic()
    test, size = Examples.read(folder.examples("test")), len(Catalog.read(folder.items))
    shown = predict(fitted, test.histories(), test.targets, size, 50, True)
    lists = list(shown.positions)
    found = {"NLL": shown.nll}
    for k in (10, 50):
        found[f"R@{k}"] = hit_rate(lists, test.targets, k)
        found[f"N@{k}"] = ndcg(lists, test.targets, k)
    drawn = np.random.default_rng(cell.seed).permutation(len(test))[:CONFIDENT]
    finding, measuring = drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]
    calibrates = np.full(len(test), np.nan)
    calibrates[finding], calibrates[measuring] = 1.0, 0.0

    def ranked(users: np.ndarray):
        for part in chunks(len(users), size):
            asked = test.take(users[part])
            whole = predict(fitted, asked.histories(), asked.targets, size, size, True)
            kept = [row[row >= 0] for row in whole.positions]
            scores = [s[: len(k)] for s, k in zip(whole.scores, kept, strict=True)]
            yield users[part], listed(kept, scores, asked.targets)

    limits = {}
    for users in (finding, measuring):
        for part, known in ranked(users):
            mass, hit = top_k_mass(known, 10)
            for key, values in {
                "top1": known.probabilities[:, 0],
                "right": known.place == 0,
                "mass10": mass,
                "hit10": hit,
                "score": target_scores(known, LAC),
                **{f"size {a}": set_sizes(known, LAC, limit) for a, limit in limits.items()},
            }.items():
                found.setdefault(key, np.full(len(test), np.nan))[part] = values
        limits = limits or {a: threshold(found["score"][finding], a) for a in ALPHAS}
    for a in ALPHAS:
        found[f"covered {a}"] = np.full(len(test), np.nan)
        found[f"covered {a}"][measuring] = found["score"][measuring] <= limits[a]
    found["calibrates"] = calibrates
    np.savez(_file(folder, name).with_suffix(".partial.npz"), facts=json.dumps(facts), **found)
    _file(folder, name).with_suffix(".partial.npz").rename(_file(folder, name))
    logging.info("study: %s %s measured in %.0f s", cell.name, name, time.monotonic() - begun)


def _file(folder: RunFolder, name: str) -> Path:
    return folder.root / f"{name}.npz"


def _read(folder: RunFolder, name: str) -> tuple[dict[str, np.ndarray], dict]:
    with np.load(_file(folder, name)) as held:
        found = {key: held[key] for key in held.files if key != "facts"}
        return found, json.loads(str(held["facts"]))


def _finished(cell: Cell, given: argparse.Namespace) -> bool:
    _, folder = recipe_of(cell, given)
    return all(_file(folder, name).exists() for name in ("base", *ARMS_OF[cell.data]))


def table(group: list[Cell], given: argparse.Namespace) -> list[str]:
    """Means over seeds and users with intervals over users, then paired tests."""
    names = ("base", *(name for name in ARMS if name in ARMS_OF[group[0].data]))
    read = {n: [_read(recipe_of(c, given)[1], n) for c in group] for n in names}
    pooled = {
        n: {k: np.concatenate([f[k] for f, _ in read[n]]) for k in read[n][0][0]} for n in names
    }
    users = np.tile(np.arange(len(read["base"][0][0]["NLL"])), len(group))
    sizes = {
        n: {a: [f[f"size {a}"][f["calibrates"] == 0].mean() for f, _ in read[n]] for a in ALPHAS}
        for n in names
    }
    lines = [
        f"{len(group)} seed(s), n = {len(users)} (user, seed) pairs of {users.max() + 1} users.",
        "",
        "| | R@10 | N@10 | R@50 | N@50 | NLL, nats | validation N@10 by seed | kept epoch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for n in names:
        cells_ = [
            _interval(pooled[n][m], users, 4 if m != "NLL" else 3)
            for m in ("R@10", "N@10", "R@50", "N@50", "NLL")
        ]
        valid = ", ".join(f"{facts['valid']:.4f}" for _, facts in read[n])
        epochs = ", ".join(f"{facts['epoch']}" for _, facts in read[n])
        lines.append(f"| {_said(n)} | {' | '.join(cells_)} | {valid} | {epochs} |")
    lines += [
        "",
        "Confidence, measured on the half of the test users that finds no threshold:",
        "",
        "| | ECE, top 1 | ECE, mass of 10 against hit@10 | coverage 0.9 | set size | "
        "coverage 0.7 | set size |",
        "|---|---|---|---|---|---|---|",
    ]
    for n in names:
        measuring = pooled[n]["calibrates"] == 0
        own = {k: v[measuring] for k, v in pooled[n].items()}
        mine = users[measuring]
        eces = ece_intervals(
            [(own["top1"], own["right"] == 1, "mass"), (own["mass10"], own["hit10"] == 1, "mass")],
            mine,
        )
        shown = [f"{e.mean:.4f} [{e.low:.4f}, {e.high:.4f}]" for e in eces]
        for a in ALPHAS:
            shown += [
                _interval(own[f"covered {a}"].astype(float), mine, 3),
                _interval(own[f"size {a}"].astype(float), mine, 0),
            ]
        lines.append(f"| {_said(n)} | {' | '.join(shown)} |")
    lines += [
        "",
        "Mean set size seed by seed: a threshold is found once a seed, and moves all of "
        "its sets together, which the intervals over users above do not hold.",
        "",
        "| | coverage 0.9, by seed | coverage 0.7, by seed |",
        "|---|---|---|",
    ]
    for n in names:
        by_seed = [", ".join(f"{size:.0f}" for size in sizes[n][a]) for a in ALPHAS]
        lines.append(f"| {_said(n)} | {' | '.join(by_seed)} |")
    lines += [
        "",
        "Paired differences, the same users and seeds (p by sign flips of users, after "
        "Holm over this table):",
        "",
        "| | against | metric | difference | p |",
        "|---|---|---|---|---|",
    ]
    tests = []
    for n in [n for n in names if n != "base"]:
        for other in ("base", "ce")[: 1 if n == "ce" else 2]:
            for metric in ("N@10", "R@50", "NLL"):
                test = paired_test(pooled[n][metric], pooled[other][metric], users)
                tests.append((n, other, metric, test))
    adjusted = holm([t.p_value for *_, t in tests])
    lines += [
        f"| {_said(n)} | {_said(o)} | {m} | {t.difference:+.4f} [{t.low:+.4f}, "
        f"{t.high:+.4f}] | {p:.3f} |"
        for (n, o, m, t), p in zip(tests, adjusted, strict=True)
    ]
    lines += [
        "",
        "Cost (seconds of training and validation; the share is of base training):",
        "",
        "| | epochs run | seconds | share | share by epoch |",
        "|---|---|---|---|---|",
    ]
    base = np.array([facts["seconds"] for _, facts in read["base"]])
    for n in [n for n in names if n != "base"]:
        seconds = np.array([facts["seconds"] for _, facts in read[n]])
        epochs = np.array([facts["epochs"] for _, facts in read[n]])
        lines.append(
            f"| {_said(n)} | {epochs.mean():.1f} | {seconds.mean():.0f} of {base.mean():.0f} | "
            f"{(seconds / base).mean():.2f} | {(seconds / epochs / base).mean():.3f} |"
        )
    return [*lines, ""]


def _said(name: str) -> str:
    return "base" if name == "base" else ARMS[name].said


def _interval(values: np.ndarray, users: np.ndarray, decimals: int) -> str:
    finite = np.isfinite(values)
    i = mean_interval(values[finite], users[finite])
    return f"{i.mean:.{decimals}f} [{i.low:.{decimals}f}, {i.high:.{decimals}f}]"


def page(given: argparse.Namespace) -> str:
    """The measured part of results/cpft.md."""
    titles = {
        ("ml", "sasrec"): "SASRec on MovieLens-100K",
        ("ml", "gru4rec"): "GRU4Rec on MovieLens-100K",
        ("beauty", "sasrec"): "SASRec on Amazon Beauty (2014)",
    }
    lines = []
    for (data, kind), title in titles.items():
        group = [
            c for c in cells(given) if (c.data, c.kind) == (data, kind) and _finished(c, given)
        ]
        if group:
            lines += [f"## {title}", "", *table(group, given)]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then write the page."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=Path, required=True)
    options.add_argument("--beauty", type=Path, help="folder of Amazon Beauty's Parquet files")
    options.add_argument("--only", action="append", help="cells to run, such as ml-sasrec-s0")
    options.add_argument("--out", type=Path, help="write the tables here")
    given = options.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    for cell in cells(given):
        if given.only is None or cell.name in given.only:
            run(cell, given)
    if given.out:
        given.out.write_text(page(given), "utf-8")


if __name__ == "__main__":
    main()
