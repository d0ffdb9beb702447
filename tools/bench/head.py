"""The head for the tokens of titles alone against the whole head: processor time, in turns.

Ranks and scores test users of MovieLens-100K with an untuned model, as best-first search, as beam
search, and as likelihoods of the targets; checks that the answers are equal. One line of JSON.

    python tools/bench/head.py --users 16 --repeats 4
"""

import argparse
import json
import statistics
import tempfile
import time

import numpy as np
import torch

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.inference.engine import Engine
from llmrec.inference.from_recipe import base_of, encoder_of
from llmrec.model.loading import load_model
from llmrec.recipe import shipped
from llmrec.recipe.decoding import Decode
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder
from llmrec.stages import prepare

WAYS = {"best_first": {"search": "best_first"}, "10 beams": {"search": "beam", "beams": 10}}


def timed(ask):
    """What it gives, and the seconds of this process's cores."""
    begun = time.process_time()
    found = ask()
    return found, time.process_time() - begun


def compared(narrow, whole, ask, repeats):
    """Median seconds of both, the median ratio, and both last answers."""
    took = {"narrow": [], "whole": []}
    for _ in range(repeats):
        for name, engine in (("narrow", narrow), ("whole", whole)):
            found, seconds = timed(lambda engine=engine: ask(engine))
            took[name].append(seconds)
            if name == "narrow":
                kept = found
    ratios = [b / a for a, b in zip(took["narrow"], took["whole"], strict=True)]
    said = {name: round(statistics.median(values), 3) for name, values in took.items()}
    return {**said, "ratio": round(statistics.median(ratios), 3)}, kept, found


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--users", type=int, default=16)
    options.add_argument("--repeats", type=int, default=4)
    given = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        recipe = load(shipped.recipe_file("demo"), [f"output_dir={place}"])
        folder = RunFolder.of(recipe)
        prepare.run(recipe, folder)
        encoder = encoder_of(recipe, Catalog.read(folder.items))
        test = Examples.read(folder.examples("test")).take(np.arange(given.users))
    model = load_model(base_of(recipe)).eval()
    closed = test.histories()
    prompts = [encoder.prompt(history[-10:]).ids for history in closed]
    said = {}
    for way, settings in WAYS.items():
        narrow, whole = (Engine(model, encoder, Decode(**settings, top_k=10)) for _ in range(2))
        said["tokens"], whole._head = len(narrow._head.ids), None
        said[way], ours, theirs = compared(
            narrow, whole, lambda engine: engine.rank(prompts, closed), given.repeats
        )
        for a, b in zip(ours.rankings, theirs.rankings, strict=True):
            np.testing.assert_array_equal(a.positions, b.positions)
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
    said["likelihoods"], ours, theirs = compared(
        narrow, whole, lambda engine: engine.nll(prompts, closed, test.targets), given.repeats
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    print(json.dumps({"users": given.users, "repeats": given.repeats, **said}))


if __name__ == "__main__":
    main()
