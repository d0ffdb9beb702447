"""Recommend: every system of the recipe answers for the test split, one predictions file each.

Baselines are fitted on the training interactions with hyperparameters chosen in validation, as is
the weight of a baseline that guides the language model. A language model's answers are kept batch
by batch, so that an interrupted run goes on where it stopped, and processes share the batches.
"""

import logging
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from llmrec.evaluation.predictions import Predictions
from llmrec.recipe import Recipe
from llmrec.recipe.systems import parsed
from llmrec.runs.folder import RunFolder
from llmrec.stages import prepare
from llmrec.systems.calibrated_lists import write_lists
from llmrec.systems.other_histories import write_other_histories
from llmrec.systems.table_rows import Answering

log = logging.getLogger("llmrec")


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `predictions/<system>.parquet` for each system that has none of these settings yet."""
    with _main_process_first(recipe):
        prepare.run(recipe, folder)
    answering = Answering(recipe, folder)
    written, standing = [], []
    for system in recipe.systems:
        path, settings = folder.predictions(system), answering.settings(system)
        if path.exists() and Predictions.read(path).info.provenance.get("settings") == settings:
            standing.append(system)
            continue
        predictions = answering.of(system)
        if predictions is not None:
            predictions.write(path)
        written.append(system)
        log.info("recommend: %s done", system)
    if recipe.evaluate.calibration is not None:
        written += [f"lists of {name}" for name in recipe.systems if write_lists(answering, name)]
    if recipe.evaluate.gates:
        others = [name for name in recipe.systems if write_other_histories(answering, name)]
        written += [f"{name} with other histories" for name in others]
    return {"written": written, "standing": standing, "folder": str(folder.predictions("x").parent)}


def _main_process_first(recipe: Recipe) -> Any:
    """Lets one process prepare before the others look; without a language model there is one."""
    if not any(system.kind == "language_model" for system in parsed(recipe.systems)):
        return nullcontext()
    from llmrec.runs.processes import processes

    return processes().main_process_first()


def raw(
    run_dir: Path, lines: Iterable[str], top_k: int = 10, coverage: float | None = None
) -> list[dict[str, Any]]:
    """Recommendations for JSON lines: dicts of user, rank, item_id, title, score.

    A line is a list of item ids or titles, or {"user": ..., "history": [...]}. See
    `Recommender.recommend` for what happens to a title that the catalog does not have, and for
    `coverage`, with which a dict also says whether it is `guaranteed`.
    """
    from llmrec.systems.recommender import Recommender, read_histories

    users, histories = read_histories(lines)
    recommender = Recommender.from_pretrained(run_dir)
    table = recommender.recommend(histories, top_k=top_k, users=users, coverage=coverage)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
