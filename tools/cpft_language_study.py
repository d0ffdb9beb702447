"""The language model's part of results/cpft.md: fine-tuning with and without conformal prediction.

Arms of a seed train a fresh adapter on the same rows for as many steps; they differ in the losses
beside the cross-entropy. Best-first search ranks the whole catalog, so every figure rests on the
probabilities of all items. Validation users fit a temperature; test users are cut in two: one half
finds the thresholds of the prediction sets, the other measures them. What stands is not made again.

    python tools/cpft_language_study.py --runs runs/cpft_language --out tables.md
    python tools/cpft_language_study.py --runs runs/big --set rows.count=2000 --set \
        model.base=meta-llama/Llama-3.2-3B                        # a machine that affords more
"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.decoding.beam import Scoring
from llmrec.decoding.best_first import best_first
from llmrec.decoding.open_items import OpenItems
from llmrec.decoding.shared_prompt import SharedPrompt
from llmrec.evaluation.calibration import (
    ece_intervals,
    fit_temperature,
    listed,
    temperature_scaled,
    top_k_mass,
)
from llmrec.evaluation.conformal import Rule, set_sizes, target_scores, threshold
from llmrec.evaluation.intervals import holm, mean_interval, paired_test
from llmrec.evaluation.metrics import hit_rate, ndcg
from llmrec.inference.from_recipe import adapter_of, base_of, encoder_of
from llmrec.model.loading import load_tuned
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder
from llmrec.stages import pipeline

ALPHAS = (0.1, 0.3)
LAC = Rule("lac")
ARMS = {
    "ce": ("CE alone", None),
    "hard": ("CE + CPS + CPD, hard", {"beta": 1.0, "gamma": 1.0}),
    "smooth": ("CE + CPS + CPD, smooth", {"beta": 1.0, "gamma": 1.0, "smooth": True}),
}
TREE = {
    "data": {"source": "ml-100k", "year_in_title": False, "subset": {"valid": 40, "test": 150}},
    "prompt": {"max_history": 10},
    "model": {"lora": {"r": 8}},
    "objective": {"name": "msl"},
    "rows": {"shape": "single", "count": 64},
    "train": {
        "num_train_epochs": 2,
        "learning_rate": 1.0e-3,
        "warmup_steps": 2,
        "lr_scheduler_type": "constant_with_warmup",
        "per_device_train_batch_size": 8,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_steps": 2,
    },
    "systems": ["tuned"],
}


def recipe_of(arm: str, seed: int, given: argparse.Namespace):
    """The arm's recipe and run folder."""
    tree = {"name": f"{arm}-s{seed}", "seed": seed, "output_dir": str(given.runs), **TREE}
    if ARMS[arm][1] is not None:
        tree["conformal"] = ARMS[arm][1]
    path = given.runs / "recipes" / f"{tree['name']}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, indent=1), "utf-8")  # JSON is YAML
    recipe = load(path, given.set)
    return recipe, RunFolder.of(recipe)


def run(arm: str, seed: int, given: argparse.Namespace) -> None:
    """Train an arm and rank the catalog for its users."""
    recipe, folder = recipe_of(arm, seed, given)
    begun = time.monotonic()
    pipeline.train(recipe, folder)
    if not (folder.root / "seconds.json").exists():
        (folder.root / "seconds.json").write_text(json.dumps(time.monotonic() - begun), "utf-8")
    catalog = Catalog.read(folder.items)
    encoder = encoder_of(recipe, catalog)
    model = None
    for split in ("valid", "test"):
        path = folder.root / f"{split}.npz"
        if path.exists():
            continue
        model = model or load_tuned(base_of(recipe), adapter_of(recipe, folder))
        examples = Examples.read(folder.examples(split))
        scores = np.full((len(examples), len(catalog)), -np.inf, np.float32)
        for begin in range(0, len(examples), 4):
            rows = range(begin, min(begin + 4, len(examples)))
            histories = [examples.history(i) for i in rows]
            shared = SharedPrompt(model, [encoder.prompt(h).ids for h in histories])
            found = best_first(
                shared,
                OpenItems(encoder.trie, histories),
                top_k=len(catalog),
                scoring=Scoring(True),
                expand=192,
            )
            for i, ranking in zip(rows, found.rankings, strict=True):
                scores[i, ranking.positions] = ranking.scores
        np.savez(path.with_suffix(".partial.npz"), scores=scores)
        path.with_suffix(".partial.npz").rename(path)
        logging.info("study: %s seed %d, %s ranked", arm, seed, split)


def measured(arm: str, seed: int, given: argparse.Namespace) -> dict[str, np.ndarray]:
    """Figures of each test user; NaN where a user finds thresholds and does not measure."""
    _, folder = recipe_of(arm, seed, given)
    lists = {}
    for split in ("valid", "test"):
        examples = Examples.read(folder.examples(split))
        scores = np.load(folder.root / f"{split}.npz")["scores"]
        order = [np.argsort(-row, kind="stable")[: int(np.isfinite(row).sum())] for row in scores]
        lists[split] = (
            examples,
            order,
            listed(order, [row[o] for row, o in zip(scores, order, strict=True)], examples.targets),
        )
    examples, order, stated = lists["test"]
    temperature = fit_temperature(lists["valid"][2])
    scaled = temperature_scaled(stated, temperature)
    users = np.random.default_rng(seed).permutation(len(examples))
    calibrates = np.zeros(len(examples), bool)
    calibrates[users[: len(users) // 2]] = True
    found = {
        "user": examples.user_ids,
        "calibrates": calibrates,
        "temperature": np.full(len(examples), temperature),
    }
    for k in (10, 50):
        found[f"R@{k}"] = hit_rate(order, examples.targets, k)
        found[f"N@{k}"] = ndcg(order, examples.targets, k)
    known = np.load(folder.root / "test.npz")["scores"]
    found["NLL"] = -known[np.arange(len(examples)), examples.targets].astype(float)
    for name, one in (("stated", stated), ("scaled", scaled)):
        found[f"{name} mass"], found[f"{name} hit"] = top_k_mass(one, 10)
    conformity = target_scores(scaled, LAC)
    for a in ALPHAS:
        limit = threshold(conformity[calibrates], a)
        found[f"covered {a}"] = np.where(calibrates, np.nan, conformity <= limit)
        found[f"size {a}"] = np.where(calibrates, np.nan, set_sizes(scaled, LAC, limit))
    return found


def page(given: argparse.Namespace) -> str:
    """The tables."""
    root = {(a, s): recipe_of(a, s, given)[1].root for a in ARMS for s in range(given.seeds)}
    done = [s for s in range(given.seeds) if all((root[a, s] / "test.npz").exists() for a in ARMS)]
    by_seed = {a: [measured(a, s, given) for s in done] for a in ARMS}
    pooled = {
        a: {k: np.concatenate([f[k] for f in found]) for k in found[0]}
        for a, found in by_seed.items()
    }
    users = pooled["ce"]["user"]
    lines = [
        f"{len(done)} seed(s), n = {len(users)} (user, seed) pairs of {len(set(users))} users.",
        "",
        "| | R@10 | N@10 | R@50 | N@50 | NLL, nats | temperature by seed | training, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, (said, _) in ARMS.items():
        cells = [_interval(pooled[arm][m], users) for m in ("R@10", "N@10", "R@50", "N@50", "NLL")]
        heat = ", ".join(f"{f['temperature'][0]:.2f}" for f in by_seed[arm])
        seconds = ", ".join(
            f"{json.loads((root[arm, s] / 'seconds.json').read_text()):.0f}" for s in done
        )
        lines.append(f"| {said} | {' | '.join(cells)} | {heat} | {seconds} |")
    lines += [
        "",
        "| | ECE, mass of 10, as stated | at the temperature | coverage 0.9 | set size | "
        "coverage 0.7 | set size |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, (said, _) in ARMS.items():
        p = pooled[arm]
        binned = [(p[f"{w} mass"], p[f"{w} hit"], "mass") for w in ("stated", "scaled")]
        eces = ece_intervals(binned, np.unique(users, return_inverse=True)[1])
        cells = [f"{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}]" for e in eces]
        for a in ALPHAS:
            cells += [_interval(p[f"covered {a}"], users), _interval(p[f"size {a}"], users, 0)]
        lines.append(f"| {said} | {' | '.join(cells)} |")
    tests = [
        (a, m, paired_test(pooled[a][m], pooled["ce"][m], users))
        for a in ARMS
        if a != "ce"
        for m in ("N@10", "R@50", "NLL")
    ]
    adjusted = holm([t.p_value for *_, t in tests])
    lines += [
        "",
        "Paired differences from CE alone (p by sign flips of users, after Holm):",
        "",
        "| | metric | difference | p |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {ARMS[a][0]} | {m} | {t.difference:+.4f} [{t.low:+.4f}, {t.high:+.4f}] | {p:.3f} |"
        for (a, m, t), p in zip(tests, adjusted, strict=True)
    ]
    return "\n".join([*lines, ""])


def _interval(values: np.ndarray, users: np.ndarray, decimals: int = 3) -> str:
    kept = np.isfinite(values)
    i = mean_interval(values[kept], users[kept])
    return f"{i.mean:.{decimals}f} [{i.low:.{decimals}f}, {i.high:.{decimals}f}]"


def main() -> None:
    """Run what is missing, then write the tables."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=Path, required=True)
    options.add_argument("--seeds", type=int, default=2)
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
    for seed in range(given.seeds):
        for arm in ARMS:
            run(arm, seed, given)
    if given.out:
        given.out.write_text(page(given), "utf-8")


if __name__ == "__main__":
    main()
