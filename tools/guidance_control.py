"""How much of a guidance gain is the language model's, and how much would a temperature give?

Guidance raises the baseline's probabilities to the power 1 - g, which alone can mend a baseline
that is too sure of itself. So each guide stands here three ways on the test users of a finished
run: as it is, with a temperature, and guided; g and the temperature are chosen in validation.

    python tools/guidance_control.py runs/demo --out results/guidance.md
"""

import argparse
from pathlib import Path

import numpy as np

from llmrec.baselines.markov import Markov
from llmrec.baselines.tuning import choose
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples, Interactions
from llmrec.decoding.open_items import OpenItems, segment_log_softmax
from llmrec.evaluation.intervals import paired_test
from llmrec.inference.engine import closed_items
from llmrec.recipe.systems import System
from llmrec.runs.folder import open_run
from llmrec.systems.resources import Resources

POWERS = [tenth / 10 for tenth in range(3, 16)]
WEIGHTS = [twentieth / 20 for twentieth in range(21)]


def main() -> None:
    """Score both splits once, then every guide from the same scores."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("run")
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    recipe, folder = open_run(given.run, [])
    catalog = Catalog.read(folder.items)
    train = Interactions.read(folder.interactions)
    splits = {name: Examples.read(folder.examples(name)) for name in ("valid", "test")}
    models = Resources(recipe, folder).language
    engine, paths = models.engine(System.parse("tuned")), {}
    for name, split in splits.items():
        histories = split.histories()
        prompts = [models.encoder.prompt(history).ids for history in histories]
        paths[name] = list(engine.paths(prompts, histories, split.targets))
    tuned = choose("markov", train, splits["valid"], catalog, True, recipe.seed)
    guides = {
        "first-order Markov (reach 1, last item, forward only)": Markov(
            reach=1, backward=0.0, last=1, prior=1.0
        ).fit(train, len(catalog)),
        "Markov as the demo tunes it": tuned.fitted,
    }
    lines = [
        "| guide | alone | best temperature | guided | guided against alone | "
        "guided against best temperature |",
        "|---|---|---|---|---|---|",
    ]
    for name, fitted in guides.items():
        q = {s: fitted.probabilities(split.histories()) for s, split in splits.items()}

        def nll(split, model_weight, guide_power, q=q):
            return scored(
                paths[split],
                splits[split],
                q[split],
                models.encoder.trie,
                model_weight,
                guide_power,
            )

        power = min(POWERS, key=lambda h: nll("valid", 0.0, h).mean())
        weight = min(WEIGHTS, key=lambda g: nll("valid", g, 1 - g).mean())
        alone = nll("test", 0.0, 1.0)
        tempered, guided = nll("test", 0.0, power), nll("test", weight, 1 - weight)
        lines.append(
            f"| {name} | {alone.mean():.3f} | {tempered.mean():.3f} (power {power:g}) | "
            f"{guided.mean():.3f} (g {weight:g}) | {words(guided, alone)} | "
            f"{words(guided, tempered)} |"
        )
    table = "\n".join(lines)
    print(table)
    if given.out:
        given.out.write_text(page(table, len(splits["test"]), len(splits["valid"])), "utf-8")


def scored(paths, examples, q, trie, model_weight, guide_power) -> np.ndarray:
    """(E,) target NLL under weight * log p + power * log q, renormalised at each node."""
    nll = np.empty(len(examples))
    histories = examples.histories()
    for batch, scores in paths:
        open_items = OpenItems(trie, closed_items([histories[i] for i in batch], True), q[batch])
        mass = open_items.log_mass(scores.user[scores.owner], scores.children)
        mixed = model_weight * scores.logits + guide_power * mass
        log_p = segment_log_softmax(mixed, scores.owner)[scores.chosen]
        nll[batch] = np.bincount(scores.user, -log_p, minlength=len(batch))
    return nll


def words(a: np.ndarray, b: np.ndarray) -> str:
    """Mean difference with its 95 % interval."""
    test = paired_test(a, b)
    return f"{test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}]"


def page(table: str, tests: int, valids: int) -> str:
    """The table with what it is about."""
    return (
        "# What guidance adds, against a temperature\n\n"
        "`python tools/guidance_control.py runs/demo` after `make demo`: MovieLens-100K, "
        f"leave-one-out, mean target NLL in nats on {tests} test users, lower is better; weights "
        f"and temperatures chosen on {valids} validation users; differences paired, 95 % "
        "bootstrap intervals. Guidance mixes g log p + (1 - g) log q; a temperature keeps only "
        f"the guide, as power times log q.\n\n{table}\n"
    )


if __name__ == "__main__":
    main()
