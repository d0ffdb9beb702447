"""What training reads that runs of the same data and weights share: made once, in the cache."""

from llmrec.fetch import cache
from llmrec.recipe import Recipe
from llmrec.runs.artifact import Artifact
from llmrec.runs.folder import RunFolder
from llmrec.runs.identity import base_content, data_content, weights_content
from llmrec.runs.made import MODEL, TRAINING_DATA, start_of

_PROPOSED = ("data.candidates.from", "data.candidates.count", "data.candidates.folds")
_SOFTMAX = ("objective.name", "objective.tau", "objective.head", "objective.among")


def reference(recipe: Recipe, rows: str) -> Artifact:
    """What the model that training starts from gives the branches of rows of SHA-256 `rows`."""
    start = start_of(recipe)
    contents = {
        **base_content(recipe),
        "start": None if start is None else weights_content(start),
        "rows": rows,
    }
    return Artifact(
        cache.cache_root() / "references" / "values.npy",
        recipe,
        (*MODEL, *_SOFTMAX, "train.bf16", "train.fp16"),
        contents=contents,
    ).named_by_key()


def proposals(recipe: Recipe, folder: RunFolder, rows: str) -> Artifact:
    """What a retriever proposes for training rows, whose SHA-256 is `rows`."""
    return Artifact(
        cache.cache_root() / "proposals" / "candidates.npy",
        recipe,
        (
            "seed",
            "data.candidates.from",
            "data.candidates.count",
            "data.candidates.folds",
            "decode.filter_seen",
        ),
        contents={"rows": rows, **data_content(folder, *TRAINING_DATA, "retriever.json")},
        version=3,
    ).named_by_key()
