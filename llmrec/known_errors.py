"""The libraries' exceptions that a person can act on, as messages: what, where, why, what to do.

Knows them by the module of their class, so it imports none of the libraries. What is not known
here is a defect of llmrec and keeps its traceback.
"""

import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from llmrec.data.files import free_bytes, in_units, is_full, is_read_only
from llmrec.errors import DataError, LlmrecError

SHOWN = 300  # characters of what a library says
_MEMORY = (
    "lower train.per_device_train_batch_size (and raise train.gradient_accumulation_steps, so that "
    "a step stays what it is), decode.batch_size, or prompt.max_tokens"
)
_AGAIN = "if the run made the file, remove it and run the same command again; else get it anew"


class _Known(NamedTuple):
    """`module`: how the module of the class begins; `name`: of the class, or "" for any."""

    module: str
    name: str
    what: str
    fix: str
    kind: type[LlmrecError] = LlmrecError


_KNOWN = (
    _Known("safetensors", "", "weights that are damaged or no safetensors", _AGAIN),
    _Known("safetensors_rust", "", "weights that are damaged or no safetensors", _AGAIN),
    _Known("pyarrow", "", "a file that is damaged or not of its kind", _AGAIN, DataError),
    _Known("datasets", "", "a data set that cannot be read", _AGAIN, DataError),
    _Known("pickle", "UnpicklingError", "a file that torch does not read", _AGAIN),
    _Known("_pickle", "UnpicklingError", "a file that torch does not read", _AGAIN),
    _Known("torch", "OutOfMemoryError", "the GPU's memory ran out", _MEMORY),
    _Known("builtins", "MemoryError", "memory ran out", _MEMORY),
    _Known("torch", "", "torch failed", "see what it says; `llmrec env` tells the versions"),
    _Known("zipfile", "BadZipFile", "an archive that is damaged", _AGAIN, DataError),
    _Known("huggingface_hub", "", "the Hub gave no files", "check the name and the network"),
    _Known(
        "builtins",
        "UnicodeError",
        "a text that is not UTF-8",
        "save the file as UTF-8, or say its encoding in data.encoding",
        DataError,
    ),
    _Known("builtins", "RecursionError", "something nested too deep", "write it flatter"),
    _Known(
        "builtins",
        "ImportError",
        "a package is missing or too old",
        "install it, or choose what does without",
    ),
)
# What libraries that lose the number of an OSError say of a disk that is full.
_FULL = ("No space left on device", "File too large", "Disk quota exceeded")
_TORCH_FULL = ("PytorchStreamWriter failed", "unexpected pos", "iostream error")
# RuntimeErrors have no class of their own; what they say begins so.
_SAID = (
    ("CUDA out of memory", "the GPU's memory ran out", _MEMORY),
    ("CUDA error", "the GPU failed", "see what it says; run again, and if it stays restart it"),
    ("[enforce fail at alloc", "memory ran out", _MEMORY),
    ("DefaultCPUAllocator", "memory ran out", _MEMORY),
    ("closed by peer", "the processes lost one another", "see what the others say; run again"),
    ("reset by peer", "the processes lost one another", "see what the others say; run again"),
    ("NCCL", "the processes lost one another", "see what the others say; run again to go on"),
    ("PytorchStreamReader", "a file that torch cannot read", _AGAIN),
    ("Invalid magic number", "a file that torch cannot read", _AGAIN),
)


def explained(error: BaseException) -> LlmrecError | None:
    """An error of a library as one with a message; None for what may be a defect of llmrec."""
    if _is_full(error):
        return _full(error)
    if isinstance(error, OSError) and is_read_only(error) and error.filename:
        return LlmrecError(
            f"{error.filename} may not be read or written here ({error.strerror}); give rights to "
            "it, or write elsewhere: --out for what a verb prints or exports, output_dir=FOLDER "
            "for a run"
        )
    found = _found(error)
    if found is None:
        return None
    what, fix, kind = found
    why = " ".join(str(error).split()) or type(error).__name__
    why = why if len(why) <= SHOWN else why[: SHOWN - 3] + "..."
    where = _where(error)
    return kind(f"{what}{where}: {type(error).__name__}: {why}; {fix}")


def _found(error: BaseException) -> tuple[str, str, type[LlmrecError]] | None:
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] == "llmrec":
        return None
    for one in type(error).__mro__:
        for known in _KNOWN:
            if one.__module__.split(".")[0] == known.module and known.name in ("", one.__name__):
                return known.what, known.fix, known.kind
    text = str(error)
    for begins, what, fix in _SAID:
        if isinstance(error, RuntimeError) and begins in text:
            return what, fix, LlmrecError
    return None


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and is_full(error):
        return True
    said = str(error)
    return any(words in said for words in _FULL) or (
        isinstance(error, RuntimeError) and any(words in said for words in _TORCH_FULL)
    )


def _full(error: BaseException) -> LlmrecError:
    """A disk without room: which file, what is free, what stands and how it goes on."""
    named = getattr(error, "filename", None)
    paths = [Path(str(named))] if named else [p for f in _ours(error) for p in _paths(f.f_locals)]
    where, free = "", ""
    if paths:
        where = f" ({paths[0]})"
        free = f", {in_units(free_bytes(paths[0].absolute()))} are free on that disk"
    why = " ".join(str(error).split())[:SHOWN]
    return LlmrecError(
        f"the disk is full, or a file larger than may be written{where}{free}: {why}; what stood "
        "before is whole. Free some space, or set output_dir to a folder on another disk, and run "
        "the same command again to go on"
    )


def _ours(error: BaseException) -> list[FrameType]:
    """The frames of our functions that it came through, innermost first."""
    return [
        frame
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if (name := str(frame.f_globals.get("__name__", ""))).startswith("llmrec.")
        and not name.startswith(("llmrec.terminal", "llmrec.cli"))
    ][::-1]


def _where(error: BaseException) -> str:
    """The file that was at hand, as the innermost of our functions called it, and the function."""
    ours = _ours(error)
    for frame in ours:
        for path in _paths(frame.f_locals):
            return f" ({path}, in {frame.f_globals['__name__']})"
    return f" (in {ours[0].f_globals['__name__']})" if ours else ""


def _paths(values: dict[str, object]) -> Iterator[Path]:
    for name in ("path", "file", "place", "staged", "staging", "weights", "folder", "root"):
        if isinstance(value := values.get(name), Path):
            yield value
