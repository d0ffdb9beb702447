"""`llmrec evaluate --predictions NAME=FILE ...`: rankings of other programs, with a run or without.

With a run they become predictions of it, rows of its table. Without one, `--targets FILE`, they get
the same metrics, intervals and paired tests; which items could have been recommended is not known
then, so the table has no uniform guess and no columns of cold or tied targets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.data.files import sha256_of
from llmrec.errors import DataError, RecipeError
from llmrec.evaluation.comparison import compared, in_words
from llmrec.evaluation.foreign import ForeignLists, matched, read_ranking, read_targets, target_nll
from llmrec.evaluation.intervals import Floats
from llmrec.evaluation.layout import Form
from llmrec.evaluation.metrics import METRICS, at_every_k
from llmrec.evaluation.predictions import Predictions, SystemInfo
from llmrec.evaluation.table import ALL, NLL, front_columns, metric_table
from llmrec.recipe.evaluation import Evaluate
from llmrec.recipe.systems import System
from llmrec.runs.evaluated import read_test_split

if TYPE_CHECKING:
    from llmrec.recipe import Recipe
    from llmrec.runs.folder import RunFolder


def run(
    targets: Path, predictions: Sequence[str], settings: Evaluate | None = None, form: Form = "text"
) -> dict[str, Any]:
    """The table, every system against the first, and the numbers as JSON.

    `predictions`: written NAME=FILE, in the order of the table. Raises RecipeError for one that is
    not, DataError for a file that cannot be read or shares no user with the targets.
    """
    settings = settings or Evaluate()
    wanted, ks = read_targets(targets), sorted(set(settings.k))
    per_user, notes = {}, []
    for name, path in named_files(predictions).items():
        values, said = _values(read_ranking(path), wanted, ks, path)
        per_user[name] = values
        notes += [f"{name}: {note}." for note in said]
    clusters = np.arange(len(wanted.users))
    options = settings.model_dump(include={"samples", "confidence", "seed"})
    everyone = {ALL: np.ones(len(clusters), np.bool_)}
    table = metric_table(per_user, everyone, clusters, 1, notes=notes, **options)
    table = replace(table, uniform_nll=math.nan)
    measured = [k for k in ks if table.measured(f"HR@{k}")] or ks
    k = 10 if 10 in measured else measured[-1]
    first, *others = per_user
    comparisons = [
        comparison
        for metric in (NLL, f"NDCG@{k}", f"HR@{k}")
        for comparison in compared(
            metric,
            [(other, first) for other in others],
            {system: values[metric] for system, values in per_user.items()},
            clusters,
            **options,
        )
    ]
    return {
        "table": table.only(front_columns(k)).render(form),
        "findings": "\n".join(in_words(c, settings.confidence) for c in comparisons),
        "metrics": {
            "users": len(clusters),
            "evaluate": {"k": ks, **options},
            "table": table.to_json(),
            "comparisons": [comparison.to_json() for comparison in comparisons],
        },
    }


def adopt(recipe: "Recipe", folder: "RunFolder", predictions: Sequence[str]) -> list[str]:
    """Make foreign rankings, written NAME=FILE, predictions of a run; what was noticed.

    Raises RecipeError for the name of a system of llmrec's own, DataError for a file that cannot be
    read, shares no user with the test split, or meets a split with several examples a user.
    """
    split, noticed = read_test_split(folder), []
    test, ids = split.examples, split.catalog.item_ids
    if len(set(test.user_ids)) < len(test):
        raise DataError(
            f"{folder.examples('test')} has several examples of a user, and a foreign ranking does "
            "not say which it answers; evaluate it on a split of one target a user"
        )
    for name, path in named_files(predictions).items():
        if System.is_name(name) or not name.isidentifier():
            raise RecipeError(
                f"--predictions {name}={path}: {name} is "
                + ("a system of llmrec's own" if System.is_name(name) else "no plain word")
                + "; give the ranking another name"
            )
        listed = read_ranking(path)
        place = {user: number for number, user in enumerate(listed.users)}
        rows = [place.get(user, -1) for user in test.user_ids]
        _require_shared(rows, listed, test.user_ids[0], path)
        position = {item: number for number, item in enumerate(ids)}
        known = np.array([position.get(item, -1) for item in listed.item_ids], np.int32)
        lists = [known[listed.of(row)] if row >= 0 else known[:0] for row in rows]
        targets = dict(zip(test.user_ids, (ids[t] for t in test.targets), strict=True))
        nll, kept = np.full(len(test), np.nan), target_nll(listed, targets)
        if kept is not None:
            nll = np.array([kept[row] if row >= 0 else np.nan for row in rows])
        notes = [*listed.notes, *_missed(rows)]
        outside = int(sum((one < 0).sum() for one in lists))
        if outside:
            notes.append(f"{outside} answers are no items of the catalog")
        provenance = {
            "file": path.name,
            "sha256": sha256_of(path),
            "data": folder.provenance(recipe)["data"],
        }
        info = SystemInfo(name, "external", kept is not None, provenance=provenance, notes=notes)
        scores = [-np.arange(len(one), dtype=np.float32) for one in lists]
        Predictions.of(info, test.user_ids, lists, scores, nll).write(folder.predictions(name))
        noticed += [f"{name}: {note}" for note in notes]
    return noticed


def drop(folder: "RunFolder", names: Sequence[str]) -> None:
    """Remove foreign rankings from a run. Raises RecipeError for one that is not there, or is a
    system of the run's own."""
    for name in names:
        path = folder.predictions(name)
        if System.is_name(name) or not name.isidentifier() or not path.is_file():
            kept = folder.predictions("any").parent.glob("*.parquet")
            there = sorted(file.stem for file in kept if not System.is_name(file.stem))
            raise RecipeError(
                f"--drop {name}: no ranking of another program in this run; there are "
                f"{', '.join(there) or 'none'}"
            )
    for name in names:
        folder.predictions(name).unlink()


def named_files(predictions: Sequence[str]) -> Mapping[str, Path]:
    """Files by the name of their system. Raises RecipeError unless each is NAME=FILE, once."""
    found: dict[str, Path] = {}
    for one in predictions:
        name, equals, path = one.partition("=")
        if not (name and equals and path):
            raise RecipeError(f"--predictions {one}: written NAME=FILE, as in mine=ranking.csv")
        if name in found:
            raise RecipeError(f"--predictions {one}: {name} is there twice; every name once")
        found[name] = Path(path).expanduser()
    return found


def _values(
    listed: ForeignLists, wanted: ForeignLists, ks: Sequence[int], path: Path
) -> tuple[dict[str, Floats], list[str]]:
    """Metric -> (U,) of the users that have targets, and what was noticed.

    Who has no list has missed. A cut-off that no list reaches is not measured.
    """
    place = {user: number for number, user in enumerate(listed.users)}
    rows = [place.get(user, -1) for user in wanted.users]
    _require_shared(rows, listed, wanted.users[0], path)
    rankings, targets = matched(listed, wanted)
    sizes = np.diff(wanted.offsets)
    values = at_every_k(rankings, targets, ks)
    longest = max(map(len, rankings))
    for k in ks:
        if k > max(1, longest):
            values |= {f"{metric}@{k}": np.full(len(rows), np.nan) for metric in METRICS}
    notes = [*listed.notes, *_missed(rows)]
    others = len(set(listed.users) - set(wanted.users))
    if others:
        notes.append(f"{others} users without a target left out")
    single = {
        user: wanted.item_ids[wanted.of(n)[0]]
        for n, user in enumerate(wanted.users)
        if sizes[n] == 1
    }
    nll = target_nll(listed, single)
    if nll is None and listed.probabilities is not None:
        notes.append("NLL not measured, as probabilities do not sum to 1 for each user")
    values[NLL] = np.full(len(rows), np.nan)
    if nll is not None:
        values[NLL] = np.array([nll[row] if row >= 0 else np.nan for row in rows])
    return values, notes


def _require_shared(rows: Sequence[int], listed: ForeignLists, user: str, path: Path) -> None:
    if all(row < 0 for row in rows):
        raise DataError(
            f"{path}: lists {listed.users[0]!r} and others, and none of the users that have "
            f"targets ({user!r} and others); are these the same ids?"
        )


def _missed(rows: Sequence[int]) -> list[str]:
    without = sum(row < 0 for row in rows)
    return [f"{without} of {len(rows)} users have no list, which counts as a miss"] * bool(without)
