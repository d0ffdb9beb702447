"""`llmrec report`: `report.html` of a run, from what the other stages left there.

Computes no metric: reads `metrics.json`, `calibration.json` where there is one, the predictions,
the test split and the training log. Needs matplotlib (extra `report`) if there is a training log or
a calibration, and no torch.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.data.files import replacing
from llmrec.errors import DataError
from llmrec.evaluation import calibration_tables
from llmrec.evaluation.beyond import BeyondAccuracy
from llmrec.evaluation.calibration_curves import coverage_curve, reliability_curve
from llmrec.evaluation.comparison import Comparison
from llmrec.evaluation.curve import (
    branch_losses_curve,
    curriculum_curve,
    loss_curve,
    validation_curve,
)
from llmrec.evaluation.layout import from_json
from llmrec.evaluation.page import (
    Recommendation,
    Report,
    Sheet,
    Shelf,
    SystemFacts,
    Trust,
    Visitor,
    render,
    verdict,
)
from llmrec.evaluation.predictions import Predictions
from llmrec.evaluation.table import MetricTable
from llmrec.model.kept_weights import read_log
from llmrec.recipe import loading as recipe_loading
from llmrec.runs.evaluated import (
    TestSplit,
    read_calibration,
    read_metrics,
    read_predictions,
    read_test_split,
)
from llmrec.stages.holding import held_by_main

if TYPE_CHECKING:
    from llmrec.recipe import Recipe
    from llmrec.runs.folder import RunFolder

log = logging.getLogger("llmrec")

VISITORS, SHELVES, HISTORY = 3, 5, 10


def run(recipe: "Recipe", folder: "RunFolder", out: Path | None = None) -> dict[str, Any]:
    """Write the page, by default to `folder.report`. Raises DataError where `evaluate` was not run
    on what is there."""
    if out is not None:  # only reads the run
        return _written(recipe, folder, out)
    with held_by_main(folder.root, "report"):
        return _written(recipe, folder, folder.report)


def _written(recipe: "Recipe", folder: "RunFolder", path: Path) -> dict[str, Any]:
    metrics, split = read_metrics(folder.metrics), read_test_split(folder)
    predictions, _ = read_predictions(recipe, folder, split.examples)
    report = _report(recipe, folder, metrics, split, predictions)
    page = render(report)
    with replacing(path) as temporary:
        temporary.write_text(page, "utf-8")
    log.info("report: %s", path)
    return {"report": str(path), "headline": verdict(report)[0]}


def _report(
    recipe: "Recipe",
    folder: "RunFolder",
    metrics: Mapping[str, Any],
    split: TestSplit,
    predictions: Sequence[Predictions],
) -> Report:
    evaluated, found = list(metrics["systems"]), [p.info.system for p in predictions]
    if evaluated != found or metrics["examples"] != len(split.examples):
        raise DataError(
            f"{folder.metrics} is of {', '.join(evaluated)}, but there are predictions "
            f"of {', '.join(found)}; run `llmrec evaluate` again."
        )
    table, k = MetricTable.from_json(metrics["table"]), metrics["evaluate"]["main_k"]
    lines = [line for line in read_log(folder.train_log) if "step" in line]
    if not lines and folder.adapter.is_dir():
        log.warning("report: %s is not there, so curves are left out", folder.train_log)
    best = metrics["best_baseline"]
    curves = [
        ("Loss of the training rows, by optimiser step.", loss_curve(lines)),
        (
            "Target NLL of validation users with its interval; the best adapter is kept.",
            validation_curve(lines, table.uniform_nll),
        ),
        (
            "λ, the weight of the model's own answers as each epoch began (real targets: 1 - λ). "
            "Where a probe was asked: the distance of the answers from the truth, over the untuned "
            "model's, and the share of answers that were the truth.",
            curriculum_curve(lines),
        ),
        (
            "Mean loss over each epoch of the real targets and of the model's own answers; a gap "
            "where a kind had no weight.",
            branch_losses_curve(lines),
        ),
    ]
    shown = _shown(predictions, next(iter(best.values()), None))
    return Report(
        name=metrics["name"],
        data=recipe.data.source,
        examples=metrics["examples"],
        users=metrics["users"],
        catalog=metrics["catalog"],
        k=k,
        table=table,
        comparisons=tuple(Comparison.from_json(c) for c in metrics["comparisons"]),
        best_baseline=best,
        systems=tuple(_facts(name, said) for name, said in metrics["systems"].items()),
        curves=tuple((caption, svg) for caption, svg in curves if svg is not None),
        visitors=_visitors(split, shown, k, recipe.evaluate.seed),
        facts=tuple(_flat(metrics.get("provenance") or {})),
        recipe=recipe_loading.dump(recipe),
        trust=_trust(recipe, folder, [p.info.system for p in shown]),
    )


def _trust(recipe: "Recipe", folder: "RunFolder", shown: Sequence[str]) -> Trust | None:
    """What `evaluate --calibration` left of this data; the drawings are of the systems `shown`."""
    said = read_calibration(folder.calibration, folder.provenance(recipe)["data"])
    if said is None:
        return None
    drawn = {name: said["systems"][name] for name in shown if name in said["systems"]}
    bins = {
        name: found[calibration_tables.STATED]["reliability"][calibration_tables.ECE_MASS]
        for name, found in (drawn or said["systems"]).items()
    }
    sets = {name: found["size_curve"] for name, found in (drawn or said["systems"]).items()}
    curves = [
        (
            "Share of users whose first item was right, by the probability it was given, in bins "
            "of alike many users. On the dashed line the two are the same; below it is "
            "overconfident.",
            reliability_curve(
                {
                    name: [
                        (confidence, accuracy)
                        for confidence, accuracy in zip(b["confidence"], b["accuracy"], strict=True)
                        if accuracy is not None
                    ]
                    for name, b in bins.items()
                }
            ),
        ),
        (
            f"Share of targets inside their sets by the mean size of a set ({said['drawn']}, "
            "common threshold), as the wanted share grows: the further to the left, the better.",
            coverage_curve(
                {
                    name: [(point["size"], point["coverage"]) for point in points]
                    for name, points in sets.items()
                }
            ),
        ),
    ]
    return Trust(
        said["k"],
        Sheet(*calibration_tables.figures_table(said)),
        Sheet(*calibration_tables.coverage_table(said)),
        Sheet(*calibration_tables.group_table(said)),
        tuple((caption, svg) for caption, svg in curves if svg is not None),
        tuple(said["notes"]),
    )


def _facts(system: str, said: Mapping[str, Any]) -> SystemFacts:
    figures = {name: from_json(value) for name, value in said["beyond"].items()}
    counts = {name: int(said["beyond"][name]) for name in ("k", "answers")}
    beyond = BeyondAccuracy(
        k=counts["k"],
        coverage=figures["coverage"],
        gini=figures["gini"],
        popularity=figures["popularity"],
        long_tail_share=figures["long_tail_share"],
        novelty=figures["novelty"],
        invalid_share=figures["invalid_share"],
        repeated_share=figures["repeated_share"],
        seen_share=figures["seen_share"],
        answers=counts["answers"],
    )
    return SystemFacts(
        system,
        said["kind"] != "baseline",
        beyond,
        said["hyperparameters"],
        from_json(said["seconds"]),
    )


def _shown(predictions: Sequence[Predictions], best: str | None) -> list[Predictions]:
    """The best baseline and the models; without any of these, the other baselines."""
    models = [p for p in predictions if p.info.kind != "baseline"]
    baselines = [p for p in predictions if p.info.kind == "baseline"]
    baselines.sort(key=lambda p: p.info.system != best)
    return [*(baselines[:1] if models else baselines), *models][:SHELVES]


def _visitors(
    split: TestSplit, shown: Sequence[Predictions], k: int, seed: int
) -> tuple[Visitor, ...]:
    """Examples of different users, drawn with the seed alone: no answer plays a part in it."""
    test = split.examples
    order = np.random.default_rng(seed).permutation(len(test))
    firsts = np.sort(np.unique(test.user_ids[order], return_index=True)[1])[:VISITORS]
    return tuple(_visitor(split, shown, k, int(row)) for row in order[firsts])


def _visitor(split: TestSplit, shown: Sequence[Predictions], k: int, row: int) -> Visitor:
    history, target = split.examples.history(row), int(split.examples.targets[row])
    titles = split.catalog.titles
    shelves = []
    for predictions in shown:
        items = [int(item) for item in predictions.ranking(row)[: min(k, 10)]]
        known = tuple(
            Recommendation(titles[item] if 0 <= item < len(titles) else None, item == target)
            for item in items
        )
        shelves.append(Shelf(predictions.info.system, known, float(predictions.nll[row])))
    return Visitor(
        str(split.examples.user_ids[row]),
        tuple(split.catalog.titles_at(history[-HISTORY:])),
        max(len(history) - HISTORY, 0),
        titles[target],
        tuple(shelves),
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested provenance as (name, text) lines."""
    lines: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            lines += _flat(item, f"{prefix}{key} ")
        elif item is not None:
            lines.append((f"{prefix}{key}", item if isinstance(item, str) else json.dumps(item)))
    return lines
