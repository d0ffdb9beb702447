"""`llmrec compare A B ...`: paired tests between systems of one or several runs.

Each name is RUN or RUN:system, and the first is the reference: `A:system` is the reference of all
others; a bare `A` gives every system the system of the same name in A. A bare RUN further on stands
for all its systems. Everything, the means too, is taken over the examples that all of them share
(user by user, and for a user with several examples in their order). Where baselines and language
models are among them, what each model adds to all those baselines mixed stands below. Reads
`per_user.parquet` and `metrics.json`; imports neither torch nor transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llmrec.data.records import COLD, TIED, USER_ID
from llmrec.errors import DataError, RecipeError
from llmrec.evaluation.comparison import Comparison, compared
from llmrec.evaluation.intervals import Floats
from llmrec.evaluation.layout import Form, laid_out, number
from llmrec.evaluation.mixture import additions
from llmrec.evaluation.predictions import leaky_notes
from llmrec.evaluation.table import ALL, main_columns, metric_table
from llmrec.runs.evaluated import read_metrics, read_per_user
from llmrec.runs.folder import RunFolder
from llmrec.stages.evaluate import SYSTEM, TARGET_ITEM_ID, groups_of, tested_metrics

FORMS = ("text", "markdown", "latex", "json")


@dataclass(frozen=True)
class _Answers:
    """One system of one run: `rows` are its examples, `metrics` what the run says of itself."""

    label: str
    run: str
    system: str
    rows: pa.Table
    metrics: dict[str, Any]

    def floats(self, name: str) -> Floats:
        """(E,) one metric."""
        return self.rows[name].to_numpy().astype(np.float64)


def run(names: Sequence[str], form: str = "text") -> str | dict[str, Any]:
    """The table and the tests as text, Markdown or LaTeX, or as a dict for `json`.

    Raises RecipeError for names or a form that cannot be used, DataError for runs that cannot be
    compared (no shared users, other targets).
    """
    if form not in FORMS:
        raise RecipeError(f"--format {form!r} is none of {', '.join(FORMS)}.")
    answers, pairs = _chosen(names)
    first = answers[0].metrics
    answers, users, notes = _on_shared(answers)
    settings = first["evaluate"]
    k = _shared_k(answers, settings["main_k"])
    options = {
        "samples": settings["samples"],
        "confidence": settings["confidence"],
        "seed": settings["seed"],
    }
    clusters = np.unique(users, return_inverse=True)[1]
    values = {a.label: {m: a.floats(m) for m, _ in main_columns(k)} for a in answers}
    rows = answers[0].rows
    groups = groups_of(rows[COLD].to_numpy(), rows[TIED].to_numpy())
    table = metric_table(
        values,
        {ALL: groups[ALL]},
        clusters,
        first["catalog"],
        notes=notes,
        samples=options["samples"],
        confidence=options["confidence"],
        seed=options["seed"],
    )
    comparisons = [
        comparison
        for metric in tested_metrics(k)
        for comparison in compared(
            metric,
            pairs,
            {label: metrics[metric] for label, metrics in values.items()},
            clusters,
            samples=options["samples"],
            confidence=options["confidence"],
            seed=options["seed"],
        )
    ]
    kinds = {a.label: a.metrics["systems"][a.system]["kind"] for a in answers}
    added = additions(
        {label: metrics["NLL"] for label, metrics in values.items()},
        [label for label, kind in kinds.items() if kind == "language_model"],
        [label for label, kind in kinds.items() if kind == "baseline"],
        clusters,
        **options,
    )
    if form == "json":
        return {
            "examples": len(users),
            "table": table.to_json(),
            "comparisons": [c.to_json() for c in comparisons],
            "additions": [one.to_json() for one in added],
        }
    chosen: Form = "markdown" if form == "markdown" else "latex" if form == "latex" else "text"
    shown = table.only(main_columns(k)).render(chosen)
    said = [one.in_words(options["confidence"]) for one in added]
    return "\n".join([shown, render(comparisons, chosen), *said])


def render(comparisons: Sequence[Comparison], form: Form) -> str:
    """Paired tests as a table, one row each."""
    header = ["metric", "system", "reference", "difference", "p (Holm)", "n", "stands"]
    rows = [
        [
            c.metric,
            c.system,
            c.reference,
            _difference(c),
            number(c.p_holm),
            str(c.test.n),
            c.standing,
        ]
        for c in comparisons
    ]
    return laid_out(header, rows, form)


def _difference(comparison: Comparison) -> str:
    test = comparison.test
    bounds = f" [{number(test.low, sign=True)}, {number(test.high, sign=True)}]"
    return number(test.difference, sign=True) + bounds


def _chosen(names: Sequence[str]) -> tuple[list[_Answers], list[tuple[str, str]]]:
    """The systems named, and which is tested against which, by label."""
    if len(names) < 2:
        raise RecipeError(
            "compare needs at least two names, each RUN or RUN:system; the first is "
            "what the others are compared with."
        )
    parsed = [_parsed(name) for name in names]
    labels = _run_labels([folder for folder, _ in parsed])
    known: dict[str, _Answers] = {}
    members: list[list[str]] = []
    for folder, system in parsed:
        of_run = _read(folder, labels[folder.root])
        if system is not None and system not in of_run:
            raise RecipeError(
                f"{folder.root} has no system {system!r}; it has {', '.join(of_run)}."
            )
        chosen = list(of_run.values()) if system is None else [of_run[system]]
        known |= {answers.label: answers for answers in chosen}
        members.append([answers.label for answers in chosen])
    if parsed[0][1] is not None:
        reference = members[0][0]
        others = [label for group in members[1:] for label in group]
        pairs = [(label, reference) for label in dict.fromkeys(others) if label != reference]
    else:
        same = {known[label].system: label for label in members[0]}
        others = [label for group in members[1:] for label in group]
        pairs = [
            (label, same[known[label].system])
            for label in dict.fromkeys(others)
            if known[label].system in same and same[known[label].system] != label
        ]
    if not pairs:
        raise RecipeError(
            f"nothing to compare with {names[0]!r}: name a system of it as the "
            "reference (RUN:system), or a run with systems of the same "
            "names."
        )
    used = {label for pair in pairs for label in pair}
    return [known[label] for label in known if label in used], pairs


def _parsed(name: str) -> tuple[RunFolder, str | None]:
    if RunFolder(Path(name)).metrics.is_file() or ":" not in name:
        return RunFolder(Path(name)), None
    folder, _, system = name.rpartition(":")
    return RunFolder(Path(folder)), system


def _run_labels(folders: Sequence[RunFolder]) -> dict[Path, str]:
    """The folder's own name, or the whole path where two would be called the same."""
    roots = list(dict.fromkeys(folder.root for folder in folders))
    short = [root.resolve().name for root in roots]
    return {
        root: name if short.count(name) == 1 else str(root)
        for root, name in zip(roots, short, strict=True)
    }


def _read(folder: RunFolder, run_label: str) -> dict[str, _Answers]:
    metrics = read_metrics(folder.metrics)
    table = read_per_user(folder, metrics)
    column = np.array(table[SYSTEM].to_pylist(), dtype=object)
    return {
        system: _Answers(
            f"{run_label}:{system}",
            run_label,
            system,
            table.filter(pa.array(column == system)),
            metrics,
        )
        for system in dict.fromkeys(column)
    }


def _on_shared(
    answers: Sequence[_Answers],
) -> tuple[list[_Answers], npt.NDArray[np.object_], list[str]]:
    """The same systems over the examples that all have, in one order; their users; notes."""
    users = [np.array(a.rows[USER_ID].to_pylist(), dtype=object) for a in answers]
    codes = np.unique(np.concatenate(users), return_inverse=True)[1]
    keys = [
        _example_keys(part) for part in np.split(codes, np.cumsum([len(u) for u in users])[:-1])
    ]
    shared: npt.NDArray[np.int64] = reduce(np.intersect1d, keys)
    if not len(shared):
        raise DataError("the runs share no test user, so nothing can be compared pair by pair.")
    aligned = []
    for a, own in zip(answers, keys, strict=True):
        order = np.argsort(own)
        aligned.append(replace(a, rows=a.rows.take(order[np.searchsorted(own[order], shared)])))
    targets = [np.array(a.rows[TARGET_ITEM_ID].to_pylist(), dtype=object) for a in aligned]
    for a, own in zip(aligned, targets, strict=True):
        differing = int((own != targets[0]).sum())
        if differing:
            raise DataError(
                f"{aligned[0].run} and {a.run} were not evaluated on the same test split: "
                f"{differing} of {len(shared)} shared examples have other targets. Prepare both "
                "with the same `data` section."
            )
    notes = [f"{len(shared)} examples that all have in common."]
    left_out = {a.run: len(own) - len(shared) for a, own in zip(answers, keys, strict=True)}
    notes += [
        f"{count} examples of {name} left out, not every run has them."
        for name, count in left_out.items()
        if count
    ]
    notes += leaky_notes(
        {a.label: a.metrics["systems"][a.system].get("hyperparameters") or {} for a in aligned}
    )
    sizes = {a.run: a.metrics["catalog"] for a in answers}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name} {size}" for name, size in sizes.items())
        notes.append(f"The catalogs differ in size ({said} items): choosing among fewer is easier.")
    return aligned, np.array(aligned[0].rows[USER_ID].to_pylist(), dtype=object), notes


def _example_keys(users: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
    """(E,) one number for each (user, how many examples of that user stand before)."""
    order = np.argsort(users, kind="stable")
    ordered = users[order]
    nth = np.empty(len(users), np.int64)
    nth[order] = np.arange(len(users)) - np.searchsorted(ordered, ordered)
    return users.astype(np.int64) * (1 << 32) + nth


def _shared_k(answers: Sequence[_Answers], preferred: int) -> int:
    """The first run's main cut-off, or the largest that all the runs have."""
    common = reduce(lambda a, b: a & b, (set(a.metrics["evaluate"]["k"]) for a in answers))
    if not common:
        raise DataError("the runs share no cut-off; set evaluate.k alike and evaluate again.")
    return preferred if preferred in common else max(common)
