"""The file of a model's own answers to training prompts (D' of SOFT): Parquet, a row a prompt.

Knows no model.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec.data.files import replacing
from llmrec.errors import DataError

FILE = "answers.parquet"
_ABOUT = b"llmrec"
_BEAMS = pa.list_(
    pa.struct(
        [
            ("text", pa.string()),
            ("position", pa.int32()),
            ("score", pa.float64()),
            ("distance", pa.float64()),
        ]
    )
)


@dataclass(frozen=True)
class Question:
    """One training prompt: its number, whose it is, what it shows, and what truly followed."""

    example: int
    user_id: str
    history: npt.NDArray[np.int32]
    truth: int


@dataclass(frozen=True)
class Answers:
    """Q answers. `texts` and `positions` (-1: no catalog item) are the chosen ones, `distances`
    theirs from the truth; `beams`: for each, best first, dicts of text, position, score, distance.
    """

    questions: Sequence[Question]
    texts: Sequence[str]
    positions: Sequence[int]
    distances: Sequence[float]
    beams: Sequence[Sequence[dict[str, Any]]]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def figures(self) -> dict[str, float]:
        """Shares equal to the truth and outside the catalog, mean distance, distinct answers."""
        truths = [question.truth for question in self.questions]
        return {
            "count": len(self),
            "share_equal_to_truth": float(np.mean(np.equal(self.positions, truths))),
            "share_no_catalog_item": float(np.mean(np.less(self.positions, 0))),
            "mean_distance": float(np.mean(self.distances)),
            "distinct": len(set(self.texts)),
        }

    def write(self, path: Path) -> None:
        """Write the file; figures go into its metadata."""
        about = json.dumps(self.figures, sort_keys=True)
        table = pa.table(
            {
                "example": pa.array([q.example for q in self.questions], pa.int64()),
                "user_id": pa.array([q.user_id for q in self.questions], pa.string()),
                "history": pa.array(
                    [q.history.tolist() for q in self.questions], pa.list_(pa.int32())
                ),
                "truth": pa.array([q.truth for q in self.questions], pa.int32()),
                "answer": pa.array(self.texts, pa.string()),
                "position": pa.array(self.positions, pa.int32()),
                "distance": pa.array(self.distances, pa.float64()),
                "beams": pa.array(self.beams, _BEAMS),
            }
        ).replace_schema_metadata({_ABOUT: about.encode()})
        with replacing(path) as temporary:
            pq.write_table(table, temporary)

    @staticmethod
    def read(folder: Path) -> "Answers":
        """Read what `write` wrote. Raises DataError where there is nothing readable."""
        path = folder / FILE
        try:
            table = pq.read_table(path)
            json.loads(table.schema.metadata[_ABOUT])
            columns = table.to_pydict()
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise DataError(
                f"{path}: no readable answers ({type(error).__name__}); make them with "
                "`llmrec distill`"
            ) from None
        questions = [
            Question(example, user, np.array(history, np.int32), truth)
            for example, user, history, truth in zip(
                columns["example"],
                columns["user_id"],
                columns["history"],
                columns["truth"],
                strict=True,
            )
        ]
        return Answers(
            questions, columns["answer"], columns["position"], columns["distance"], columns["beams"]
        )

    def require_questions(self, wanted: Sequence[Question], folder: Path) -> None:
        """Raise DataError unless these answer exactly the `wanted` questions, in order."""
        same = len(self) == len(wanted) and all(
            a.user_id == b.user_id and a.truth == b.truth and np.array_equal(a.history, b.history)
            for a, b in zip(self.questions, wanted, strict=True)
        )
        if not same:
            raise DataError(
                f"{folder}: {len(self)} answers to other prompts than this recipe's {len(wanted)}; "
                "data, prompt, rows and seed must be those that the answers were made with"
            )
