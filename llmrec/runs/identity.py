"""What a recipe names, by content: prompt template, base model, tokenizer, prepared data.

Two recipes that name the same bytes in different ways are one, and a name whose bytes changed is
another. Each function gives a mapping from a word for the thing to what it is, mostly a SHA-256.
Loads no model; imports neither torch nor transformers.
"""

import hashlib
import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmrec.data import sealed
from llmrec.data.files import sha256_of, write_json
from llmrec.errors import DataError, LlmrecError, RecipeError
from llmrec.fetch import cache as fetch
from llmrec.recipe import Recipe, shipped
from llmrec.runs.folder import RunFolder, hub_commit

log = logging.getLogger("llmrec")
Content = dict[str, Any]
REMEMBERED_FROM = 2**24  # bytes; a smaller file is hashed again by every process
_TOKENIZER = ("tokenizer*", "vocab*", "merges*", "special_tokens*", "added_tokens*", "chat_temp*")
_BASE = {
    "model weights": ("*.safetensors",),
    "model configuration": ("config.json", "*.py"),
    "tokenizer": (*_TOKENIZER, "*.model"),
}


def template_content(recipe: Recipe) -> Content:
    """The text of the prompt template: the recipe's own, or the shipped one."""
    prompt = recipe.prompt
    try:
        text = (
            Path(prompt.file).read_text("utf-8")
            if prompt.file
            else shipped.prompt_text(f"{prompt.task}/{prompt.domain}")
        )
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"prompt.file: {prompt.file} cannot be read ({error})") from None
    return {"prompt template": combined([text])}


def base_content(recipe: Recipe) -> Content:
    """The base model's weights, configuration and tokenizer."""
    return model_content(recipe.model.base, recipe.model.revision)


def model_content(name: str, revision: str | None = None) -> Content:
    """A model's weights, configuration and tokenizer; of a Hub id its repository and commit.

    `name`: one that `llmrec fetch model` knows, a folder, or a Hub id.
    """
    if Path(name).is_dir():
        return {
            what: combined(
                f"{path.name} {remembered_hash(path)}" for path in _those(name, patterns)
            )
            for what, patterns in _BASE.items()
        }
    source = fetch.source_of(fetch.cache_root() / "models" / name)
    if source is not None:
        hashes = {Path(file): said["sha256"] for file, said in source["files"].items()}
        return {
            what: combined(
                f"{path.name} {hashes[path]}"
                for path in sorted(hashes)
                if any(path.match(pattern) for pattern in patterns)
            )
            for what, patterns in _BASE.items()
        }
    commit = hub_commit(name, revision or "main") if "/" in name else revision
    return {"model": name if commit is None else f"{name}@{commit}"}


def data_content(folder: RunFolder, *names: str) -> Content:
    """Files of the prepared data, each that is there checked against the manifest of `prepare`.

    One that the manifest does not have is None. Raises DataError for data that is damaged, or was
    never prepared.
    """
    known = _recorded(folder)
    if known is None:
        known = {n: remembered_hash(folder.data / n) for n in names if (folder.data / n).is_file()}
        if not known:
            raise DataError(f"{folder.data} holds no data; run `llmrec prepare` first")
    for name in names:
        if (folder.data / name).is_file():
            _require(folder.data / name, known.get(name))
    return {f"data/{name}": known.get(name) for name in names}


def require_whole_data(folder: RunFolder) -> None:
    """Raise DataError where a prepared file is not as its manifest, if there is one, says."""
    for name, expected in (_recorded(folder) or {}).items():
        if (folder.data / name).is_file():
            _require(folder.data / name, expected)


def _recorded(folder: RunFolder) -> dict[str, str] | None:
    """The SHA-256 that the manifest has of each prepared file; None without a manifest."""
    manifest = folder.data / "manifest.json"
    try:
        again = "run `llmrec prepare` to make it again"
        outputs = sealed.read_facts(manifest, again)["outputs"].items()
        return {name: str(said["sha256"]) for name, said in outputs}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{manifest} is damaged ({type(error).__name__}); run `llmrec prepare` to make it again"
        ) from None


def _require(path: Path, expected: str | None) -> None:
    if expected is not None and remembered_hash(path) != expected:
        raise DataError(
            f"{path} is damaged: it is not what manifest.json says was written; run `llmrec "
            "prepare` to make it again"
        )


def weights_content(folder: Path) -> str:
    """SHA-256 over the weights in a folder and how they are applied (an adapter's rank, scale).

    Raises LlmrecError where there are none.
    """
    if not _those(folder, ("*.safetensors",)):
        raise LlmrecError(
            f"{folder}: no trained weights; run `llmrec train` first or name another adapter"
        )
    return combined(
        f"{path.name} {remembered_hash(path)}"
        for path in _those(folder, ("*.safetensors", "adapter_config.json"))
    )


def combined(parts: Any) -> str:
    """SHA-256 over some texts in their order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def remembered_hash(path: Path) -> str:
    """SHA-256 of a file; of a large one remembered in the cache until size or time of it change."""
    stat = path.stat()
    return _remembered(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _remembered(path: Path, size: int, mtime: int) -> str:
    if size < REMEMBERED_FROM:
        return sha256_of(path)
    about = {"path": str(path), "bytes": size, "mtime_ns": mtime}
    note = fetch.cache_root() / "hashes" / f"{combined([str(path)])[:32]}.json"
    try:
        said = json.loads(note.read_text("utf-8"))
        if {key: said.get(key) for key in about} == about:
            return str(said["sha256"])
    except (OSError, ValueError, AttributeError, KeyError):
        pass
    found = sha256_of(path)
    try:
        write_json(note, {**about, "sha256": found})
    except OSError as error:
        log.debug("the hash of %s is not remembered (%s)", path, error)
    return found


def _those(folder: str | Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for p in patterns for path in Path(folder).glob(p) if path.is_file()})
