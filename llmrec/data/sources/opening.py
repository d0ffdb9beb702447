"""Any file as blocks of whole lines in UTF-8, whatever it is packed with and written in.

Packing (gz, bz2, zip, zst) is seen from the first bytes, not from the name. Line ends may be those
of old Macs. Knows nothing of what the lines mean.
"""

import bz2
import codecs
import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from llmrec.data.sources.rows import BadRows
from llmrec.errors import DataError

AUTO, UTF_8 = "auto", "utf-8"
BLOCK_BYTES, HEAD_BYTES = 1 << 24, 1 << 16
MAX_LINE_BYTES = 1 << 26
# A packed file may unpack to this much, and to at most this many times its own size once it is
# large: text packs 3 to 20 times, a bomb a thousand times.
MAX_UNPACKED_BYTES = 1 << 37
MAX_UNPACKED_RATIO = 200
_RATIO_APPLIES_FROM = 1 << 28

_PACKED = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zst"}
_DAMAGED = (EOFError, OSError, zlib.error, zipfile.BadZipFile, pa.ArrowException)
_BOM = codecs.BOM_UTF8


def packing(path: Path) -> str:
    """gz, bz2, zip or zst, as the file's first bytes say; "" for none of them."""
    with path.open("rb") as stream:
        start = stream.read(4)
    return next((name for magic, name in _PACKED.items() if start.startswith(magic)), "")


def written_in(path: Path, encoding: str = AUTO) -> str:
    """The encoding that is known before a line is read: UTF-16 shows itself by its mark."""
    if encoding != AUTO:
        return encoding
    start = next(_bytes(path, 2), b"")
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else UTF_8


def line_blocks(
    path: Path, encoding: str = AUTO, bad: BadRows | None = None, size: int | None = None
) -> Iterator[tuple[bytes, int]]:
    """Yield (whole lines in UTF-8, number of the first of them from 1).

    `size`: how many bytes are read at once, HEAD_BYTES where the first lines are wanted alone.
    `encoding` auto: UTF-16 where the file begins with its mark, else UTF-8; a file of which hardly
    a line is UTF-8 that is not ASCII is read as Windows' Western European, and `bad` is told.
    Bytes that are not UTF-8 all the same stay, to be named with their line. Raises DataError for a
    damaged or monstrous file, or an encoding that nobody knows.
    """
    line, rest = 1, b""
    text = _Decoder(path, encoding, bad)
    for chunk in _recoded(path, text, size or BLOCK_BYTES):
        head, newline, tail = chunk.rpartition(b"\n")
        if not newline:
            rest += tail
            if len(rest) > MAX_LINE_BYTES:
                raise DataError(
                    f"{path.name}:{line}: a line of more than {MAX_LINE_BYTES} bytes; "
                    "is this a text file with one record a line?"
                )
            continue
        block = rest + head + newline
        yield text.lines(block), line
        line += block.count(b"\n")
        rest = tail
    if rest:
        yield text.lines(rest), line


class _Decoder:
    """What a file's bytes are as UTF-8, decided where the first that tell are met."""

    def __init__(self, path: Path, encoding: str, bad: BadRows | None) -> None:
        self.path, self.bad, self.auto = path, bad, encoding == AUTO
        self.encoding = written_in(path, encoding)
        try:
            self.whole = codecs.lookup(self.encoding).name != UTF_8
        except LookupError:
            raise DataError(
                f"data.encoding {encoding!r} is none that Python knows; try utf-8, utf-16 or cp1252"
            ) from None
        self.western: bool | None = None if self.auto and not self.whole else False

    def lines(self, block: bytes) -> bytes:
        """A block of whole lines that may not be UTF-8."""
        if self.western is False or block.isascii():
            return block
        if self.western is None:
            try:
                block.decode(UTF_8)
            except UnicodeDecodeError:
                self.western = _is_western(block)
            else:
                self.western = False
            if not self.western:
                return block
            if self.bad is not None:
                self.bad.notice(
                    f"{self.path.name} is not UTF-8 and was read as Windows-1252 (Western "
                    "European); if its accents look wrong, say what it is in data.encoding"
                )
        return _western(block).encode(UTF_8)


def _is_western(block: bytes) -> bool:
    good = wrong = 0
    for line in block.split(b"\n"):
        if not line.isascii():
            try:
                line.decode(UTF_8)
            except UnicodeDecodeError:
                wrong += 1
            else:
                good += 1
    return good * 10 < wrong


def _western(block: bytes) -> str:
    try:
        return block.decode("cp1252")
    except UnicodeDecodeError:  # five bytes have no letter there
        return block.decode("latin-1")


def _recoded(path: Path, text: _Decoder, size: int) -> Iterator[bytes]:
    """The unpacked bytes, other encodings turned into UTF-8; lines end in a newline."""
    decoder = codecs.getincrementaldecoder(text.encoding)("surrogateescape") if text.whole else None
    old_mac: bool | None = None
    for chunk in _bytes(path, size):
        try:
            if decoder is not None:
                chunk = decoder.decode(chunk).encode(UTF_8, "surrogateescape")
        except UnicodeError as error:
            raise DataError(
                f"{path} cannot be read as {text.encoding} ({error}); say what it is in "
                "data.encoding"
            ) from None
        if old_mac is None:
            chunk = chunk.removeprefix(_BOM)
            old_mac = b"\r" in chunk and b"\n" not in chunk
        yield chunk.replace(b"\r", b"\n") if old_mac else chunk


def _bytes(path: Path, size: int) -> Iterator[bytes]:
    total, packed = 0, path.stat().st_size
    kind = packing(path)
    with _opened(path, kind) as stream:
        while True:
            try:
                chunk = stream.read(size)
            except _DAMAGED as error:
                raise DataError(
                    f"{path}: the {kind or 'file'} is damaged after {total:,} unpacked bytes "
                    f"({error}). Fetch it again."
                ) from error
            if not chunk:
                return
            total += len(chunk)
            if kind and _too_much(total, packed):
                raise DataError(
                    f"{path}: {packed:,} bytes unpack to more than {total:,}; refused, because no "
                    "table packs that well. Unpack it yourself if you trust it."
                )
            yield chunk


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[IO[bytes] | Any]:
    if kind == "zip":
        try:
            with (
                zipfile.ZipFile(path) as archive,
                archive.open(_only_member(path, archive)) as stream,
            ):
                yield stream
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise DataError(f"{path} cannot be unpacked ({error}); unpack it yourself.") from error
        return
    if kind == "zst":
        with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
            yield stream
        return
    opener: Any = {"gz": gzip.open, "bz2": bz2.open}.get(kind, open)
    with opener(path, "rb") as stream:
        yield stream


def _only_member(path: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    members = [
        member
        for member in archive.infolist()
        if not member.is_dir() and not member.filename.startswith("__MACOSX")
    ]
    if len(members) != 1:
        names = ", ".join(member.filename for member in members[:4])
        raise DataError(
            f"{path} holds {len(members)} files ({names}); unpack it and name one of them, or "
            "their folder."
        )
    return members[0]


def _too_much(total: int, packed: int) -> bool:
    if total > MAX_UNPACKED_BYTES:
        return True
    return total > _RATIO_APPLIES_FROM and total > MAX_UNPACKED_RATIO * packed
