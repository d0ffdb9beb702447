"""Unpacking a zip (a wheel is one) that somebody else made: checked members, capped sizes.

Knows no network and no cache. The whole member list is judged before a byte is written; the bytes
are counted again while they are unpacked, because a header may lie.
"""

import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from llmrec.data.files import require_space
from llmrec.errors import DataError

MAX_BYTES = 2 << 30
MAX_MEMBERS = 20_000
CHUNK = 1 << 20
WINDOWS_DEVICES = {"con", "prn", "aux", "nul"} | {
    f"{d}{n}" for d in ("com", "lpt") for n in "123456789"
}


def _complaint(member: zipfile.ZipInfo) -> str | None:
    """Why this member may not be unpacked, or None. Judges the name as the archive spells it."""
    name = member.orig_filename
    parts = PurePosixPath(name).parts
    if not name or any(ord(c) < 32 or c in '\\:<>"|?*' for c in name):
        return "its name holds a character that paths may not hold"
    if name.startswith("/") or ".." in parts:
        return "its name leads out of the folder"
    if any(part.split(".")[0].lower() in WINDOWS_DEVICES for part in parts):
        return "its name is that of a device"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "it is a link or a device, no file"
    if member.flag_bits & 0x1:
        return "it is encrypted"
    return None


def checked_members(archive: zipfile.ZipFile, max_bytes: int = MAX_BYTES) -> list[zipfile.ZipInfo]:
    """All file members, after judging every one of them. Raises DataError on the first bad one."""
    where = archive.filename or "the archive"
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise DataError(f"{where}: {len(members)} members, more than {MAX_MEMBERS}; not unpacked")
    for member in members:
        if complaint := _complaint(member):
            raise DataError(f"{where}: member {member.orig_filename!r}: {complaint}; not unpacked")
    names = [member.filename.rstrip("/").casefold() for member in members]
    if len(set(names)) != len(names):
        raise DataError(f"{where}: two members have one name; not unpacked")
    total = sum(member.file_size for member in members)
    if total > max_bytes:
        raise DataError(f"{where}: {total} bytes unpacked, more than {max_bytes}; not unpacked")
    return [member for member in members if not member.is_dir()]


def _chunks(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    left = member.file_size
    with archive.open(member) as stream:
        while chunk := stream.read(CHUNK):
            left -= len(chunk)
            if left < 0:
                raise DataError(f"{archive.filename}: {member.filename!r} is larger than it says")
            yield chunk


def unpack(
    path: Path, into: Path, wanted: Mapping[str, str] | None = None, max_bytes: int = MAX_BYTES
) -> list[Path]:
    """Unpack members of the zip at `path` into the folder `into`; the paths written.

    `wanted` maps member names to names below `into`; None takes all members under their own names.
    Raises DataError if the archive is no zip, breaks a rule, or lacks a wanted member. Nothing is
    written unless every member passed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in checked_members(archive, max_bytes)}
            targets = {name: name for name in members} if wanted is None else wanted
            if missing := sorted(set(targets) - set(members)):
                raise DataError(f"{path}: no member {missing[0]!r} inside")
            needed = sum(members[name].file_size for name in targets)
            require_space(into, needed, f"what {path.name} holds")
            written = []
            for name, target in targets.items():
                destination = into / target
                destination.parent.mkdir(parents=True, exist_ok=True)
                with destination.open("wb") as sink:
                    for chunk in _chunks(archive, members[name]):
                        sink.write(chunk)
                written.append(destination)
            return written
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError) as error:
        raise DataError(
            f"{path}: not a readable zip ({error}); delete it and fetch again"
        ) from error
