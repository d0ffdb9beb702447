"""What was prepared as `datasets.DatasetDict`, for programs that take that. Knows no run folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from llmrec.data.catalog import Catalog
from llmrec.data.records import COLD, HISTORY, ITEM_ID, TARGET, TIED, TIMESTAMP, USER_ID, Examples
from llmrec.errors import DataError

if TYPE_CHECKING:
    from datasets import DatasetDict

_PARTS = ("train", "valid", "test")


def to_datasets(run: str | Path) -> "DatasetDict":
    """Examples of a run by part, and its items, as datasets of the `datasets` library.

    train, valid, test: user_id, history and target (item ids, oldest first), history_titles and
    target_title, timestamp, tied, cold. items: item_id, title, raw_title. Raises DataError where
    the run is not prepared.
    """
    from datasets import Dataset, DatasetDict

    data = Path(run) / "data"
    if not (data / "items.parquet").is_file():
        raise DataError(f"{run} holds no prepared data; run `llmrec prepare` first")
    catalog = Catalog.read(data / "items.parquet")
    parts = {}
    for part in _PARTS:
        examples = Examples.read(data / f"{part}.parquet")
        histories = examples.histories()
        parts[part] = Dataset.from_dict(
            {
                USER_ID: examples.user_ids.tolist(),
                HISTORY: [[catalog.item_ids[p] for p in history] for history in histories],
                TARGET: [catalog.item_ids[p] for p in examples.targets],
                "history_titles": [catalog.titles_at(history) for history in histories],
                "target_title": catalog.titles_at(examples.targets),
                TIMESTAMP: examples.timestamps,
                TIED: examples.tied,
                COLD: examples.cold,
            }
        )
    items = {ITEM_ID: catalog.item_ids, "title": catalog.titles, "raw_title": catalog.raw_titles}
    parts["items"] = Dataset.from_dict({name: list(values) for name, values in items.items()})
    return DatasetDict(parts)
