"""Which interactions an experiment reads, how they are filtered, and how they are split."""

import codecs
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from llmrec.recipe.candidates import Candidates
from llmrec.recipe.section import MOST, Count, NotNegativeCount, Section, Share, Word


class ColumnsSection(Section):
    """What the columns of a CSV, TSV, JSONL or Parquet source are called."""

    user_id: Word = "user_id"
    """Column of the user."""
    item_id: Word = "item_id"
    """Column of the item's id."""
    timestamp: Word | None = "timestamp"
    """Column of the time of the interaction; null: the rows stand in the order of time."""
    rating: Word | None = "rating"
    """Column of the rating; null: there is none."""
    title: Word | None = "title"
    """Column of the item's title; null: none."""


class ItemsColumns(Section):
    """What the columns of a file of items and titles are called, where it has names of its own."""

    item_id: Word | None = None
    """Column of the item's id; null: as in the interactions."""
    title: Word | None = None
    """Column of the title; null: as in the interactions."""
    year: Word | None = None
    """Column of the year, put behind the title in brackets; null: none."""
    brand: Word | None = None
    """Column of what tells items of one title apart; null: brand, where there is one."""
    genres: Word | None = None
    """Column of genres or categories, for text_knn_genres; null: genres, where there is one."""


class EventsSection(Section):
    """Which rows of a log of several kinds of events are interactions."""

    column: Word
    """Column of the kind of event."""
    keep: Annotated[list[Word], Field(min_length=1)]
    """Kinds whose rows are read, as [buy, cart]; all others are left out."""


class Subset(Section):
    """How many examples of each split are kept, drawn with the recipe's seed; null: all."""

    train: Count | None = None
    """Training examples kept."""
    valid: Count | None = None
    """Validation examples kept."""
    test: Count | None = None
    """Test examples kept."""


class Data(Section):
    """Which interactions, how they are filtered, and how they are split."""

    source: Word
    """A name that `llmrec fetch data` knows (ml-100k, ml-1m, amazon2023/CATEGORY), a file or folder
    (its part-* files too), a pattern of files, or hf://OWNER/NAME[/CONFIG][:SPLIT] of the Hugging
    Face Hub."""
    format: Literal[
        "auto",
        "movielens",
        "recbole",
        "amazon2023",
        "amazon2018",
        "steam",
        "goodreads",
        "lastfm",
        "yelp",
        "book-crossing",
        "kuairec",
        "mind",
        "netflix",
        "merrec",
        "microlens",
        "csv",
        "tsv",
        "jsonl",
        "parquet",
    ] = "auto"
    """How the source is written; auto: seen from its files."""
    delimiter: Annotated[str, Field(min_length=1, max_length=2)] | None = None
    """What stands between the columns of delimited text; null: the comma of .csv, the tab of .tsv.
    """
    encoding: Word = "auto"
    """Encoding of text, by Python's name for it; auto: UTF-8, UTF-16 where the file says so, else
    Windows-1252 with a warning."""
    timestamp_format: Word = "auto"
    """Form of times: s, ms or us since 1970, iso, or a form of strptime as %d/%m/%Y; auto: numbers
    or ISO dates."""
    items: Word | None = None
    """File of items and titles, where it is not found with the source."""
    columns: ColumnsSection = ColumnsSection()
    """Column names of the source."""
    items_columns: ItemsColumns = ItemsColumns()
    """Column names of the items file."""
    events: EventsSection | None = None
    """Which kinds of events are read; null: every row is an interaction."""
    min_rating: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Interactions with a lower rating are dropped; null: none are."""
    k_core: NotNegativeCount = 0
    """Users and items with fewer interactions are dropped until none is left."""
    split: Literal["leave_one_out", "global_time", "sliding_window", "by_user"] = "leave_one_out"
    """How examples become train, valid and test."""
    ratios: Annotated[list[Share], Field(min_length=3, max_length=3)] = Field(
        default=[0.8, 0.1, 0.1]
    )
    """Shares of train, valid and test, for the splits that cut by share."""
    window: Annotated[int, Field(ge=2, le=MOST)] = 11
    """Interactions in a sliding window, the target included."""
    ties: Literal["source_row", "item_id", "shuffle"] = "source_row"
    """Order of a user's interactions with one and the same time."""
    year_in_title: bool = True
    """Titles keep their year: The Matrix (1999)."""
    max_title_chars: Annotated[int, Field(ge=8)] = 200
    """Longer titles are cut to this many characters."""
    out_of_core: bool = False
    """Filter with DuckDB, on disk where memory is short; needs the extra `data`."""
    memory_limit: Word = "4GB"
    """Memory that DuckDB may take while it filters."""
    max_bad_rows: NotNegativeCount = 0
    """Unreadable rows that are skipped and reported before it is an error."""
    subset: Subset = Subset()
    """Examples kept of each split."""
    train_users: Count | None = None
    """Users whose interactions are used for training; null: all."""
    cold_items: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    """Share of the items that are held back, drawn with the recipe's seed: they stay in the catalog
    and can be targets of valid and test, and nothing else of the data holds them."""
    candidates: Candidates | None = None
    """Each target is to be found among some items; a number alone: so many random ones, the target
    among them. null: among the whole catalog."""

    @field_validator("candidates", mode="before")
    @classmethod
    def _so_many(cls, candidates: Any) -> Any:
        if isinstance(candidates, int) and not isinstance(candidates, bool):
            return {"count": candidates}
        return candidates

    @field_validator("delimiter")
    @classmethod
    def _a_tab(cls, delimiter: str | None) -> str | None:
        # A shell hands "\\t" on as two characters.
        return "\t" if delimiter == "\\t" else delimiter

    @field_validator("timestamp_format")
    @classmethod
    def _a_form(cls, form: str) -> str:
        if form not in ("auto", "iso", "s", "ms", "us") and "%" not in form:
            raise ValueError("auto, iso, s, ms, us, or a form of strptime as %d/%m/%Y")
        return form

    @field_validator("encoding")
    @classmethod
    def _an_encoding(cls, encoding: str) -> str:
        if encoding != "auto":
            try:
                codecs.lookup(encoding)
            except LookupError:
                raise ValueError("auto, or a name that Python knows as utf-8 or cp1252") from None
        return encoding

    @field_validator("ratios")
    @classmethod
    def _sum_to_one(cls, ratios: list[float]) -> list[float]:
        if abs(sum(ratios) - 1) > 1e-9 or ratios[0] == 0:
            raise ValueError("three shares that sum to 1, the first above 0")
        return ratios
