"""What `evaluate` and `report` read from a run folder, refused where it does not belong together.

Knows the run folder; computes no metric. Imports neither torch nor transformers.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data import sealed
from llmrec.data.catalog import Catalog
from llmrec.data.files import sha256_of
from llmrec.data.records import Examples, Interactions
from llmrec.errors import DataError
from llmrec.evaluation.predictions import Predictions
from llmrec.runs.identity import require_whole_data

if TYPE_CHECKING:
    from llmrec.recipe import Recipe
    from llmrec.runs.folder import RunFolder

log = logging.getLogger("llmrec")
PER_USER = "per_user"  # in metrics.json, the SHA-256 of the rows that they are means of


@dataclass(frozen=True)
class TestSplit:
    """E test examples over a Catalog of N items; `counts` (N,) are the training interactions."""

    # Not a test case, whatever a test runner makes of the name.
    __test__ = False

    examples: Examples
    catalog: Catalog
    counts: npt.NDArray[np.int64]


def read_test_split(folder: "RunFolder") -> TestSplit:
    """The test examples, the Catalog and the training counts. Raises DataError if one lacks."""
    for path in (folder.examples("test"), folder.items, folder.interactions):
        if not path.is_file():
            raise DataError(f"{path} is not there; run `llmrec prepare` first.")
    require_whole_data(folder)
    test, catalog = Examples.read(folder.examples("test")), Catalog.read(folder.items)
    if not len(test):
        raise DataError(
            f"{folder.examples('test')} holds no example, so there is nothing to "
            "evaluate; look at data.split and data.subset."
        )
    positions = Interactions.read(folder.interactions).position
    return TestSplit(test, catalog, np.bincount(positions, minlength=len(catalog)))


def read_predictions(
    recipe: "Recipe", folder: "RunFolder", test: Examples
) -> tuple[list[Predictions], list[str]]:
    """All predictions, in the order of `recipe.systems` and then by name; notes on what differs.

    Raises DataError if there are none, or if one is not of this test split.
    """
    found = {path.stem: path for path in sorted(folder.predictions("any").parent.glob("*.parquet"))}
    if not found:
        raise DataError(
            f"{folder.predictions('any').parent} holds no predictions; run "
            "`llmrec recommend` first."
        )
    known = [system for system in recipe.systems if system in found]
    others = [system for system in found if system not in recipe.systems]
    missing = [system for system in recipe.systems if system not in found]
    notes = []
    if missing:
        notes.append(f"In the recipe but without predictions: {', '.join(missing)}.")
        log.warning(
            "%s: no predictions of %s, which the recipe names and are left out; run `llmrec "
            "recommend` for them",
            folder.root,
            ", ".join(missing),
        )
    if others:
        notes.append(f"Not in the recipe, taken as found: {', '.join(others)}.")
    data = folder.provenance(recipe)["data"]
    return [_checked(found[system], system, test, data) for system in (*known, *others)], notes


def read_other_nll(folder: "RunFolder", predictions: Predictions) -> npt.NDArray[np.float64] | None:
    """(E,) the targets' NLL under the same system with another user's history; None without it.

    Raises DataError where it is not of the very answers that `predictions` are.
    """
    path = folder.other_history(predictions.info.system)
    if not path.is_file():
        return None
    other = Predictions.read(path)
    ours, theirs = (p.info.provenance.get("settings") for p in (predictions, other))
    if ours != theirs or not np.array_equal(other.user_ids, predictions.user_ids):
        raise DataError(
            f"{path}: made with other settings than the answers of {predictions.info.system}. "
            "Run `llmrec recommend` again."
        )
    return other.nll


def read_metrics(path: Path) -> dict[str, Any]:
    """What `evaluate` wrote. Raises DataError for a file that is not there or something else."""
    try:
        metrics = sealed.read_facts(path, "run `llmrec evaluate` again.")
    except FileNotFoundError:
        raise DataError(f"{path} is not there; run `llmrec evaluate` first.") from None
    lacking = {"name", "evaluate", "table", "comparisons", "systems"} - set(metrics)
    if lacking:
        raise DataError(f"{path} lacks {', '.join(sorted(lacking))}; run `llmrec evaluate` again.")
    return dict(metrics)


def read_per_user(folder: "RunFolder", metrics: dict[str, Any]) -> pa.Table:
    """The rows that `metrics` are means of. Raises DataError where they are not those."""
    path, expected = folder.per_user, metrics.get(PER_USER)
    if not path.is_file():
        raise DataError(f"{path} is not there; run `llmrec evaluate` first.")
    if expected is not None and sha256_of(path) != expected:
        raise DataError(
            f"{path} is damaged: it is not what {folder.metrics.name} was made with; run `llmrec "
            "evaluate` again."
        )
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read ({error}); run `llmrec evaluate` again.") from None


def read_answers(
    path: Path, system: str, examples: Examples, data: str | None
) -> tuple[Predictions, npt.NDArray[np.int64]]:
    """A file of answers (L), and which `examples` they are of (L,): all, or those that it names.

    `data`: the manifest of the prepared data. Raises DataError where they do not belong together.
    """
    answers, again = Predictions.read(path), "Run `llmrec recommend` again."
    if answers.info.system != system:
        raise DataError(
            f"{path}: says it is of the system {answers.info.system!r}, not {system!r}. {again}"
        )
    made_from = answers.info.provenance.get("data")
    if data is not None and made_from is not None and made_from != data:
        raise DataError(
            f"{path}: made from other data (manifest {str(made_from)[:12]}) than "
            f"stands in this run ({data[:12]}). {again}"
        )
    named = answers.info.provenance.get("rows")
    rows = np.asarray(range(len(examples)) if named is None else named, np.int64)
    if len(rows) != len(answers) or len(np.unique(rows)) != len(rows):
        raise DataError(f"{path}: {len(answers)} rows for {len(np.unique(rows))} examples. {again}")
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(examples):
        raise DataError(f"{path}: names row {int(rows.max())} of {len(examples)} examples. {again}")
    differs = np.flatnonzero(answers.user_ids != examples.user_ids[rows])
    if len(differs):
        row = int(differs[0])
        raise DataError(
            f"{path}: row {row} is of user {answers.user_ids[row]!r}, the split has "
            f"{examples.user_ids[rows[row]]!r} there ({len(differs)} rows differ). {again}"
        )
    return answers, rows


def _checked(path: Path, system: str, test: Examples, data: str | None) -> Predictions:
    """The answers of one system to every test example, whole."""
    again = "Run `llmrec recommend` again."
    if sealed.manifest_of(path).is_file() and (wrong := sealed.problem(path)) is not None:
        raise DataError(f"{path} is damaged ({wrong}). {again}")
    predictions, rows = read_answers(path, system, test, data)
    if len(rows) != len(test):
        raise DataError(f"{path}: answers {len(rows)} of {len(test)} test examples. {again}")
    return predictions


CALIBRATION_VERSION = 1


SYSTEM = "system"


METHOD = "method"


SCORES = "scores"  # in calibration.json, the SHA-256 of what thresholds are found from


SCORE = "score"


def read_calibration(path: Path, data: str | None) -> dict[str, Any] | None:
    """What `run` wrote; None where it wrote nothing, or of other data than `data`.

    Raises DataError for a file that is something else.
    """
    if not path.is_file():
        return None
    said = sealed.read_facts(path, "run `llmrec evaluate --calibration` again.")
    lacking = {"version", "data", "k", "systems", "drawn", "notes"} - set(said)
    if lacking or said["version"] != CALIBRATION_VERSION:
        what = f"lacks {', '.join(sorted(lacking))}" if lacking else "is of another version"
        raise DataError(f"{path} {what}; run `llmrec evaluate --calibration` again.")
    if said["data"] != data:
        log.warning(
            "%s is of other data than stands in this run and was left out; run `llmrec "
            "evaluate --calibration` again",
            path,
        )
        return None
    return said
