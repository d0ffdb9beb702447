"""Writing a file so that a reader finds the old one or the whole new one, never a part."""

import errno
import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage
from typing import Any

from llmrec.errors import LlmrecError


def sync(path: Path) -> None:
    """Have the bytes of a file, or the names in a folder, on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unique() -> str:
    """A part of a file's name that no other process makes, on any host.

    Containers have numbers of processes of their own, so a part of it is random.
    """
    host = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:24]
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


def pid_in(name: str) -> int | None:
    """The process of this machine that a temporary name was made for by `unique`; None without."""
    found = re.fullmatch(r"\.(?:.*\.)?([A-Za-z0-9-]*)-(\d+)-[0-9a-f]{8}\..+", name)
    return int(found[2]) if found and found[1] == unique().rsplit("-", 2)[0] else None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes `path`'s place in one rename.

    On an exception the temporary file is removed and `path` is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{unique()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, replacing `path` as a whole."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def is_read_only(error: OSError) -> bool:
    """Whether writing failed as this place is not to be written, and for no other reason."""
    return error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)


def is_full(error: OSError) -> bool:
    """Whether writing failed as there is no room left for it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def free_bytes(path: Path) -> int:
    """What is free on the disk that `path` is on, or will be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return disk_usage(path).free


def require_space(path: Path, needed: int, what: str) -> None:
    """Raise LlmrecError unless `needed` bytes are free where `what` is to be written."""
    free = free_bytes(path)
    if free < needed:
        raise LlmrecError(
            f"{path}: {what} needs about {in_units(needed)} and {in_units(free)} are free on that "
            "disk; nothing was written and what stands there is as it was. Free some space, or "
            "choose another disk (output_dir of a run, LLMREC_CACHE for what is fetched), and run "
            "the same command again"
        )


def in_units(size: int) -> str:
    """A number of bytes as a person reads it."""
    for unit, shift in (("GB", 30), ("MB", 20), ("kB", 10)):
        if size >= 1 << shift:
            return f"{size / (1 << shift):.1f} {unit}"
    return f"{size} bytes"


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
