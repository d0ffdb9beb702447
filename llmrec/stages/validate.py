"""`llmrec validate`: everything of a recipe that can be known before anything is paid for.

Reads the recipe, the names of what it asks for, the first lines of its data and, where the run has
been prepared from this very recipe, what was noticed then. Reads no rows and imports no torch.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec.errors import LlmrecError, RecipeError
from llmrec.fetch.cache import cached
from llmrec.fetch.known import DATA, MODELS, listed
from llmrec.recipe.loading import check, load
from llmrec.runs.folder import RunFolder

if TYPE_CHECKING:
    from llmrec.recipe import Recipe


def run(reference: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """{recipe, name, warnings}. Raises RecipeError that lists every error."""
    found = check(reference, overrides)
    recipe = load(reference, overrides)
    problems = [*_model(recipe.model.base), *_data(recipe)]
    if problems:
        raise RecipeError(f"{found['recipe']}:\n  " + "\n  ".join(problems), problems)
    return {**found, "warnings": [*found["warnings"], *_noticed(recipe)]}


def _model(base: str) -> Iterator[str]:
    """A name that is no tested one has to be a Hub id or a folder."""
    if base in MODELS or base.count("/") == 1 or Path(base).is_dir():
        return
    yield (
        f"model.base: {base!r} is neither a folder here, nor a Hub id (owner/name), nor one of "
        f"{listed(MODELS)}{_nearest(base, MODELS)}"
    )


def _data(recipe: "Recipe") -> Iterator[str]:
    """What is wrong with the source: not there, not known, or without the columns."""
    from llmrec.data.sources import is_pattern
    from llmrec.fetch.hub_data import is_hub_data

    source = recipe.data.source
    if is_hub_data(source):
        return
    path: Path | None = Path(source).expanduser()
    if path is not None and not path.exists() and not is_pattern(path):
        if source not in DATA:
            yield (
                f"data.source: {source!r} is neither a file or folder here nor one of "
                f"{listed(DATA)}{_nearest(source, DATA)}"
            )
            return
        path = cached("data", source)
    if path is None:
        return  # not fetched yet, and its files are known
    from llmrec.stages.prepared_log import recognised

    try:
        recognised(path, recipe.data)
    except LlmrecError as error:
        yield f"data: {error}"


def _nearest(name: str, known: Iterable[str]) -> str:
    from rapidfuzz.process import extractOne

    found = extractOne(name, list(known), score_cutoff=60)
    return "" if found is None else f"; did you mean {found[0]}?"


def _noticed(recipe: "Recipe") -> list[str]:
    """What prepared data of these very settings are known to lack."""
    from llmrec.stages.prepare import concerns, settings_of, verified_manifest

    manifest = verified_manifest(RunFolder.of(recipe).data)
    if manifest is None or manifest.get("settings") != settings_of(recipe):
        return []
    return concerns(manifest, recipe.decode.filter_seen)
