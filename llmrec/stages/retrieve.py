"""`llmrec retrieve`: similar users for the prompts, and which way of finding them is worth it.

Ways are compared on the validation examples by the only thing that counts: how often a user that
was found chose next what the example's user chose. Weights of the measures are fitted there too;
the test split is not looked at for either. Imports torch only for vectors of a model.
"""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.data.files import write_json
from llmrec.data.records import Examples
from llmrec.errors import RecipeError
from llmrec.evaluation.intervals import mean_interval
from llmrec.evaluation.layout import as_json, laid_out, number
from llmrec.inference.similar_users import SimilarUsers, item_vectors, shortfalls
from llmrec.retrieval.agreement import mean_agreement
from llmrec.retrieval.fitting import KS, RetrieverRow, compare_retrievers, fit_weights
from llmrec.retrieval.similarity import MEASURES
from llmrec.stages import prepare
from llmrec.stages.holding import alone

if TYPE_CHECKING:
    from llmrec.recipe import Recipe
    from llmrec.runs.folder import RunFolder

log = logging.getLogger("llmrec")
VECTORS = ("factors", "states", "sentences")
CONFIGURED, FITTED = "recipe", "fitted"


@alone("retrieve")
def run(
    recipe: "Recipe", folder: "RunFolder", vectors: list[str] | None = None, fit: bool = False
) -> dict[str, Any]:
    """Find similar users for validation and test, and compare the ways of finding them.

    `vectors`: kinds to compare beside the recipe's. `fit`: also search weights of the measures.
    """
    if recipe.demonstrations is None:
        raise RecipeError("retrieve finds users to show; the recipe has no section demonstrations")
    kinds = list(dict.fromkeys([recipe.demonstrations.similarity.vectors, *(vectors or [])]))
    unknown = [kind for kind in kinds if kind not in VECTORS]
    if unknown:
        raise RecipeError(f"--vectors {unknown[0]}: there are {', '.join(VECTORS)}")
    prepare.run(recipe, folder)
    finder = SimilarUsers(recipe, folder)
    valid = Examples.read(folder.examples("valid"))
    found: dict[str, Any] = {"similar": str(folder.similar)}
    for split in ("valid", "test"):
        examples = Examples.read(folder.examples(split))
        pools = finder.of(split, examples)
        found[split] = shortfalls(pools, examples, recipe.demonstrations.pool)
    index = finder.retriever.index
    found["index"] = {
        "kind": index.kind,
        "states": len(index),
        "recall@10": index.recall,
        "bytes_per_state": index.bytes_per_vector,
    }
    weights = {CONFIGURED: recipe.demonstrations.similarity.weights.model_dump()}
    queries = finder.queries(valid)
    if fit:
        fitted = fit_weights(finder.retriever, queries, valid.targets)
        weights[FITTED] = fitted.weights
        found["fitted"] = {
            "weights": fitted.weights,
            "criterion": "mean of 1 / place of the first user that "
            "chose the target next, among ten",
            "value": fitted.value,
            "equal_weights": fitted.equal_value,
            "examples": fitted.queries,
        }
    compared = {kind: item_vectors(recipe, folder, kind) for kind in kinds}
    whole = {}
    if finder.whole is not None:
        named = f"{kinds[0]}, whole histories"
        compared, whole = {named: compared[kinds[0]], **compared}, {named: finder.whole}
    rows = compare_retrievers(
        finder.snapshots,
        compared,
        queries,
        valid.targets,
        weights,
        recipe.demonstrations.similarity.coarse,
        recipe.seed,
        interactions=finder.interactions,
        whole=whole,
    )
    found["examples"] = len(valid)
    found["retrievers"] = [_figures(row, valid, recipe) for row in rows]
    write_json(folder.similar / "report.json", as_json(found))
    return found


def table(found: dict[str, Any]) -> str:
    """What `run` found, as a text table with intervals."""
    header = ["vectors", "ranked by", *(f"chose the target next, of {k}" for k in KS), *MEASURES]
    header.append("rating agreement")
    lines = []
    for row in found["retrievers"]:
        hits = [row["hits"][str(k)] for k in KS]
        shown = [f"{number(h['mean'])} [{number(h['low'])}, {number(h['high'])}]" for h in hits]
        lines.append(
            [
                row["vectors"],
                row["ranked_by"],
                *shown,
                *(number(row["first"][measure]) for measure in MEASURES),
                f"{number(row['agreement']['mean'])} ({row['agreement']['examples']})",
            ]
        )
    notes = [
        f"{found['examples']} validation examples, 95 % bootstrap intervals over users; the "
        "measures are those of the first user found (lcs: the order preserved). Rating agreement: "
        "of items that both rated, in brackets for how many examples it is known."
    ]
    for split in ("valid", "test"):
        said = found[split]
        notes.append(
            f"{split}: {said['prompts']} prompts, {said['no_users']} without a similar "
            f"user (shown none), {said['fewer_users']} with fewer than wanted, "
            f"{said['empty_history']} without a history."
        )
    if "fitted" in found:
        fitted = found["fitted"]
        said = ", ".join(f"{name}: {weight:g}" for name, weight in fitted["weights"].items())
        notes.append(
            f"demonstrations: {{similarity: {{weights: {{{said}}}}}}} reaches "
            f"{number(fitted['value'])}, equal weights {number(fitted['equal_weights'])} "
            f"({fitted['criterion']})."
        )
    return laid_out(header, lines, "text") + "\n" + "\n".join(notes)


def _figures(row: RetrieverRow, valid: Examples, recipe: "Recipe") -> dict[str, Any]:
    clusters = np.unique(valid.user_ids, return_inverse=True)[1]
    hits = {
        str(k): mean_interval(row.hits[:, i].astype(float), clusters, seed=recipe.seed)
        for i, k in enumerate(KS)
    }
    there = ~np.isnan(row.first[:, 0])
    first = row.first[there].mean(axis=0) if there.any() else np.full(len(MEASURES), np.nan)
    return {
        "vectors": row.vectors,
        "ranked_by": row.weights,
        "hits": {k: {"mean": i.mean, "low": i.low, "high": i.high} for k, i in hits.items()},
        "first": dict(zip(MEASURES, first.tolist(), strict=True)),
        "agreement": dict(zip(("mean", "examples"), mean_agreement(row.agreement), strict=True)),
    }
