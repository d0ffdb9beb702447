"""What `recommend` leaves to calibrate with: the likeliest items of a system for each example."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llmrec.data.records import Examples
from llmrec.errors import DataError
from llmrec.evaluation.calibration import Listed, listed
from llmrec.evaluation.intervals import Floats
from llmrec.evaluation.predictions import Predictions
from llmrec.evaluation.scaling import fitted_temperature, scaled_nll

if TYPE_CHECKING:
    from llmrec.runs.folder import RunFolder


@dataclass(frozen=True)
class Lists:
    """L lists, of the examples `rows` (L,); `nll` (L,) the targets' own, `settings` what else the
    lists depend on."""

    listed: Listed
    rows: npt.NDArray[np.int64]
    nll: Floats
    settings: Any


def read_lists(path: Path, system: str, examples: Examples, data: str | None) -> Lists:
    """The lists of one file, of all `examples` or those that it names.

    `data`: the manifest of the prepared data. Raises DataError where they do not belong together.
    """
    lists, again = Predictions.read(path), "Run `llmrec recommend` again."
    if lists.info.system != system:
        raise DataError(
            f"{path}: says it is of the system {lists.info.system!r}, not {system!r}. {again}"
        )
    made_from = lists.info.provenance.get("data")
    if data is not None and made_from is not None and made_from != data:
        raise DataError(
            f"{path}: made from other data (manifest {str(made_from)[:12]}) than "
            f"stands in this run ({data[:12]}). {again}"
        )
    named = lists.info.provenance.get("rows")
    rows = np.asarray(range(len(examples)) if named is None else named, np.int64)
    if len(rows) != len(lists) or len(np.unique(rows)) != len(rows):
        raise DataError(f"{path}: {len(lists)} lists for {len(np.unique(rows))} examples. {again}")
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(examples):
        raise DataError(f"{path}: names row {int(rows.max())} of {len(examples)} examples. {again}")
    differs = np.flatnonzero(lists.user_ids != examples.user_ids[rows])
    if len(differs):
        row = int(differs[0])
        raise DataError(
            f"{path}: row {row} is of user {lists.user_ids[row]!r}, the split has "
            f"{examples.user_ids[rows[row]]!r} there ({len(differs)} rows differ). "
            f"{again}"
        )
    scores = [lists.scores[a:b] for a, b in zip(lists.offsets, lists.offsets[1:], strict=False)]
    found = listed(lists.rankings(), scores, examples.targets[rows])
    return Lists(found, rows, lists.nll, lists.info.provenance.get("settings"))


def nll_at_temperature(
    folder: "RunFolder", system: str, valid: Examples, test: Examples, items: int, data: str | None
) -> tuple[float, Floats] | None:
    """The temperature fitted in validation, and (E,) the test NLL at it; None without lists.

    NaN for test examples without a list.
    """
    paths = [folder.lists(system, part) for part in ("valid", "test")]
    if not all(path.is_file() for path in paths):
        return None
    fitting, asked = (
        read_lists(path, system, examples, data)
        for path, examples in zip(paths, (valid, test), strict=True)
    )
    unlisted = items - fitting.listed.probabilities.shape[1]
    temperature = fitted_temperature(fitting.listed, fitting.nll, unlisted)
    values = np.full(len(test), np.nan)
    unlisted = items - asked.listed.probabilities.shape[1]
    values[asked.rows] = scaled_nll(asked.listed, asked.nll, unlisted, temperature)
    return temperature, values
