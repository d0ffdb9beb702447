"""An epoch of CPFT against one of plain fine-tuning: ratio of times, in turns, in one process.

One untrained SASRec on a data set's training interactions; per repeat one epoch with cross-entropy
alone, one with the size loss beside it, one with both. One line of JSON on stdout.

    python tools/bench/network_sets.py --repeats 3
    python tools/bench/network_sets.py --source FOLDER/interactions.parquet --order order
"""

import argparse
import json
import statistics
import tempfile
import time

import numpy as np
import torch

from llmrec.baselines.fine_tuning import FineTuning
from llmrec.baselines.sasrec import SASRec
from llmrec.baselines.sequential import FittedNetwork
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples, Interactions
from llmrec.methods.network_sets import places_loss
from llmrec.recipe import shipped
from llmrec.recipe.conformal import Conformal
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder
from llmrec.stages import prepare

ARMS = {"ce": None, "size": {"gamma": 0.0}, "both": {}}


def seconds(base: FittedNetwork, train: Interactions, nobody: Examples, losses: dict | None):
    """Of one epoch of training, without validation."""
    loss = None if losses is None else places_loss(Conformal(**losses))
    begun = time.perf_counter()
    FineTuning(max_epochs=1).fit(base, train, nobody, True, 0, loss)
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--source", default="ml-100k")
    options.add_argument(
        "--order", default="timestamp", help="the column that orders a user's rows"
    )
    options.add_argument("--repeats", type=int, default=3)
    given = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        recipe = load(
            shipped.recipe_file("cpft_sasrec_ml100k"),
            [
                f"data.source={given.source}",
                f"data.columns.timestamp={given.order}",
                f"output_dir={place}",
            ],
        )
        folder = RunFolder.of(recipe)
        prepare.run(recipe, folder)
        train, valid = (
            Interactions.read(folder.interactions),
            Examples.read(folder.examples("valid")),
        )
        items = len(Catalog.read(folder.items))
    torch.manual_seed(0)
    base = FittedNetwork(SASRec().network(items).eval(), 1.0, 0)
    nobody = valid.take(np.arange(0))
    seconds(base, train, nobody, None)  # warm
    took = {name: [] for name in ARMS}
    for _ in range(given.repeats):
        for name, losses in ARMS.items():
            took[name].append(seconds(base, train, nobody, losses))
    ratios = {
        name: statistics.median(a / b for a, b in zip(took[name], took["ce"], strict=True))
        for name in ("size", "both")
    }
    said = {
        "items": items,
        "places": len(train) - len(set(train.user.tolist())),
        "seconds": {name: round(statistics.median(values), 3) for name, values in took.items()},
        "ratio": {name: round(value, 3) for name, value in ratios.items()},
        "repeats": given.repeats,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
