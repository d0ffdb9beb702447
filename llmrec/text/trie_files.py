"""A TitleTrie as a folder of flat arrays, which processes map into memory and share.

Beside the arrays lies `trie.json`: the shape and SHA-256 of each, and the key, which says what the
trie was made from. Knows neither how a trie is built nor what its key means.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.data.files import is_read_only, sha256_of, sync, unique, write_json
from llmrec.errors import DataError
from llmrec.text.trie import TitleTrie
from llmrec.text.trie_building import Ints

log = logging.getLogger("llmrec")
FORMAT = 1
MANIFEST = "trie.json"
ARRAYS = ("tokens", "begin", "children", "low", "high", "items", "rank")


def write(trie: TitleTrie, folder: Path, key: str) -> None:
    """Write a trie made from what `key` names, replacing the one in `folder` as a whole.

    A reader finds the old one, none or the new one, never a mix; who has the old one mapped keeps
    it; of two writers at once one wins. Raises DataError where `folder` holds anything else.
    """
    if folder.exists() and not _holds_only_a_trie(folder):
        raise DataError(
            f"{folder} holds other things than a trie, and would be replaced as a whole: name a "
            "new folder, or remove this one first"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    own = unique()
    staged = folder.with_name(f".{folder.name}.{own}.tmp")
    aside = folder.with_name(f".{folder.name}.{own}.old")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)
    staged.mkdir()
    try:
        arrays = {}
        for name in ARRAYS:
            path, array = staged / _file(name), vars(trie)[name]
            np.save(path, array, allow_pickle=False)
            sync(path)
            arrays[name] = {"shape": list(array.shape), "sha256": sha256_of(path)}
        write_json(staged / MANIFEST, {"format": FORMAT, "key": key, "arrays": arrays})
        if folder.exists():
            os.replace(folder, aside)
        try:
            os.replace(staged, folder)
        except OSError:
            if not folder.exists():  # else another writer was faster
                if aside.exists():
                    os.replace(aside, folder)
                raise
        sync(folder.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def read(folder: Path, key: str, verify: bool = True) -> TitleTrie:
    """The trie in `folder`, its arrays mapped and read-only: a page is read when it is touched.

    `verify` reads every file once and compares its SHA-256; without it only shapes are compared.
    Raises DataError when it is missing or damaged or was made from something else than `key`.
    """
    manifest = _manifest(folder)
    if manifest["key"] != key:
        raise DataError(
            f"the trie in {folder} was made from {manifest['key']!r}, wanted is {key!r}: titles or "
            "tokenizer are others now; write it again"
        )
    mapped = {name: _mapped(folder, name, manifest["arrays"][name], verify) for name in ARRAYS}
    return TitleTrie(**mapped)


def shared(sequences: Sequence[npt.NDArray[np.int32]], folder: Path) -> TitleTrie:
    """The trie of N sequences, mapped from `folder`; made and written there unless it is theirs."""
    digest = hashlib.sha256(np.array([len(s) for s in sequences], np.int64).tobytes())
    digest.update(np.concatenate(sequences).tobytes())
    try:
        return read(folder, digest.hexdigest())
    except DataError as error:
        log.info("text: building the trie of %d titles (%s)", len(sequences), error)
    trie = TitleTrie.from_sequences(sequences)
    try:
        write(trie, folder, digest.hexdigest())
    except OSError as error:
        if not is_read_only(error):
            raise
        log.info("text: %s is read-only; this process keeps the trie to itself", folder.parent)
        return trie
    return read(folder, digest.hexdigest(), verify=False)


def _file(name: str) -> str:
    return f"{name}.npy"


def _holds_only_a_trie(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return not names or (MANIFEST in names and names <= {MANIFEST, *map(_file, ARRAYS)})


def _manifest(folder: Path) -> dict[str, Any]:
    """What `trie.json` says, once it has every field a trie needs."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"no trie in {folder}: {MANIFEST} is missing; write one there") from None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _damaged(path, f"it is not of format {FORMAT}")
    arrays = manifest.get("arrays")
    if "key" not in manifest or not isinstance(arrays, dict):
        raise _damaged(path, "it names no key or no arrays")
    for name in ARRAYS:
        said = arrays.get(name)
        if not isinstance(said, dict) or not {"shape", "sha256"} <= said.keys():
            raise _damaged(path, f"it does not say the shape and hash of {name}")
    return manifest


def _mapped(folder: Path, name: str, said: dict[str, Any], verify: bool) -> Ints:
    """One array, mapped, after comparing it with what the manifest said."""
    path = folder / _file(name)
    try:
        if verify and sha256_of(path) != said["sha256"]:
            raise _damaged(path, f"its SHA-256 is not the one in {MANIFEST}")
        array = np.lib.format.open_memmap(path, mode="r")  # unlike `load`, of no pickle, no archive
    except (OSError, ValueError, OverflowError) as error:
        raise _damaged(path, str(error)) from error
    if array.dtype != np.int32:
        raise _damaged(path, "it holds no int32 array")
    if list(array.shape) != said["shape"]:
        raise _damaged(path, f"its shape is {list(array.shape)}, {MANIFEST} has {said['shape']}")
    return np.asarray(array)  # a plain view of the mapping, which is faster to slice


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}; remove {path.parent} and write the trie again")
