"""Lines of JSON that each carry a check of their own, in a file that grows.

A file whose writer was killed, or whose disk lost its last bytes, reads as its whole lines.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def line(said: dict[str, Any]) -> bytes:
    """One line, its end included."""
    text = json.dumps(said, ensure_ascii=False)
    return f"{digest(text)} {text}\n".encode()


def whole_lines(path: Path) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """What each line says and the byte where it ends; last (None, begin) for one that is not whole.

    Nothing is read behind such a line. A file that is not there has no lines.
    """
    if not path.is_file():
        return
    with path.open("rb") as stream:
        end = 0
        for raw in stream:
            said = _checked(raw)
            if said is None:
                yield None, end
                return
            end += len(raw)
            yield said, end


def digest(text: str) -> str:
    """The first 16 hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()[:16]


def _checked(raw: bytes) -> dict[str, Any] | None:
    check, _, text = raw.decode("utf-8", errors="replace").partition(" ")
    if not text.endswith("\n") or check != digest(text[:-1]):
        return None
    return dict(json.loads(text))
