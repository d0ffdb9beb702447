"""`llmrec check leakage`: prompts are made of nothing later than their own time.

Reads the raw source anew and holds the files of a run against it, row by row: training
interactions, examples, candidates, similar users, and what of these was shown. Trusts none of those
files and asks no retriever. Knows no text: prompts are not kept, what they are made from is.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from llmrec.data.candidates import read_candidates
from llmrec.data.records import Bools, Example, Examples, Interactions, Ints, Longs
from llmrec.errors import DataError
from llmrec.inference.pools import Neighbour, Pools
from llmrec.recipe.data import Data
from llmrec.stages import prepare

if TYPE_CHECKING:
    from llmrec.recipe import Recipe
    from llmrec.runs.folder import RunFolder

LISTED = 20  # violations told in words; all are counted
PARTS = ("train", "valid", "test")
_NOT_THERE = -1


def run(recipe: "Recipe", folder: "RunFolder") -> dict[str, Any]:
    """Check all that stands in a run folder.

    Returns `checked` (how many of what), `violations` (how many), `examples` (the first of them in
    words) and `not_checked` (what this says nothing of). Raises DataError where nothing is
    prepared, where a file cannot be read, or where the source is no longer what was prepared.
    """
    data, seed, sources = _prepared_from(folder)
    log = _Log(*prepare.ordered_log(data, seed, sources))
    found = Findings()
    training = _read(folder.interactions, Interactions.read)
    examples = {part: _read(folder.examples(part), Examples.read) for part in PARTS}
    targets = {part: log.targets(of_part) for part, of_part in examples.items()}
    trained = _check_training(log, training, examples, targets, folder.interactions.name, found)
    for part, of_part in examples.items():
        _check_examples(log, of_part, targets[part], folder.examples(part).name, found)
    if data.candidates is not None:
        for part in ("valid", "test"):
            drawn = _read(folder.candidates(part), read_candidates)
            _check_candidates(examples[part], drawn, data.candidates, log.items,
                              folder.candidates(part).name, found)  # fmt: skip
    pools = {part: _read(folder.pools(part), Pools.read)
             for part in PARTS if folder.pools(part).is_file()}  # fmt: skip
    for part, of_part in pools.items():
        asked = None if part == "train" else examples[part]
        _check_pools(log, of_part, asked, trained, _inside(folder, folder.pools(part)), found)
    _check_shown(folder, pools, found)
    _check_index(folder, training, found)
    return {
        "checked": dict(found.checked),
        "violations": found.violations,
        "examples": found.examples,
        "not_checked": list(_not_checked(recipe, folder, data, training, examples["test"])),
    }


class Findings:
    """What was looked at, and what was wrong with it."""

    def __init__(self) -> None:
        self.checked: Counter[str] = Counter()
        self.violations = 0
        self.examples: list[str] = []

    def wrong(self, sentence: str) -> None:
        """Count a violation; the first ones are kept in words."""
        self.violations += 1
        if len(self.examples) < LISTED:
            self.examples.append(sentence)


class _Log:
    """The whole ordered log, R rows, and where in it something stands."""

    def __init__(self, rows: Interactions, catalog: Sequence[Any]) -> None:
        self.rows, self.items = rows, len(catalog)
        first = np.flatnonzero(np.diff(rows.user, prepend=-1) != 0)
        ends = np.append(first[1:], len(rows))
        names = rows.user_ids[rows.user[first]].tolist()
        self._spans = dict(zip(names, zip(first.tolist(), ends.tolist(), strict=True), strict=True))
        self._by_source = np.argsort(rows.source_row)
        self._sources = rows.source_row[self._by_source]

    def span(self, user_id: str) -> tuple[int, int]:
        """A user's first row and end; an empty span for a user that is not in the log."""
        return self._spans.get(user_id, (0, 0))

    def at(self, source_rows: Longs) -> Longs:
        """(n,) rows of the log by their source rows, -1 where there is none."""
        place = np.searchsorted(self._sources, source_rows)
        place = np.minimum(place, len(self._sources) - 1)
        there = self._sources[place] == source_rows
        return np.where(there, self._by_source[place], _NOT_THERE)

    def at_time(self, user_id: str, time: int) -> Longs:
        """The rows of a user at a time."""
        first, end = self.span(user_id)
        times = self.rows.timestamp[first:end]
        return np.arange(first + np.searchsorted(times, time, side="left"),
                         first + np.searchsorted(times, time, side="right"))  # fmt: skip

    def targets(self, examples: Examples) -> Longs:
        """(E,) the row of each example's target, -1 where there is none."""
        rows = np.full(len(examples), _NOT_THERE, np.int64)
        for number, example in enumerate(examples):
            at = self.at_time(example.user_id, example.timestamp)
            at = at[self.rows.position[at] == example.target]
            if len(at):
                rows[number] = at[0]
        return rows


def _prepared_from(folder: "RunFolder") -> tuple[Data, int, dict[str, Any]]:
    """Settings, seed and sources of a prepared folder's manifest."""
    path = folder.data / prepare.MANIFEST
    if not path.is_file():
        raise DataError(f"{path} is not there, so there is nothing to check; run `llmrec prepare` "
                        "first.")  # fmt: skip
    manifest = _json(path)
    try:
        settings = manifest["settings"]
        data = Data.model_validate_json(json.dumps(settings["data"]))
        return data, int(settings["seed"]), dict(manifest["sources"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no manifest of this version ({error}); run `llmrec prepare` "
                        "again.") from None  # fmt: skip


def _check_training(
    log: _Log,
    training: Interactions,
    examples: dict[str, Examples],
    targets: dict[str, Longs],
    file: str,
    found: Findings,
) -> Bools:
    """Each is a row of the log and stands before every valid and test target of its user.

    Returns (R,) which rows of the log train.
    """
    found.checked["training_interactions"] += len(training)
    at = log.at(training.source_row)
    rows, names = log.rows, training.user_ids[training.user]
    known = (at != _NOT_THERE) & (rows.user_ids[rows.user[at]] == names)
    known &= rows.position[at] == training.position
    known &= rows.timestamp[at] == training.timestamp
    for row in np.flatnonzero(~known).tolist():
        found.wrong(f"{file} row {row}: user {names[row]!r}, source row "
                    f"{training.source_row[row]}, time {training.timestamp[row]} is no such row "
                    "of the log")  # fmt: skip
    trained = np.zeros(len(rows), np.bool_)
    trained[at[known]] = True
    asked = {int(row): f"{part}.parquet row {number}" for part in ("valid", "test")
             for number, row in enumerate(targets[part].tolist())}  # fmt: skip
    for (first, end), row in _first_targets(log, examples, targets).items():
        for late in np.flatnonzero(trained[row:end]) + row:
            where = int(np.argmax(known & (at == late)))
            what = (f"is the target of {asked[int(late)]}" if int(late) in asked
                    else f"stands behind the target of {asked[row]}")  # fmt: skip
            found.wrong(f"{file} row {where}: user {rows.user_ids[rows.user[first]]!r}, time "
                        f"{rows.timestamp[late]} {what}, time {rows.timestamp[row]}")  # fmt: skip
    return trained


def _first_targets(
    log: _Log, examples: dict[str, Examples], targets: dict[str, Longs]
) -> dict[tuple[int, int], int]:
    """The earliest valid or test target of each user who has one, by the user's rows."""
    earliest: dict[tuple[int, int], int] = {}
    for part in ("valid", "test"):
        for user_id, row in zip(examples[part].user_ids, targets[part].tolist(), strict=True):
            if row != _NOT_THERE:
                span = log.span(user_id)
                earliest[span] = min(row, earliest.get(span, row))
    return earliest


def _check_examples(
    log: _Log, examples: Examples, targets: Longs, file: str, found: Findings
) -> None:
    """The target is a row of the log, the history the rows right before it."""
    found.checked[f"{Path(file).stem}_examples"] += len(examples)
    for number, (example, target) in enumerate(zip(examples, targets.tolist(), strict=True)):
        where = f"{file} row {number}: user {example.user_id!r}"
        if target == _NOT_THERE:
            found.wrong(f"{where} has no row of the log with position {example.target} at time "
                        f"{example.timestamp}, the target's")  # fmt: skip
            continue
        wrong = _wrong_in_history(log, example, target)
        if wrong is not None:
            found.wrong(f"{where}: {wrong}; the target's time is {example.timestamp}")


def _wrong_in_history(log: _Log, example: Example, target: int) -> str | None:
    """What a history holds that the rows before the target are not."""
    first, end = log.span(example.user_id)
    history, position = example.history, log.rows.position
    if len(history) > target - first:
        return f"a history of {len(history)}, and {target - first} rows stand before the target"
    others = np.flatnonzero(history != position[target - len(history) : target])
    if not len(others):
        return None
    place = int(others[-1])  # the latest items are what a leak would bring
    late = np.flatnonzero(position[target:end] == history[place]) + target
    when = (f"chosen at time {log.rows.timestamp[late[0]]}, not before the target" if len(late)
            else "which the user did not choose there")  # fmt: skip
    return f"history place {place} holds position {history[place]}, {when}"


def _check_candidates(
    examples: Examples, drawn: Ints, count: int, items: int, file: str, found: Findings
) -> None:
    """The target once among distinct items of the catalog that the history does not hold."""
    found.checked["candidates"] += drawn.size
    if drawn.shape != (len(examples), count):
        found.wrong(f"{file}: {drawn.shape[0]} rows of {drawn.shape[1]} candidates, for "
                    f"{len(examples)} examples of {count}")  # fmt: skip
        return
    for number, (example, row) in enumerate(zip(examples, drawn, strict=True)):
        where = f"{file} row {number}: user {example.user_id!r}, time {example.timestamp}:"
        times = int((row == example.target).sum())
        if times != 1:
            found.wrong(f"{where} the target stands {times} times among the candidates")
        seen = row[np.isin(row, example.history) & (row != example.target)]
        if len(seen):
            found.wrong(f"{where} candidates {seen.tolist()} stand in the history")
        others = row[row != example.target]
        if len(np.unique(others)) < len(others):
            found.wrong(f"{where} a candidate stands twice")
        if ((row < 0) | (row >= items)).any():
            found.wrong(f"{where} a candidate is outside the catalog of {items} items")


def _check_pools(
    log: _Log, pools: Pools, examples: Examples | None, trained: Bools, file: str, found: Findings
) -> None:
    """Each pool is of its example, or of a training row; see `_wrong_with` for who is in it."""
    if examples is not None and len(pools) != len(examples):
        found.wrong(f"{file}: similar users of {len(pools)} prompts for {len(examples)} examples")
    for number in range(len(pools)):
        user, time = str(pools.user_ids[number]), int(pools.timestamps[number])
        where = f"{file} row {number}: user {user!r}, query's time {time}:"
        if examples is None:
            if not trained[log.at_time(user, time)].any():
                found.wrong(f"{where} no training interaction of the user has that time")
        elif number < len(examples):
            own = (str(examples.user_ids[number]), int(examples.timestamps[number]))
            if own != (user, time):
                found.wrong(f"{where} the example is of user {own[0]!r} at time {own[1]}")
        names = [neighbour.user_id for neighbour in pools.neighbours[number]]
        for name in sorted({name for name in names if names.count(name) > 1}):
            found.wrong(f"{where} user {name!r} is in the pool {names.count(name)} times")
        for neighbour in pools.neighbours[number]:
            found.checked["similar_users"] += 1
            found.checked["rows_of_similar_users"] += len(neighbour.rows)
            for wrong in _wrong_with(log, neighbour, user, time, trained):
                found.wrong(f"{where} similar user {neighbour.user_id!r} {wrong}")


def _wrong_with(
    log: _Log, neighbour: Neighbour, user: str, time: int, trained: Bools
) -> Iterator[str]:
    """Another user, shown by consecutive training rows of theirs, all earlier than `time`."""
    if neighbour.user_id == user:
        yield "is the query's own user"
    source, rows = neighbour.rows, log.rows
    shown = np.append(neighbour.history, neighbour.chosen)
    if len(source) != len(shown):
        yield f"shows {len(shown)} titles of {len(source)} rows"
        return
    first, end = log.span(neighbour.user_id)
    at = log.at(source)
    others = (at < first) | (at >= end)
    if others.any():
        yield f"has no source row {source[np.argmax(others)]} in the log"
        return
    if not trained[at].all():
        row = at[np.argmin(trained[at])]
        yield (f"shows source row {rows.source_row[row]}, time {rows.timestamp[row]}, which is no "
               "training interaction")  # fmt: skip
    times = rows.timestamp[at]
    if times.max() >= time:
        yield (f"shows source row {source[np.argmax(times)]}, whose time {times.max()} is not "
               "earlier than the query's")  # fmt: skip
    if (np.diff(at) != 1).any():
        yield f"shows source rows {source.tolist()}, which do not follow one another in the log"
    wrong = np.flatnonzero(rows.position[at] != shown)
    if len(wrong):
        place = wrong[-1]
        yield (f"shows position {shown[place]} for source row {source[place]}, time "
               f"{times[place]}, where the log has {rows.position[at[place]]}")  # fmt: skip


def _check_shown(folder: "RunFolder", pools: dict[str, Pools], found: Findings) -> None:
    """What was shown of similar users is in the pools, and nobody is shown twice."""
    chosen: list[tuple[Path, str, Callable[[Any], Any]]] = [
        (path, "test", lambda said: said) for path in sorted(folder.similar.glob("shown-*.json"))
    ]
    for selected in (folder.selected, folder.sft.selected):
        chosen += [(path, "train", lambda said: said["shown"])
                   for path in sorted(selected.glob("*.json"))]  # fmt: skip
    for path, part, shown_of in chosen:
        file, said = _inside(folder, path), _json(path)
        sizes = [len(pool) for pool in pools[part].neighbours] if part in pools else []
        try:
            prompts = [[int(at) for at in shown_of(one)] for one in said]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: does not say which similar users were shown ({error}); run "
                            "the stage that wrote it again.") from None  # fmt: skip
        found.checked["prompts_with_similar_users"] += len(prompts)
        if len(prompts) != len(sizes):
            found.wrong(f"{file}: users shown in {len(prompts)} prompts, and {part} has "
                        f"similar users for {len(sizes)}")  # fmt: skip
        for row, (shown, size) in enumerate(zip(prompts, sizes, strict=False)):
            of = f"{file} row {row}: user {pools[part].user_ids[row]!r}"
            if any(not 0 <= at < size for at in shown):
                found.wrong(f"{of}: shows {shown} of a pool of {size}")
            if len(set(shown)) < len(shown):
                found.wrong(f"{of}: shows one of the pool twice, {shown}")


def _check_index(folder: "RunFolder", training: Interactions, found: Findings) -> None:
    """The index holds no more states than the training interactions have."""
    about = folder.similar / "index" / "index.json"
    if not about.is_file():
        return
    try:
        vectors, written = int(_json(about)["vectors"]), _json(about)["fingerprint"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{about}: does not describe an index ({error}); remove {about.parent} and "
                        "run `llmrec retrieve` again.") from None  # fmt: skip
    found.checked["index_vectors"] += vectors
    # A user's first choice ends no state.
    states = len(training) - len(np.unique(training.user))
    if vectors > states:
        found.wrong(f"{_inside(folder, about)}: {vectors} states (fingerprint {written[:16]}), and "
                    f"the training interactions have {states}")  # fmt: skip


def _not_checked(
    recipe: "Recipe", folder: "RunFolder", data: Data, training: Interactions, test: Examples
) -> Iterator[str]:
    """What a run without violations may still rest on, in sentences."""
    later = int((training.timestamp > test.timestamps.min()).sum()) if len(test) else 0
    yield (
        f"Counts, vectors of items, baselines and trained weights rest on all {len(training)} "
        f"training interactions, of which {later} are later than the earliest test target"
        + (f": rows of other users, as usual under data.split {data.split}." if later else ".")
    )
    yield "Prompts are not kept: what they are made from was checked, not their text."
    yield "What the language model had read before this run is not known here."
    if data.candidates is not None:
        yield "Candidates of training prompts are drawn while training and not kept."
    if (folder.similar / "index").is_dir():
        yield "Of the index the number of its vectors was checked, not the vectors."
    if recipe.demonstrations is not None:
        for part in PARTS:
            if not folder.pools(part).is_file():
                yield f"No similar users of {part} prompts stand in the run."


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error}); run `llmrec prepare` again.") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); run the stage that wrote it "
                        "again.") from None  # fmt: skip


def _inside(folder: "RunFolder", path: Path) -> str:
    return path.relative_to(folder.root).as_posix()
