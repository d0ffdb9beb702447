"""The rows that training would read as a `datasets.Dataset`, for trainers of one's own."""

from pathlib import Path
from typing import TYPE_CHECKING

from llmrec.data.catalog import Catalog
from llmrec.errors import DataError
from llmrec.methods.method import Job
from llmrec.methods.table import method_of
from llmrec.runs.folder import open_run

if TYPE_CHECKING:
    from datasets import Dataset


def training_rows(run: str | Path) -> "Dataset":
    """The tokenised rows of a prepared run, as its method and `rows.shape` lay them out.

    Of each row of S tokens and T predicted ones: input_ids (S,), position_ids (S,), spans (2, S),
    and for each predicted token labels (T,) its id, predictors (T,) the index of the token whose
    logits say it, and target_item_ids (T,) the item it is of; see `llmrec.text.tree.FlatTree`, also
    for the mask that rows of several targets need. Raises DataError where the run is not prepared.
    """
    from datasets import Dataset

    recipe, folder = open_run(str(run), [])
    if not folder.examples("train").is_file():
        raise DataError(f"{run} holds no prepared data; run `llmrec prepare` first")
    item_ids = Catalog.read(folder.items).item_ids
    flat = [row.flatten() for row in method_of(recipe).rows(Job.of(recipe, folder))]
    same = ("input_ids", "position_ids", "spans", "labels", "predictors")
    columns = {name: [getattr(row, name).tolist() for row in flat] for name in same}
    columns["target_item_ids"] = [[item_ids[p] for p in row.targets] for row in flat]
    return Dataset.from_dict(columns)
