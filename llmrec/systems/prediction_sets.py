"""Prediction sets for histories of one's own, by what `evaluate --calibration` found out of a run.

A list is cut where its items, at the temperature of the system, are no longer likely enough (the
rule LAC of `llmrec.evaluation.conformal`). Loads no model and makes no list; imports no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from llmrec.data.files import sha256_of
from llmrec.errors import LlmrecError
from llmrec.evaluation import calibration, conformal
from llmrec.runs.evaluated import METHOD, SCORE, SCORES, SYSTEM, read_calibration
from llmrec.runs.folder import RunFolder

LAC = conformal.Rule("lac")
_HOW = (
    "run `llmrec recommend` with evaluate.calibration set in the recipe, and then `llmrec "
    "evaluate --calibration`"
)


@dataclass(frozen=True)
class PredictionSets:
    """Where to cut one system's lists of `list_length` items to hold the targets of enough users.

    `threshold` is infinite where nothing can be promised; `reason` then says why, else it is empty.
    """

    temperature: float
    list_length: int
    threshold: float
    reason: str

    @property
    def guaranteed(self) -> bool:
        """Whether the sets come with a guarantee."""
        return math.isfinite(self.threshold)

    def sizes(self, scores: Sequence[npt.NDArray[np.floating[Any]]]) -> npt.NDArray[np.int64]:
        """(U,) how many items at the beginning of each list are in its set; it can be none.

        `scores`: U arrays of log-probabilities, best first, `list_length` of them at most.
        """
        # As wide as when calibrated, so that sums are made of the same terms in the same order.
        padded = [
            np.pad(s, (0, self.list_length - len(s)), constant_values=-np.inf) for s in scores
        ]
        unknown = np.full(len(padded), -1)
        nowhere = [np.full(self.list_length, -1)] * len(padded)
        lists = calibration.listed(nowhere, padded, unknown)
        lists = calibration.temperature_scaled(lists, self.temperature)
        return conformal.set_sizes(lists, LAC, self.threshold)


def prediction_sets(
    folder: RunFolder, system: str, coverage: float, settings: Mapping[str, Any]
) -> PredictionSets:
    """The smallest sets of a system that hold the target for a share `coverage` of the users.

    `settings`: those that the system's lists depend on now. Raises LlmrecError for a coverage
    outside (0, 1), and where the run holds no calibration of the system, or one of other data,
    weights or settings.
    """
    if not 0 < coverage < 1:
        raise LlmrecError(
            f"coverage must be above 0 and below 1, got {coverage}; 0.9 asks for "
            "sets that hold the next item of nine users in ten"
        )
    said = read_calibration(folder.calibration, folder.data_hash())
    if said is None:
        what = "is of other data" if folder.calibration.is_file() else "is not there"
        raise LlmrecError(f"{folder.calibration} {what}, so no coverage can be promised; {_HOW}")
    if system not in said["systems"] or not folder.set_scores.is_file():
        raise LlmrecError(
            f"{folder.calibration.parent} holds no calibration of the system "
            f"{system!r}, only of {', '.join(said['systems']) or 'none'}; {_HOW}"
        )
    made = said["systems"][system].get("settings") or {}
    differ = [key for key in {**made, **settings} if made.get(key) != settings.get(key)]
    if differ:
        raise LlmrecError(
            f"{folder.calibration} is of other lists of {system!r} than this run "
            f"makes now (differs: {', '.join(sorted(differ))}), so no coverage can "
            f"be promised; {_HOW}"
        )
    if said.get(SCORES) not in (None, sha256_of(folder.set_scores)):
        raise LlmrecError(
            f"{folder.set_scores} is damaged: it is not what {folder.calibration.name} was made "
            f"with; {_HOW}"
        )
    kept = pq.read_table(
        folder.set_scores, filters=[(SYSTEM, "=", system), (METHOD, "=", LAC.method)]
    )
    scores, alpha = kept[SCORE].to_numpy(), 1.0 - coverage
    threshold = conformal.threshold(scores, alpha)
    found = said["systems"][system]
    return PredictionSets(
        found["temperature"], found["list_length"], threshold, _reason(scores, alpha, threshold)
    )


def _reason(scores: npt.NDArray[np.float64], alpha: float, threshold: float) -> str:
    if math.isfinite(threshold):
        return ""
    needed = conformal.needed(alpha)
    if len(scores) < needed:
        return f"{conformal.TOO_FEW}: {len(scores)}, and it needs {needed}"
    outside = int(np.isinf(scores).sum())
    return f"{conformal.OUTSIDE}: {outside} of {len(scores)}"
