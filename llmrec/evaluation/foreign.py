"""Rankings and targets of other programs: CSV, TSV, Parquet, JSON lines, TREC run and qrels files;
DataFrames and Arrow tables.

One row a user and an item. Columns are known by the names that RecBole, RecTools, LensKit and TREC
give them (`COLUMNS`); one row a user with a list of items, best first or with their scores as in
LensKit's Parquet, is read as well. Ids become text in one normal form: stripped, whole floats as
integers. Knows no run and no metric.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from llmrec.data.records import ITEM_ID, USER_ID, Longs
from llmrec.data.sources.values import identifiers
from llmrec.errors import DataError

RANK, SCORE, PROBABILITY, RELEVANCE = "rank", "score", "probability", "relevance"
# What a column may be called, in any case and with RecBole's `:token` or `:float` behind it.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    USER_ID: ("user_id", "user", "userid", "qid", "query_id", "query"),
    ITEM_ID: ("item_id", "item", "itemid", "docid", "doc_id", "docno"),
    RANK: ("rank",),
    SCORE: ("score", "prediction"),
    PROBABILITY: ("probability", "prob"),
    RELEVANCE: ("relevance",),
}
_RUN = ("user_id", "Q0", "item_id", "rank", "score", "tag")
_QRELS = ("user_id", "0", "item_id", RELEVANCE)
WHOLE = 1e-3  # how far from 1 a user's probabilities may sum and still be a distribution


@dataclass(frozen=True)
class ForeignLists:
    """Lists of U users end to end; user u's is `items[offsets[u]:offsets[u + 1]]`, best first.

    `items` (R,) number the `item_ids`, each once in a list. `probabilities` (R,): of these items,
    None where the file has none. `notes`: what was left out in reading.
    """

    users: tuple[str, ...]
    item_ids: tuple[str, ...]
    offsets: Longs
    items: Longs
    probabilities: npt.NDArray[np.float64] | None = None
    notes: tuple[str, ...] = field(default=())

    def of(self, user: int) -> Longs:
        """(L,) the items of one user, best first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]


def read_ranking(path: Path) -> ForeignLists:
    """The lists of a file, by its column `rank`, else by `score`, the highest first.

    Equal scores keep the order of the file; in a TREC run, which goes by score, the later id comes
    first, as trec_eval has it. An item that comes back in a list counts once, at its best place.
    Raises DataError, naming the file, for a file that holds no such lists.
    """
    return _ranking(path, *_table(path, _RUN))


def ranking_of(table: Any, name: str = "rankings") -> ForeignLists:
    """The same lists of a DataFrame, pandas or polars, or of whatever gives Arrow, called `name` in
    messages."""
    return _ranking(name, _named(name, _flat(arrow_of(table))), False)


def _ranking(path: Path | str, table: pa.Table, trec: bool) -> ForeignLists:
    if not table.num_rows:
        raise DataError(f"{path}: holds no list")
    if RANK in table.column_names and not trec:
        key = _numbers(path, table, RANK)
    elif SCORE in table.column_names:
        key = -_numbers(path, table, SCORE)
    else:
        raise DataError(
            f"{path}: neither a column rank nor a column score says which item comes first; it has "
            f"{', '.join(table.column_names)}"
        )
    p = _numbers(path, table, PROBABILITY) if PROBABILITY in table.column_names else None
    if p is not None and ((p < 0) | (p > 1 + WHOLE)).any():
        row = int(np.flatnonzero((p < 0) | (p > 1 + WHOLE))[0])
        raise DataError(
            f"{path}: row {row + 1} has probability {p[row]:g}; it lies between 0 and 1"
        )
    return _listed(path, table, key, p, later_first=trec)


def read_targets(path: Path) -> ForeignLists:
    """What each user chose: every row of the file is a target, of qrels those above 0."""
    table, trec = _table(path, _QRELS)
    if trec:
        table = table.filter(pa.array(_numbers(path, table, RELEVANCE) > 0))
    if not table.num_rows:
        raise DataError(f"{path}: holds no target")
    return _listed(path, table, np.zeros(table.num_rows), None)


def targets_of(table: Any, name: str = "targets") -> ForeignLists:
    """The same of a DataFrame or whatever gives Arrow; every row is a target."""
    found = _named(name, _flat(arrow_of(table)))
    if not found.num_rows:
        raise DataError(f"{name}: holds no target")
    return _listed(name, found, np.zeros(found.num_rows), None)


def arrow_of(table: Any) -> pa.Table:
    """A DataFrame, or whatever gives Arrow, as an Arrow table whose texts every function takes."""
    given = pa.table(table)
    for place, field_ in enumerate(given.schema):
        if pa.types.is_string_view(field_.type):
            column = given.column(place).cast(pa.large_string())
            given = given.set_column(place, field_.name, column)
    return given


def matched(listed: ForeignLists, wanted: ForeignLists) -> tuple[list[Longs], Longs]:
    """Rankings of the U users who have targets, and their targets (U, M) padded with -1.

    Items are numbered as `wanted` numbers them, -1 for one that is nobody's target; who has no list
    has an empty one.
    """
    place = {user: number for number, user in enumerate(listed.users)}
    rows = [place.get(user, -1) for user in wanted.users]
    codes = {item: code for code, item in enumerate(wanted.item_ids)}
    ours = np.array([codes.get(item, -1) for item in listed.item_ids], np.int64)
    rankings = [ours[listed.of(row)] if row >= 0 else ours[:0] for row in rows]
    sizes = np.diff(wanted.offsets)
    targets = np.full((len(rows), int(sizes.max())), -1, np.int64)
    targets[np.arange(targets.shape[1]) < sizes[:, None]] = wanted.items
    return rankings, targets


def target_nll(listed: ForeignLists, targets: Mapping[str, str]) -> npt.NDArray[np.float64] | None:
    """(U,) -log of the probability given to each listed user's target; None without a distribution.

    Only lists that hold the whole distribution say what the target's probability is: those of a
    user must sum to 1. A target that such a list leaves out was ruled out, its NLL is infinite.
    `targets`: by user; who has none gets NaN.
    """
    p = listed.probabilities
    if p is None or not len(p) or (np.diff(listed.offsets) == 0).any():
        return None
    if (np.abs(np.add.reduceat(p, listed.offsets[:-1]) - 1) > WHOLE).any():
        return None
    number = {item: code for code, item in enumerate(listed.item_ids)}
    found = np.full(len(listed.users), np.nan)
    for user, name in enumerate(listed.users):
        if name in targets:
            at = np.flatnonzero(listed.of(user) == number.get(targets[name], -1))
            share = float(p[listed.offsets[user] + at[0]]) if len(at) else 0.0
            found[user] = -np.log(share) if share > 0 else np.inf
    return found


def _listed(
    path: Path | str,
    table: pa.Table,
    key: npt.NDArray[np.float64],
    p: npt.NDArray[np.float64] | None,
    later_first: bool = False,
) -> ForeignLists:
    users, user_ids = _ids(path, table, USER_ID)
    items, item_ids = _ids(path, table, ITEM_ID)
    tie = np.arange(len(key))
    if later_first:
        tie = -np.argsort(np.argsort(np.array(item_ids)))[items]
    order = np.lexsort((tie, key, users))
    pairs = users[order] * len(item_ids) + items[order]
    first = np.zeros(len(order), np.bool_)
    first[np.unique(pairs, return_index=True)[1]] = True
    kept = order[first]
    repeated = len(order) - len(kept)
    notes = (f"{repeated} rows of an item that its list held already",) if repeated else ()
    offsets = np.searchsorted(users[kept], np.arange(len(user_ids) + 1)).astype(np.int64)
    shares = None if p is None else p[kept]
    return ForeignLists(tuple(user_ids), tuple(item_ids), offsets, items[kept], shares, notes)


def _table(path: Path, trec: Sequence[str]) -> tuple[pa.Table, bool]:
    """The rows under their standard names, and whether they came in TREC's format `trec`."""
    if not path.is_file():
        raise DataError(f"{path} is not there")
    try:
        with path.open("rb") as stream:
            start = stream.read(4096)
        if start[:4] == b"PAR1":
            return _named(path, _flat(pq.read_table(path))), False
        if start.lstrip()[:1] == b"{":
            return _named(path, _flat(pa.json.read_json(path))), False
        first = start.decode("utf-8-sig").splitlines()[0] if start.strip() else ""
        words = first.split()
        if len(words) == len(trec) and (words[1] in {"Q0", "0", "q0"}):
            return _whitespace(path, trec), True
        delimiter = max(",\t;|", key=first.count)
        parsed = pa.csv.read_csv(
            path,
            parse_options=pa.csv.ParseOptions(delimiter=delimiter),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(_header(first, delimiter), pa.string())
            ),
        )
        return _named(path, parsed), False
    except (OSError, pa.ArrowException, UnicodeDecodeError, IndexError) as error:
        raise DataError(
            f"{path}: not readable as CSV, TSV, Parquet, JSON lines or a TREC file ({error})"
        ) from None


def _header(line: str, delimiter: str) -> list[str]:
    return [name.strip().strip('"') for name in line.split(delimiter)]


def _whitespace(path: Path, names: Sequence[str]) -> pa.Table:
    rows = [line.split() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    wrong = next((n for n, row in enumerate(rows, 1) if len(row) != len(names)), None)
    if wrong is not None:
        raise DataError(f"{path}:{wrong}: {len(rows[wrong - 1])} fields, {len(names)} are expected")
    columns = zip(*rows, strict=True)
    return pa.table({n: pa.array(c, pa.string()) for n, c in zip(names, columns, strict=True)})


def _named(path: Path | str, table: pa.Table) -> pa.Table:
    """With the columns that are known under their standard names, the others dropped."""
    plain = [name.strip().partition(":")[0].lower() for name in table.column_names]
    found = {}
    for role, names in COLUMNS.items():
        places = [plain.index(name) for name in names if name in plain]
        if places:
            found[role] = table.column(places[0])
    for role in (USER_ID, ITEM_ID):
        if role not in found:
            raise DataError(
                f"{path}: no column for {role}, which may be called {', '.join(COLUMNS[role])}; "
                f"there are {', '.join(table.column_names)}"
            )
    return pa.table(found)


def _flat(table: pa.Table) -> pa.Table:
    """One row an item, where a column holds lists: of items with their scores, or of ids alone,
    which then stand best first."""
    lists = [
        name
        for name in table.column_names
        if name.lower() in ("items", *COLUMNS[ITEM_ID]) and _holds_lists(table, name)
    ]
    if not lists:
        return table
    nested = table.column(lists[0]).combine_chunks()
    owner, inside = pc.list_parent_indices(nested), pc.list_flatten(nested)
    if pa.types.is_struct(inside.type):
        inner = pa.Table.from_struct_array(inside)
    else:
        owners = owner.to_numpy()
        first = np.searchsorted(owners, owners)
        inner = pa.table({ITEM_ID: inside, RANK: np.arange(len(owners)) - first})
    for name in table.column_names:
        if name != lists[0] and name not in inner.column_names:
            inner = inner.append_column(name, pc.take(table.column(name), owner))
    return inner


def _holds_lists(table: pa.Table, name: str) -> bool:
    kind = table.schema.field(name).type
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _ids(path: Path | str, table: pa.Table, role: str) -> tuple[Longs, list[str]]:
    """(R,) numbers of the ids, and the ids in their normal form."""
    encoded, wrong = identifiers(table.column(role).combine_chunks())
    if wrong:
        row = min(wrong)
        raise DataError(f"{path}: row {row + 1}, {role}: {wrong[row]}")
    return encoded.indices.to_numpy(False).astype(np.int64), encoded.dictionary.to_pylist()


def _numbers(path: Path | str, table: pa.Table, role: str) -> npt.NDArray[np.float64]:
    """(R,) finite numbers."""
    try:
        cast = pc.cast(table.column(role), pa.float64())
        values: npt.NDArray[np.float64] = cast.to_numpy().astype(np.float64)
    except pa.ArrowException as error:
        raise DataError(f"{path}: column {role} holds what is no number ({error})") from None
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(f"{path}: row {row + 1} has no finite {role}")
    return values
