"""`llmrec evaluate --calibration`: `calibration.json` and the scores behind prediction sets.

Temperatures are fitted on validation examples. The test users are cut in two by a seeded draw: one
part calibrates the prediction sets, and everything reported is measured on the other. Reads the
lists that `recommend` leaves for systems that are distributions. Imports no torch.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data import sealed
from llmrec.data.files import replacing, sha256_of
from llmrec.data.records import Examples
from llmrec.errors import DataError, RecipeError
from llmrec.evaluation import calibration, conformal
from llmrec.evaluation.beyond import head
from llmrec.evaluation.calibration import Listed
from llmrec.evaluation.calibration_tables import (
    BRIER,
    ECE,
    ECE_MASS,
    NLL,
    SCALED,
    STATED,
    coverage_table,
    figures_table,
    group_table,
)
from llmrec.evaluation.conformal import RULES, Group
from llmrec.evaluation.intervals import mean_intervals
from llmrec.evaluation.layout import as_json, laid_out
from llmrec.runs.evaluated import (
    CALIBRATION_VERSION,
    METHOD,
    SCORE,
    SCORES,
    SYSTEM,
    TestSplit,
    read_test_split,
)
from llmrec.runs.lists import read_lists
from llmrec.stages.holding import alone

if TYPE_CHECKING:
    from llmrec.recipe import Recipe
    from llmrec.recipe.evaluation import Calibration
    from llmrec.runs.folder import RunFolder

log = logging.getLogger("llmrec")

# The rule whose sizes are drawn and whose groups are told; the other rules' are in the JSON.
DRAWN = conformal.Rule("aps")
LEVELS = tuple(round(0.02 * step, 2) for step in range(1, 50))
_PREFERRED_K = 10


def asked(recipe: "Recipe") -> "Calibration":
    """The recipe's section evaluate.calibration. Raises RecipeError if it has none."""
    if recipe.evaluate.calibration is None:
        raise RecipeError(
            "evaluate.calibration: null, so `recommend` keeps no lists to calibrate. "
            "Set evaluate.calibration to {} or to the settings you want, then run "
            "`llmrec recommend` and this again."
        )
    return recipe.evaluate.calibration


@alone("evaluate --calibration")
def run(recipe: "Recipe", folder: "RunFolder") -> dict[str, Any]:
    """Calibrate every system with lists; returns two tables and the files written.

    Raises RecipeError for a recipe without evaluate.calibration, DataError where data or lists are
    missing or do not belong together.
    """
    settings, split = asked(recipe), read_test_split(folder)
    provenance = folder.provenance(recipe)
    users, clusters = np.unique(split.examples.user_ids, return_inverse=True)
    calibrates = _set_aside(len(users), settings.share, recipe.evaluate.seed)[clusters.ravel()]
    valid = _examples(folder, "valid")
    k = _cut_off(recipe.evaluate.k)
    systems: dict[str, dict[str, Any]] = {}
    scores, without = [], []
    for system in recipe.systems:
        paths = [folder.lists(system, part) for part in ("valid", "test")]
        if not all(path.is_file() for path in paths):
            without.append(system)
            continue
        fitting = read_lists(paths[0], system, valid, provenance["data"]).listed
        asked_of = read_lists(paths[1], system, split.examples, provenance["data"])
        whole, rows = asked_of.listed, asked_of.rows
        temperature = calibration.fit_temperature(fitting)
        stated = {STATED: whole, SCALED: calibration.temperature_scaled(whole, temperature)}
        found, own = _calibrated(recipe, settings, split, rows, calibrates[rows], stated, k)
        scores.append(_scores_of(system, own))
        systems[system] = {
            "temperature": temperature,
            "n_fitted": len(fitting),
            "settings": asked_of.settings,
            **found,
        }
        log.info("calibrate: %s, temperature %.3f", system, temperature)
    if not systems:
        raise DataError(
            f"{folder.lists('any', 'test').parent} holds no lists of the recipe's "
            "systems for both valid and test; run `llmrec recommend` with "
            "evaluate.calibration set."
        )
    notes = [f"Without lists, so left out: {', '.join(without)}."] if without else []
    said = as_json(
        {
            "version": CALIBRATION_VERSION,
            "name": recipe.name,
            "data": provenance["data"],
            "k": k,
            "settings": {
                **settings.model_dump(),
                "samples": recipe.evaluate.samples,
                "confidence": recipe.evaluate.confidence,
                "seed": recipe.evaluate.seed,
            },
            "rules": [asdict(rule) for rule in RULES],
            "drawn": DRAWN.method,
            "systems": systems,
            "notes": notes,
            "provenance": provenance,
        }
    )
    with replacing(folder.set_scores) as temporary:
        pq.write_table(pa.concat_tables(scores), temporary)
    said[SCORES] = sha256_of(folder.set_scores)
    sealed.write_facts(folder.calibration, said)
    return {
        "table": laid_out(*figures_table(said), "text") + "".join(f"{n}\n" for n in notes),
        "coverage": laid_out(*coverage_table(said), "text")
        + "\n"
        + laid_out(*group_table(said), "text"),
        "calibration": str(folder.calibration),
        "scores": str(folder.set_scores),
    }


def _set_aside(users: int, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """(users,) which of them calibrate: a share drawn with the seed, never none and never all."""
    if users < 2:
        raise DataError(
            f"calibration needs two test users at least, one to calibrate and one to "
            f"measure; there are {users}. Look at data.split and data.subset."
        )
    chosen = np.zeros(users, np.bool_)
    count = min(max(round(share * users), 1), users - 1)
    chosen[np.random.default_rng(seed).permutation(users)[:count]] = True
    return chosen


def _calibrated(
    recipe: "Recipe",
    settings: "Calibration",
    split: TestSplit,
    rows: npt.NDArray[np.int64],
    calibrates: npt.NDArray[np.bool_],
    stated: Mapping[str, Listed],
    k: int,
) -> tuple[dict[str, Any], Listed]:
    """All figures of one system whose lists are those of the test examples `rows`; and the lists
    that calibrate, at the temperature."""
    examples = split.examples.take(rows)
    parts = {
        name: (lists.take(calibrates), lists.take(~calibrates)) for name, lists in stated.items()
    }
    users = np.unique(examples.user_ids, return_inverse=True)[1].ravel()
    clusters, bootstrap = (
        users[~calibrates],
        {
            "samples": recipe.evaluate.samples,
            "confidence": recipe.evaluate.confidence,
            "seed": recipe.evaluate.seed,
        },
    )
    calibrating, measured = parts[SCALED]
    curve = conformal.size_curve(calibrating, measured, DRAWN, LEVELS)
    found = {
        "n_calibrating": len(calibrating),
        "n_measured": len(measured),
        "users_calibrating": len(np.unique(users[calibrates])),
        "users_measured": len(np.unique(clusters)),
        "rows": len(rows),
        "list_length": stated[STATED].probabilities.shape[1],
        **{
            name: _figures(part, clusters, k, settings.bins, bootstrap)
            for name, (_, part) in parts.items()
        },
        "coverages": conformal.coverages(
            calibrating,
            measured,
            settings.alpha,
            _groups(split, examples, calibrates),
            clusters,
            **bootstrap,
        ),
        "size_curve": [
            {"alpha": alpha, "size": size, "coverage": share} for alpha, size, share in curve
        ],
    }
    return found, calibrating


def _figures(
    measured: Listed,
    clusters: npt.NDArray[np.intp],
    k: int,
    bins: int,
    bootstrap: Mapping[str, Any],
) -> dict[str, Any]:
    """Means with intervals and the bins of the reliability diagrams."""
    first, several = calibration.top_k_mass(measured, 1), calibration.top_k_mass(measured, k)
    binned = {
        ECE: (*first, "width"),
        ECE_MASS: (*first, "mass"),
        f"{ECE}, first {k}": (*several, "width"),
    }
    eces = calibration.ece_intervals([*binned.values()], clusters, bins=bins, **bootstrap)
    values = np.stack([calibration.brier(measured), calibration.nll(measured)], axis=1)
    means = mean_intervals(values, clusters, **bootstrap)
    figures = dict(zip((*binned, BRIER, NLL), (*eces, *means), strict=True))
    return {
        "figures": figures,
        "reliability": {
            name: calibration.reliability(promised, right, bins, by)
            for name, (promised, right, by) in binned.items()
        },
    }


def _groups(
    split: TestSplit, examples: Examples, calibrates: npt.NDArray[np.bool_]
) -> dict[str, Group]:
    """Thirds by history length, which may have their own threshold; targets of head and tail."""
    lengths = np.diff(examples.offsets)
    cuts = conformal.activity_cuts(lengths[calibrates])
    popular = head(split.counts)[examples.targets]
    masks = {**conformal.activity_groups(lengths, cuts), "head": popular, "tail": ~popular}
    return {
        name: Group(mask[calibrates], mask[~calibrates], name not in ("head", "tail"))
        for name, mask in masks.items()
    }


def _scores_of(system: str, calibrating: Listed) -> pa.Table:
    """One row for each rule and calibrating example."""
    rules = [rule.method for rule in RULES]
    return pa.table(
        {
            SYSTEM: pa.array([system] * len(rules) * len(calibrating), pa.string()),
            METHOD: pa.array(np.repeat(rules, len(calibrating)).tolist(), pa.string()),
            SCORE: np.concatenate([conformal.target_scores(calibrating, rule) for rule in RULES]),
        }
    )


def _examples(folder: "RunFolder", part: str) -> Examples:
    path = folder.examples(part)
    if not path.is_file():
        raise DataError(f"{path} is not there; run `llmrec prepare` first.")
    return Examples.read(path)


def _cut_off(ks: Sequence[int]) -> int:
    return _PREFERRED_K if _PREFERRED_K in ks else max(ks)
