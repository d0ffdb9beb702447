"""`llmrec evaluate --targets FILE --predictions NAME=FILE ...`: foreign rankings, without a run.

The same metrics, intervals and paired tests as for a run. Which items could have been recommended
is not known here, so the table has no uniform guess and no columns of cold or tied targets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.errors import DataError, RecipeError
from llmrec.evaluation.comparison import compared, in_words
from llmrec.evaluation.foreign import Listed, read_ranking, read_targets, target_nll
from llmrec.evaluation.intervals import Floats
from llmrec.evaluation.layout import Form
from llmrec.evaluation.metrics import METRICS, at_every_k
from llmrec.evaluation.table import ALL, NLL, front_columns, metric_table
from llmrec.recipe.evaluation import Evaluate


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
    k = 10 if 10 in ks else ks[-1]
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
    listed: Listed, wanted: Listed, ks: Sequence[int], path: Path
) -> tuple[dict[str, Floats], list[str]]:
    """Metric -> (U,) of the users that have targets, and what was noticed.

    Who has no list has missed. A cut-off that no list reaches is not measured.
    """
    place = {user: number for number, user in enumerate(listed.users)}
    rows = [place.get(user, -1) for user in wanted.users]
    without = sum(row < 0 for row in rows)
    if without == len(rows):
        raise DataError(
            f"{path}: lists {listed.users[0]!r} and others, and none of the users that have "
            f"targets ({wanted.users[0]!r} and others); are these the same ids?"
        )
    codes = {item: code for code, item in enumerate(wanted.item_ids)}
    ours = np.array([codes.get(item, -1) for item in listed.item_ids], np.int64)
    rankings = [ours[listed.of(row)] if row >= 0 else ours[:0] for row in rows]
    sizes = np.diff(wanted.offsets)
    targets = np.full((len(rows), int(sizes.max())), -1, np.int64)
    targets[np.arange(targets.shape[1]) < sizes[:, None]] = wanted.items
    values = at_every_k(rankings, targets, ks)
    longest = max(map(len, rankings))
    for k in ks:
        if k > max(1, longest):
            values |= {f"{metric}@{k}": np.full(len(rows), np.nan) for metric in METRICS}
    notes = list(listed.notes)
    if without:
        notes.append(f"{without} of {len(rows)} users have no list, which counts as a miss")
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
