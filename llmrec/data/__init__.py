"""Raw files in, arrays of interactions and examples out. Knows no torch and no tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import DatasetDict


def to_datasets(run: str | Path) -> "DatasetDict":
    """The prepared examples and items of a run; see `llmrec.data.handing_out`."""
    from llmrec.data.handing_out import to_datasets as handed_out

    return handed_out(run)
