"""Raw data in, `Interactions` and item titles out: readers for published and plain formats.

`read_source` recognises a file or folder, reads it in blocks, and accounts for every bad row.
Knows nothing of filters, splits or recipes.
"""

from llmrec.data.sources.formats import FORMATS, recognise
from llmrec.data.sources.layouts import Columns, Events, ItemColumns, Layout, Reading, described
from llmrec.data.sources.parts import is_pattern
from llmrec.data.sources.reading import RawData, read_layout, read_source
from llmrec.data.sources.rows import BadRow, BadRows

__all__ = [
    "FORMATS",
    "BadRow",
    "BadRows",
    "Columns",
    "Events",
    "ItemColumns",
    "Layout",
    "RawData",
    "Reading",
    "described",
    "is_pattern",
    "read_layout",
    "read_source",
    "recognise",
]
