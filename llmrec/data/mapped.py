"""Arrays in a folder of their own, which processes map into memory and share.

Beside the arrays lies a manifest: the shape and SHA-256 of each, and the key, which says what they
were made from. Knows neither what the arrays are nor what the key means.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmrec.data.files import is_read_only, sha256_of, sync, unique, write_json
from llmrec.errors import DataError

log = logging.getLogger("llmrec")
FORMAT = 1
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class MappedArrays:
    """A kind of folder. `what` names what the arrays are, in messages and in the manifest's name;
    `types`: the number format of each one-dimensional array.
    """

    what: str
    types: Mapping[str, npt.DTypeLike]

    @property
    def manifest(self) -> str:
        """The name of the file that lies beside the arrays."""
        return f"{self.what.replace(' ', '-')}.json"

    def write(self, arrays: Mapping[str, npt.NDArray[Any]], folder: Path, key: str) -> None:
        """Write arrays made from what `key` names, replacing those in `folder` as a whole.

        A reader finds the old ones, none or the new ones, never a mix; who has the old ones mapped
        keeps them; of two writers at once one wins. Raises DataError where `folder` holds anything
        else.
        """
        if folder.exists() and not self._is_alone_in(folder):
            raise DataError(
                f"{folder} holds other things than a {self.what}, and would be replaced as a "
                "whole: name a new folder, or remove this one first"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        own = unique()
        staged = folder.with_name(f".{folder.name}.{own}.tmp")
        aside = folder.with_name(f".{folder.name}.{own}.old")
        shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
        staged.mkdir()
        try:
            said = {}
            for name in self.types:
                path = staged / _file(name)
                np.save(path, arrays[name], allow_pickle=False)
                sync(path)
                said[name] = {"shape": list(arrays[name].shape), "sha256": sha256_of(path)}
            write_json(staged / self.manifest, {"format": FORMAT, "key": key, "arrays": said})
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

    def read(self, folder: Path, key: str, verify: bool = True) -> Arrays:
        """The arrays in `folder`, mapped and read-only: a page is read when it is touched.

        `verify` reads every file once and compares its SHA-256; without it only shapes are
        compared. Raises DataError when they are missing or damaged or were made from something
        else than `key`.
        """
        manifest = self._manifest(folder)
        if manifest["key"] != key:
            raise DataError(
                f"the {self.what} in {folder} was made from {manifest['key']!r}, wanted is "
                f"{key!r}: titles or tokenizer are others now; write it again"
            )
        said = manifest["arrays"]
        return {name: self._mapped(folder, name, said[name], verify) for name in self.types}

    def shared(self, folder: Path, key: str, make: Callable[[], Arrays]) -> Arrays:
        """The arrays of this key, mapped from `folder`; made and written there if they are not.

        Where nothing can be written, this process keeps what it made to itself.
        """
        try:
            return self.read(folder, key)
        except DataError as error:
            why = f" ({error})" if (folder / self.manifest).exists() else ""
            log.info("making the %s, once for all processes, in %s%s", self.what, folder, why)
        made = make()
        try:
            self.write(made, folder, key)
        except OSError as error:
            if not is_read_only(error):
                raise
            log.info("%s is read-only; this process keeps the %s to itself", folder, self.what)
            return made
        return self.read(folder, key, verify=False)

    def _is_alone_in(self, folder: Path) -> bool:
        if not folder.is_dir():
            return False
        names = {path.name for path in folder.iterdir()}
        return not names or (
            self.manifest in names and names <= {self.manifest, *map(_file, self.types)}
        )

    def _manifest(self, folder: Path) -> dict[str, Any]:
        """What the manifest says, once it has every field that the arrays need."""
        path = folder / self.manifest
        try:
            manifest = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise DataError(
                f"no {self.what} in {folder}: {self.manifest} is missing; write one there"
            ) from None
        except (OSError, ValueError) as error:
            raise self._damaged(path, str(error)) from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise self._damaged(path, f"it is not of format {FORMAT}")
        arrays = manifest.get("arrays")
        if "key" not in manifest or not isinstance(arrays, dict):
            raise self._damaged(path, "it names no key or no arrays")
        for name in self.types:
            said = arrays.get(name)
            if not isinstance(said, dict) or not {"shape", "sha256"} <= said.keys():
                raise self._damaged(path, f"it does not say the shape and hash of {name}")
        return manifest

    def _mapped(
        self, folder: Path, name: str, said: dict[str, Any], verify: bool
    ) -> npt.NDArray[Any]:
        """One array, mapped, after comparing it with what the manifest said."""
        path = folder / _file(name)
        try:
            if verify and sha256_of(path) != said["sha256"]:
                raise self._damaged(path, f"its SHA-256 is not the one in {self.manifest}")
            # Unlike `load`, of no pickle, no archive.
            array = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError, OverflowError) as error:
            raise self._damaged(path, str(error)) from error
        wanted = np.dtype(self.types[name])
        if array.dtype != wanted:
            raise self._damaged(path, f"it holds no {wanted} array")
        if list(array.shape) != said["shape"]:
            shape = list(array.shape)
            raise self._damaged(path, f"its shape is {shape}, {self.manifest} has {said['shape']}")
        return np.asarray(array)  # a plain view of the mapping, which is faster to slice

    def _damaged(self, path: Path, why: str) -> DataError:
        return DataError(
            f"{path} is damaged: {why}; remove {path.parent} and write the {self.what} again"
        )


def _file(name: str) -> str:
    return f"{name}.npy"
