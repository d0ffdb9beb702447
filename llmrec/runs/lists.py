"""What `recommend` leaves to calibrate with: the likeliest items of a system for each example."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llmrec.data.records import Examples
from llmrec.evaluation.calibration import Listed, listed
from llmrec.evaluation.intervals import Floats
from llmrec.evaluation.scaling import fitted_temperature, scaled_nll
from llmrec.runs.evaluated import read_answers

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
    lists, rows = read_answers(path, system, examples, data)
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
