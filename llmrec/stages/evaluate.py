"""`llmrec evaluate`: predictions in, `per_user.parquet` and `metrics.json` out.

Values of every example first, then means with intervals, then paired tests of every system against
the best baseline and of tuned against untuned. Which baseline is best is read off the same test
examples, which can only favour the baseline. Imports neither torch nor transformers.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data import sealed
from llmrec.data.files import is_read_only, replacing, sha256_of
from llmrec.data.records import COLD, TARGET, TIED, USER_ID, Examples
from llmrec.evaluation.beyond import beyond_accuracy
from llmrec.evaluation.comparison import compared, in_words
from llmrec.evaluation.gates import POPULARITY, SENSITIVITY, Gates, distinct_share
from llmrec.evaluation.intervals import Floats, difference, mean_interval
from llmrec.evaluation.layout import as_json
from llmrec.evaluation.metrics import METRICS, at_every_k
from llmrec.evaluation.mixture import additions
from llmrec.evaluation.predictions import Predictions, leaky_notes
from llmrec.evaluation.rankings import answer_counts
from llmrec.evaluation.table import (
    ALL,
    AMONG_COLD,
    NLL,
    MetricTable,
    best_of,
    cold_columns,
    front_columns,
    metric_table,
)
from llmrec.recipe.systems import System
from llmrec.runs.evaluated import (
    PER_USER,
    TestSplit,
    read_other_nll,
    read_predictions,
    read_test_split,
)
from llmrec.stages.evaluate_columns import (
    at_temperatures,
    debiased,
    of_candidates,
    of_routed,
    validity,
)
from llmrec.stages.holding import alone

if TYPE_CHECKING:
    from llmrec.recipe import Recipe
    from llmrec.runs.folder import RunFolder

log = logging.getLogger("llmrec")

SYSTEM, EXAMPLE, TARGET_ITEM_ID = "system", "example", "target_item_id"
VERSION = 1
_PREFERRED_K = 10

PerUser = Mapping[str, Mapping[str, Floats]]


@alone("evaluate")
def run(recipe: "Recipe", folder: "RunFolder") -> dict[str, Any]:
    """Evaluate all predictions of a run; returns the table, the findings and the files written.

    Where the run is read-only nothing is written, and `numbers` is what metrics.json would hold.

    Raises DataError where data or predictions are missing or do not belong together.
    """
    split = read_test_split(folder)
    predictions, notes = read_predictions(recipe, folder, split.examples)
    ks, test = sorted(set(recipe.evaluate.k)), split.examples
    among = None if recipe.data.candidates is None else recipe.data.candidates.count
    per_user = {p.info.system: _values(p, split, ks, among) for p in predictions}
    if recipe.data.candidates is not None:
        for p in predictions:
            per_user[p.info.system] |= validity(p, split)
        notes += of_candidates(recipe, folder, split)
    for p in predictions if recipe.evaluate.gates else ():
        other = read_other_nll(folder, p)
        missing = np.full(len(test), np.nan)
        costs = missing if other is None else difference(other, p.nll)
        per_user[p.info.system][SENSITIVITY] = costs
    notes += of_routed(recipe, folder, predictions, per_user, ks)
    notes += leaky_notes({p.info.system: p.info.hyperparameters for p in predictions})
    temperatures, told = at_temperatures(recipe, folder, split, predictions, per_user)
    notes += told
    notes += _skipped(per_user) + _unmeasured(per_user, ks)
    if recipe.evaluate.debias is not None:
        notes += debiased(per_user, recipe.evaluate.propensity, split, ks)
    if any(p.cold_places is not None for p in predictions):
        for p in predictions:
            per_user[p.info.system] |= _among_cold(p, split, ks)
        notes += _of_cold(split, [p.info.system for p in predictions], ks)
    users, clusters = np.unique(test.user_ids, return_inverse=True)
    samples, confidence, seed = (
        recipe.evaluate.samples,
        recipe.evaluate.confidence,
        recipe.evaluate.seed,
    )
    table = metric_table(
        per_user,
        groups_of(test.cold, test.tied),
        clusters,
        among or len(split.catalog),
        samples=samples,
        confidence=confidence,
        seed=seed,
        notes=notes,
    )
    k = _main_k(table, ks)
    best = _best_baselines(table, predictions, tested_metrics(k))
    comparisons = [
        comparison
        for metric in tested_metrics(k)
        for comparison in compared(
            metric,
            _pairs(table.systems, best.get(metric)),
            {system: values[metric] for system, values in per_user.items()},
            clusters,
            samples=samples,
            confidence=confidence,
            seed=seed,
        )
    ]
    models = {p.info.system for p in predictions if p.info.kind != "baseline"}
    bootstrap = {"samples": samples, "confidence": confidence, "seed": seed}
    gates = _gates(recipe, predictions, per_user, clusters, bootstrap)
    likelihoods = {system: values[NLL] for system, values in per_user.items()}
    ours = [p.info.system for p in predictions if p.info.kind == "language_model"]
    baselines = [p.info.system for p in predictions if p.info.kind == "baseline"]
    added = additions(likelihoods, ours, baselines, clusters, **bootstrap)
    metrics = {
        "version": VERSION,
        "name": recipe.name,
        "examples": len(test),
        "users": len(users),
        "catalog": len(split.catalog),
        "evaluate": {
            "k": ks,
            "main_k": k,
            "samples": samples,
            "confidence": confidence,
            "seed": seed,
        },
        "best_baseline": best,
        "table": table.to_json(),
        "comparisons": [comparison.to_json() for comparison in comparisons],
        "gates": {name: one.to_json() for name, one in gates.items()},
        "additions": [one.to_json() for one in added],
        "systems": {
            p.info.system: {
                **_described(p, split, k),
                "temperature": temperatures.get(p.info.system),
            }
            for p in predictions
        },
        "provenance": folder.provenance(recipe),
    }
    unkept: dict[str, Any] = {}
    try:
        _write_per_user(folder, per_user, split)
        metrics[PER_USER] = sha256_of(folder.per_user)
        sealed.write_facts(folder.metrics, as_json(metrics))
    except OSError as error:
        if not is_read_only(error):
            raise
        unkept = {"numbers": as_json(metrics)}
        log.warning("evaluate: %s is read-only; the results are told and not kept", folder.root)
    log.info("evaluate: %d systems on %d test examples", len(predictions), len(test))
    return {
        "table": table.only(front_columns(k)).render("text") + _cold_table(table, k),
        "findings": "\n".join(
            [
                *(in_words(c, confidence) for c in comparisons if not models or c.system in models),
                *(one.in_words(confidence) for one in added),
            ]
        ),
        **({"gates": _in_words(gates)} if gates else {}),
        "metrics": str(folder.metrics),
        "per_user": str(folder.per_user),
        **unkept,
    }


def _gates(
    recipe: "Recipe",
    predictions: Sequence[Predictions],
    per_user: PerUser,
    clusters: npt.NDArray[np.intp],
    bootstrap: Mapping[str, Any],
) -> dict[str, Gates]:
    """The gates of every language model that ranks by its own probabilities."""
    if not recipe.evaluate.gates:
        return {}
    popular = per_user.get(POPULARITY, {}).get(NLL)
    found = {}
    for p in predictions:
        name = p.info.system
        if p.info.kind != "language_model" or System.parse(name).way != "ranked":
            continue
        over = None if popular is None else difference(per_user[name][NLL], popular)
        measured = [
            None if values is None else mean_interval(values, clusters, **bootstrap)
            for values in (over, per_user[name][SENSITIVITY])
        ]
        shown = [one if one is not None and one.n else None for one in measured]
        found[name] = Gates(*shown, *distinct_share(p.rankings()))
    return found


def _in_words(gates: Mapping[str, Gates]) -> str:
    return "\n".join(
        f"{name} {'fails: ' + '; '.join(one.failed) if one.failed else 'passes all three'}"
        for name, one in gates.items()
    )


def tested_metrics(k: int) -> tuple[str, ...]:
    """The metrics that systems are compared in; each is one family of tests."""
    return (NLL, f"NDCG@{k}", f"HR@{k}")


def groups_of(
    cold: npt.NDArray[np.bool_], tied: npt.NDArray[np.bool_]
) -> dict[str, npt.NDArray[np.bool_]]:
    """Which examples (E,) are in each group of columns."""
    return {
        ALL: np.ones(len(cold), np.bool_),
        "warm": ~cold,
        "cold": cold,
        "tied": tied,
        "untied": ~tied,
    }


def _values(
    predictions: Predictions, split: TestSplit, ks: Sequence[int], among: int | None
) -> dict[str, Floats]:
    """Metric -> (E,); NaN throughout for a cut-off that no Ranking of the system reaches.

    A list of 10 has no HR@20: what stands at 11 to 20 was not asked. A list that holds all that
    can be recommended, or all candidates (`among` so many), is complete at any cut-off, and a first
    answer is asked of everyone.
    """
    rankings, test = predictions.rankings(), split.examples
    values = at_every_k(rankings, test.targets, ks)
    seen = np.array([len(np.unique(history)) for history in test.histories()])
    lengths = answer_counts(rankings)
    most = len(split.catalog) - seen
    most = most if among is None else np.minimum(most, among)
    for k in ks:
        if k > 1 and not (lengths >= np.clip(most, 1, k)).any():
            for metric in METRICS:
                values[f"{metric}@{k}"] = np.full(len(test), np.nan)
    return {**values, NLL: predictions.nll}


def _among_cold(predictions: Predictions, split: TestSplit, ks: Sequence[int]) -> dict[str, Floats]:
    """Metrics of the cold targets' places among the cold items alone; NaN for other targets."""
    places = predictions.cold_places
    if places is None:
        places = np.full(len(split.examples), np.nan)
    known, values = ~np.isnan(places), {}
    for k in ks:
        hit = np.where(known, places < k, np.nan)
        gain = np.where(places < k, 1.0 / np.log2(np.where(known, places, 0.0) + 2.0), 0.0)
        values[f"HR@{k} {AMONG_COLD}"] = hit
        values[f"NDCG@{k} {AMONG_COLD}"] = np.where(known, gain, np.nan)
    return values


def _cold_table(table: MetricTable, k: int) -> str:
    """Warm and cold targets side by side, where systems were asked among the cold items."""
    if not table.measured(f"HR@{k} {AMONG_COLD}", "cold"):
        return ""
    return "\n" + replace(table.only(cold_columns(k)), notes=()).render("text")


def _of_cold(split: TestSplit, systems: Sequence[str], ks: Sequence[int]) -> list[str]:
    """What cold items are, what chance has among them, and who cannot tell one from another."""
    count = int((split.counts == 0).sum())
    chance = ", ".join(f"HR@{k} {min(k / count, 1.0):.3f}" for k in ks)
    notes = [f"Cold items: {count} that never occur in training; by chance {chance} among them."]
    blind = [s for s in systems if System.is_name(s) and System.parse(s).knows_ids_alone]
    if blind:
        notes.append(
            f"Know items by id alone, so that cold ones come last, and among themselves by chance: "
            f"{', '.join(blind)}."
        )
    return notes


def _skipped(per_user: PerUser) -> list[str]:
    """Examples that a system's mean NLL leaves out, systems with equal counts in one sentence."""
    systems: dict[tuple[int, int], list[str]] = {}
    for system, values in per_user.items():
        undefined, ruled_out = int(np.isnan(values[NLL]).sum()), int(np.isinf(values[NLL]).sum())
        if undefined < len(values[NLL]) and undefined + ruled_out:
            systems.setdefault((undefined, ruled_out), []).append(system)
    notes = []
    for (undefined, ruled_out), names in systems.items():
        parts = []
        if ruled_out:
            parts.append(f"{ruled_out} whose target was ruled out (its NLL would be infinite)")
        if undefined:
            parts.append(f"{undefined} without a value")
        notes.append(f"NLL leaves out, for {', '.join(names)}: {' and '.join(parts)}.")
    if len(systems) > 1:
        notes.append("As these differ, compare NLL by the paired tests, which use shared examples.")
    return notes


def _unmeasured(per_user: PerUser, ks: Sequence[int]) -> list[str]:
    notes = []
    for k in ks:
        short = [s for s, values in per_user.items() if np.isnan(values[f"HR@{k}"]).all()]
        if short:
            who = "all systems" if len(short) == len(per_user) else ", ".join(short)
            notes.append(f"Not measured at {k}, as their lists are shorter: {who}.")
    return notes


def _main_k(table: MetricTable, ks: Sequence[int]) -> int:
    """10 if every system was measured there, else the largest cut-off that most systems reach."""

    def reached(k: int) -> int:
        return sum(not np.isnan(mean) for mean in table.means(f"HR@{k}").values())

    if _PREFERRED_K in ks and reached(_PREFERRED_K) == len(table.systems):
        return _PREFERRED_K
    return max(ks, key=lambda k: (reached(k), k))


def _best_baselines(
    table: MetricTable, predictions: Sequence[Predictions], metrics: Sequence[str]
) -> dict[str, str]:
    baselines = [p.info.system for p in predictions if p.info.kind == "baseline"]
    best = {
        metric: best_of(metric, {name: table.cell(name, metric).mean for name in baselines})
        for metric in metrics
    }
    return {metric: system for metric, system in best.items() if system is not None}


def _pairs(systems: Sequence[str], best: str | None) -> list[tuple[str, str]]:
    pairs = [(system, best) for system in systems if best is not None and system != best]
    ours = [System.parse(system) for system in systems if System.is_name(system)]
    return pairs + [(s.name, o) for s in ours for o in s.compared_with if o in systems]


def _described(predictions: Predictions, split: TestSplit, k: int) -> dict[str, Any]:
    info = predictions.info
    beyond = beyond_accuracy(predictions.rankings(), split.counts, split.examples.histories(), k)
    return {
        "kind": info.kind,
        "distribution": info.distribution,
        "nll": {
            "finite": int(np.isfinite(predictions.nll).sum()),
            "ruled_out": int(np.isinf(predictions.nll).sum()),
            "undefined": int(np.isnan(predictions.nll).sum()),
        },
        "beyond": as_json(beyond),
        "hyperparameters": info.hyperparameters,
        "seconds": info.seconds,
        "notes": info.notes,
        "provenance": info.provenance,
    }


def _write_per_user(folder: "RunFolder", per_user: PerUser, split: TestSplit) -> None:
    """One row for each system and test example; a metric that is undefined is NaN."""
    test = split.examples
    repeated = _of_examples(test, np.array(split.catalog.item_ids, object))
    tables = [
        pa.table({SYSTEM: pa.array([system] * len(test), pa.string()), **repeated, **values})
        for system, values in per_user.items()
    ]
    with replacing(folder.per_user) as temporary:
        pq.write_table(pa.concat_tables(tables), temporary)


def _of_examples(test: Examples, item_ids: npt.NDArray[np.object_]) -> dict[str, Any]:
    return {
        USER_ID: pa.array(test.user_ids, pa.string()),
        EXAMPLE: np.arange(len(test), dtype=np.int32),
        TARGET: test.targets,
        TARGET_ITEM_ID: pa.array(item_ids[test.targets], pa.string()),
        COLD: test.cold,
        TIED: test.tied,
    }
