"""Histories that come as a table: a pandas or polars DataFrame, a pyarrow Table, whatever gives
Arrow. Knows no catalog."""

from typing import Any

import numpy as np

from llmrec.data.records import HISTORY, TIMESTAMP, TITLE, USER_ID
from llmrec.decoding.grounding import Entry
from llmrec.errors import DataError
from llmrec.evaluation.foreign import COLUMNS, arrow_of

TIMES = (TIMESTAMP, "time", "datetime")  # how the column of times may be called
_NAMES = {
    USER_ID: COLUMNS[USER_ID],
    HISTORY: (HISTORY,),
    "item_id": COLUMNS["item_id"],
    TITLE: (TITLE,),
    TIMESTAMP: TIMES,
}


def is_table(value: Any) -> bool:
    """Whether a value is a table with columns, and no list of lists."""
    return hasattr(value, "__arrow_c_stream__")


def histories_of(table: Any, name: str = "histories") -> tuple[list[str], list[list[Entry]]]:
    """Users, and the entries of each one's history, oldest first.

    Either a row a user, with lists in a column `history` and, if it has one, a user column; or a
    row an item, with a user column, item ids or else titles, and a `timestamp` by which a user's
    rows are put in order; without one they stand in it. Users come in the order of their first row.
    Raises DataError, calling the table `name`, where columns are missing or hold nothing.
    """
    given = arrow_of(table)
    plain = [column.lower() for column in given.column_names]
    found = {
        role: given.column(next(plain.index(one) for one in names if one in plain))
        for role, names in _NAMES.items()
        if any(one in plain for one in names)
    }
    for role in (USER_ID, "item_id", HISTORY, TITLE):
        if role in found and found[role].null_count:
            raise DataError(f"{name}: the column {role} has rows without a value")
    if HISTORY in found:
        lists = [[*entries] for entries in found[HISTORY].to_pylist()]
        users = found[USER_ID].to_pylist() if USER_ID in found else range(len(lists))
        return [str(user) for user in users], lists
    items = found.get("item_id", found.get(TITLE))
    if items is None or USER_ID not in found:
        raise DataError(
            f"{name}: a table has a column history with lists of items, or columns user_id and "
            f"item_id (or title) and a row an item; this one has {', '.join(given.column_names)}"
        )
    codes = found[USER_ID].combine_chunks().dictionary_encode()
    user = codes.indices.to_numpy()
    keys = [np.arange(len(user)), user]
    if TIMESTAMP in found:
        keys.insert(1, found[TIMESTAMP].to_numpy())
    rows = np.lexsort(keys)
    entries = items.to_pylist()
    histories: list[list[Entry]] = [[] for _ in codes.dictionary]
    for row in rows.tolist():
        histories[user[row]].append(entries[row])
    return [str(user_id) for user_id in codes.dictionary.to_pylist()], histories
