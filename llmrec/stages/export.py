"""`llmrec export`: a run's splits and predictions by item id and title, for other programs.

Files of one row a user and item: `train`, `valid`, `test` (what was chosen, oldest first) and
`predictions/<system>` (rank, score). Reads a prepared run; imports no torch.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from llmrec.data.catalog import Catalog
from llmrec.data.files import replacing
from llmrec.data.records import ITEM_ID, TIMESTAMP, TITLE, USER_ID, Examples, Interactions
from llmrec.errors import RecipeError
from llmrec.evaluation.foreign import RANK, SCORE
from llmrec.runs.evaluated import read_predictions, read_test_split
from llmrec.stages.holding import held_by_main

if TYPE_CHECKING:
    from llmrec.recipe import Recipe
    from llmrec.runs.folder import RunFolder

FileFormat = Literal["parquet", "csv"]


def run(
    recipe: "Recipe", folder: "RunFolder", into: Path | None = None, form: str = "parquet"
) -> dict[str, Any]:
    """Write the tables below `into`, by default the run's `export`; rows by file.

    Raises DataError for a run that is not prepared, RecipeError for another format.
    """
    if form not in get_args(FileFormat):
        raise RecipeError(f"--format {form}: one of {', '.join(get_args(FileFormat))}")
    with held_by_main(folder.root, "export") if into is None else nullcontext():
        return _exported(recipe, folder, into or folder.root / "export", form)


def _exported(recipe: "Recipe", folder: "RunFolder", root: Path, form: str) -> dict[str, Any]:
    split = read_test_split(folder)
    items, interactions = _Items(split.catalog), Interactions.read(folder.interactions)
    tables = {
        "train": items.table(
            interactions.user_ids[interactions.user],
            interactions.position,
            {TIMESTAMP: interactions.timestamp},
        )
    }
    for part in ("valid", "test"):
        chosen = Examples.read(folder.examples(part))
        times = {TIMESTAMP: chosen.timestamps}
        tables[part] = items.table(chosen.user_ids, chosen.targets, times)
    if any(folder.predictions("any").parent.glob("*.parquet")):
        for predictions in read_predictions(recipe, folder, split.examples)[0]:
            lengths = np.diff(predictions.offsets)
            first = np.repeat(predictions.offsets[:-1], lengths)
            ranks = np.arange(len(predictions.items)) - first + 1
            known = predictions.items >= 0
            tables[f"predictions/{predictions.info.system}"] = items.table(
                np.repeat(predictions.user_ids, lengths)[known],
                predictions.items[known],
                {RANK: ranks[known], SCORE: predictions.scores[known]},
            )
    for name, table in tables.items():
        path = root / f"{name}.{form}"
        with replacing(path) as temporary:
            write = pa.csv.write_csv if form == "csv" else pq.write_table
            write(table, temporary)
    return {"folder": str(root), "rows": {name: t.num_rows for name, t in tables.items()}}


class _Items:
    """Ids and titles of positions."""

    def __init__(self, catalog: Catalog) -> None:
        self.ids, self.titles = (np.array(x, object) for x in (catalog.item_ids, catalog.titles))

    def table(
        self,
        users: npt.NDArray[np.object_],
        positions: npt.NDArray[np.int32],
        others: Mapping[str, Any],
    ) -> pa.Table:
        return pa.table(
            {
                USER_ID: pa.array(users, pa.string()),
                ITEM_ID: pa.array(self.ids[positions], pa.string()),
                TITLE: pa.array(self.titles[positions], pa.string()),
                **others,
            }
        )
