"""Folders and files that are either whole or not there: staged, hashed, sealed by one rename.

A sealed folder holds a manifest with the SHA-256 of each of its files; that of a sealed file stands
beside it and ends in .json. Of several checkpoints the newest is taken whose manifest verifies.
Knows files only, no torch.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from llmrec.data.files import sha256_of, sync, write_json
from llmrec.errors import DataError

MANIFEST = "manifest.json"
STAGING = ".staging"


def seal(staged: Path, final: Path, **facts: Any) -> None:
    """Hash and sync every file of `staged`, write its manifest with `facts`, rename to `final`.

    Until the rename `final` does not exist, so a reader never sees a part. An older `final` (left
    by a run that stopped at the same step) is put aside first.
    """
    files = sorted(p for p in staged.rglob("*") if p.is_file() and p.name != MANIFEST)
    for path in files:
        sync(path)
    hashes = {path.relative_to(staged).as_posix(): sha256_of(path) for path in files}
    manifest = json.loads(json.dumps({"files": hashes, **facts}))
    write_json(staged / MANIFEST, {**manifest, "seal": _seal_of(manifest)})
    sync(staged)
    if final.exists():
        aside = final.with_name(f"{STAGING}-old-{final.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(final, aside)
        os.replace(staged, final)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(staged, final)
    sync(final.parent)


def seal_file(staged: Path, final: Path, **facts: Any) -> None:
    """The same of one file. A kill between the two renames leaves it without a manifest."""
    sync(staged)
    manifest = json.loads(json.dumps({"files": {final.name: sha256_of(staged)}, **facts}))
    manifest_of(final).unlink(missing_ok=True)
    os.replace(staged, final)
    sync(final.parent)
    write_json(final.with_suffix(".json"), {**manifest, "seal": _seal_of(manifest)})


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Write a JSON file that says in `seal` what it holds, replacing `path` as a whole."""
    plain = json.loads(json.dumps(facts))
    write_json(path, {**plain, "seal": _seal_of(plain)})


def read_facts(path: Path, again: str) -> dict[str, Any]:
    """What `write_facts` wrote, less its seal; of a file without a seal what it holds.

    Raises FileNotFoundError without a file, and DataError, ending with `again`, for one that was
    changed.
    """
    try:
        facts = json.loads(path.read_text("utf-8"))
        wrong = None if isinstance(facts, dict) else "it is no JSON object"
    except (ValueError, RecursionError) as error:
        facts, wrong = {}, f"it is not JSON: {error}"
    if wrong is None and facts.pop("seal", None) not in (None, _seal_of(facts)):
        wrong = "it is not what was written there"
    if wrong is not None:
        raise DataError(f"{path} is damaged ({wrong}); {again}")
    return dict(facts)


def manifest_of(place: Path) -> Path:
    """Where the manifest of a sealed folder or file stands."""
    return place / MANIFEST if place.is_dir() else place.with_suffix(".json")


def problem(place: Path) -> str | None:
    """What is wrong with a sealed folder or file, naming the file; None when it verifies.

    A file that the manifest lacks is wrong too: a library might read it for the one that is meant.
    """
    within, manifest_path = (place if place.is_dir() else place.parent), manifest_of(place)
    try:
        manifest = json.loads(manifest_path.read_text("utf-8"))
        if manifest.pop("seal") != _seal_of(manifest):
            return f"{manifest_path.name} differs from its hash"
        for name, expected in manifest["files"].items():
            path = within / name
            if not path.is_file():
                return f"{name} is missing"
            if sha256_of(path) != expected:
                return f"{name} differs from its hash"
        if strangers := sorted(_held(place) - set(manifest["files"])) if place.is_dir() else ():
            return f"{strangers[0]} is no file of what was written there"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"{manifest_path.name} cannot be read ({type(error).__name__})"
    return None


def facts(place: Path) -> dict[str, Any]:
    """The manifest of a sealed folder or file. Raises DataError for one that is no JSON object."""
    path = manifest_of(place)
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged ({error}); run the command that made {place} again, or remove it"
        ) from None


def newest(root: Path, prefix: str) -> tuple[Path | None, list[str]]:
    """The sealed folder `<prefix><step>` of the highest step that verifies, and what was skipped.

    Each skipped one is named with its reason.
    """
    skipped: list[str] = []
    for folder in _by_step(root, prefix)[::-1]:
        wrong = problem(folder)
        if wrong is None:
            return folder, skipped
        skipped.append(f"{folder.name}: {wrong}")
    return None, skipped


def prune(root: Path, prefix: str, keep: int) -> None:
    """Remove all but the `keep` newest folders, if the newest of them verifies."""
    folders = _by_step(root, prefix)
    if folders and problem(folders[-1]) is None:
        for folder in folders[: max(0, len(folders) - keep)]:
            shutil.rmtree(folder, ignore_errors=True)


def clear_staging(root: Path) -> None:
    """Remove what an interrupted save left behind."""
    for leftover in root.glob(f"{STAGING}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _held(folder: Path) -> set[str]:
    """The files of a sealed folder, but for the manifest, hidden files and pages."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
        and path.name != MANIFEST
        and not path.name.endswith(".md")
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def _seal_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _by_step(root: Path, prefix: str) -> list[Path]:
    steps = {
        int(p.name.removeprefix(prefix)): p
        for p in root.glob(f"{prefix}*")
        if p.is_dir() and p.name.removeprefix(prefix).isdigit()
    }
    return [steps[step] for step in sorted(steps)]
