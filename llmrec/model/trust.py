"""What a folder of weights from elsewhere may make us do: read safetensors, and run code only where
that code is pinned.

Looks at files before transformers or PEFT do; loads no weights and runs nothing.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmrec.data.files import sha256_of
from llmrec.errors import LlmrecError, RecipeError

# What torch, numpy and others write as pickles.
PICKLES = frozenset((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"))
ADAPTER = "adapter_model.safetensors"
INDEX = "model.safetensors.index.json"
_SETTINGS = ("config.json", "tokenizer_config.json")
_OWN_CODE = re.compile(r"\w+\.\w+")
_DIGITS = 40
_REMEDY = (
    "it could run code when it is read, so weights are read from safetensors alone; have whoever "
    "made it save with `save_pretrained(..., safe_serialization=True)`, or take a source that has "
    "*.safetensors"
)


def require_safe_model(folder: Path) -> None:
    """Raise LlmrecError unless a model's weights in `folder` are safetensors."""
    if (folder / "adapter_config.json").is_file():
        raise RecipeError(
            f"model.base: {folder} holds an adapter, no base model; name the model that it was "
            "trained on, and this folder as model.adapter"
        )
    parts = _read(folder / INDEX).get("weight_map")
    names = set(parts.values()) if isinstance(parts, dict) else set()
    for name in sorted(map(str, names)):
        if not re.fullmatch(r"[^/\\]+\.safetensors", name):
            raise LlmrecError(f"model.base: {folder / INDEX} names {name!r}: {_REMEDY}")
    if not any(folder.glob("*.safetensors")):
        _refuse_pickle(folder, "model.base")


def require_safe_adapter(folder: Path) -> None:
    """Raise LlmrecError unless `folder` is a LoRA adapter in safetensors."""
    if not (folder / ADAPTER).is_file():
        _refuse_pickle(folder, "adapter")
        raise LlmrecError(f"adapter: {folder} lacks {ADAPTER}; name another adapter, or train one")
    kind = _read(folder / "adapter_config.json").get("peft_type")
    if kind != "LORA":
        raise LlmrecError(
            f"adapter: {folder / 'adapter_config.json'} is of the kind {kind!r}; llmrec reads LoRA "
            "adapters alone"
        )


def require_safe_checkpoint(folder: Path) -> None:
    """Raise LlmrecError where a checkpoint to go on from holds weights as a pickle.

    The states of optimiser and generators are torch's own files, read with `weights_only`.
    """
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin"):
        if (folder / name).exists():
            raise LlmrecError(f"checkpoint: {folder / name} is a pickle: {_REMEDY}")


def require_safe_encoder(folder: Path) -> None:
    """Raise LlmrecError unless a sentence encoder is safetensors and the library's own modules."""
    try:
        modules = json.loads((folder / "modules.json").read_text("utf-8"))
        kinds = [str(module["type"]) for module in modules]
    except FileNotFoundError:
        kinds = []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LlmrecError(f"{folder / 'modules.json'} cannot be read ({error})") from None
    for kind in kinds:
        if not re.fullmatch(r"sentence_transformers(\.\w+)+", kind):
            raise LlmrecError(f"{folder / 'modules.json'} names code to run, {kind!r}; refused")
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        if not any(place.glob("*.safetensors")):
            _refuse_pickle(place, "encoder")


def _refuse_pickle(folder: Path, what: str) -> None:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in PICKLES:
            raise LlmrecError(f"{what}: {path} is a pickle: {_REMEDY}")


def require_pinned_code(source: str, revision: str | None, offline: bool = False) -> None:
    """Raise RecipeError unless the code that a model brings is all its own, and pinned.

    A Hub repository is pinned by its commit; a folder by `code_hash`, given as `revision`. Code of
    another repository, or of a path, is refused: nothing pins it.
    """
    for file, reference in _references(source, revision, offline):
        if not _OWN_CODE.fullmatch(reference):
            raise RecipeError(
                f"model.trust_remote_code: {file} of {source} names code elsewhere, {reference!r}, "
                "which no revision pins; copy that code into the model's folder, then pin it"
            )
    folder = Path(source)
    if folder.is_dir() and (found := code_hash(folder)) != revision:
        raise RecipeError(
            f"model.trust_remote_code: {source} is a folder, and what pins its code is the hash "
            f"of its *.py files, not {revision!r}; read them, and if you trust them give "
            f"model.revision={found}"
        )


def code_hash(folder: Path) -> str:
    """40 hex digits of the SHA-256 over the names and bytes of all *.py files below a folder."""
    files = sorted(path for path in folder.rglob("*.py") if path.is_file())
    told = [f"{path.relative_to(folder).as_posix()} {sha256_of(path)}" for path in files]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:_DIGITS]


def _references(source: str, revision: str | None, offline: bool) -> Iterator[tuple[str, str]]:
    """The classes that a model's settings name as code to run, each with the file."""
    from transformers.utils import cached_file

    for name in _SETTINGS:
        if Path(source).is_dir():
            path: Any = Path(source) / name
        else:
            path = cached_file(
                source,
                name,
                revision=revision,
                local_files_only=offline,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        named = _read(Path(path)).get("auto_map") if path else None
        classes = list(named.values()) if isinstance(named, dict) else [named]
        for one in classes:
            for reference in one if isinstance(one, list) else [one]:
                if reference is not None:
                    yield name, str(reference)


def _read(path: Path) -> dict[str, Any]:
    """A JSON mapping; empty where there is none, as whoever loads it then says what is wrong."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
