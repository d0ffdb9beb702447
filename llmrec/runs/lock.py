"""One command at a time writes into a run folder; the others are told which one it is.

The lock is the system's: it ends with its process, however that ends. Beside it stands who holds
it, which is believed only while it is held. Whoever only reads takes no lock.
"""

import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from llmrec.data.files import is_read_only, pid_in, write_json
from llmrec.errors import RecipeError

if TYPE_CHECKING:
    from filelock import FileLock

log = logging.getLogger("llmrec")
LOCK, HOLDER = ".lock", ".holder.json"
_ELSEWHERE = "wait until it ends or stop it, or give this run another name (name=OTHER)"
_WAIT = 2.0  # seconds within which a new holder has said who it is
_held: dict[Path, tuple["FileLock", int]] = {}  # the lock, and the thread that took it


def hold(root: Path, verb: str) -> None:
    """Hold the lock of the run folder `root` for `llmrec <verb>` until this process ends.

    Of the processes of one launch one does it for all. Raises RecipeError, naming the holder, where
    another command or thread holds it. A folder that cannot be written needs no lock.
    """
    from filelock import FileLock, Timeout

    place = root.resolve()
    if place in _held:
        if _held[place][1] != threading.get_ident():
            raise RecipeError(f"{root} is in use by another thread of this process; {_ELSEWHERE}")
        return
    lock = FileLock(place / LOCK)
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RecipeError(f"{root} is in use by {_holder(place)}; {_ELSEWHERE}") from None
    except OSError as error:
        if not is_read_only(error):
            raise
        log.debug("%s is read-only, and not locked", root)
        return
    _held[place] = lock, threading.get_ident()
    since = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "verb": verb, "since": since}
    try:
        write_json(place / HOLDER, holder)
    except BaseException:
        release(root)
        raise
    _clear_leftovers(place)


def release(root: Path) -> None:
    """Let go of the lock of `root`, if this process holds it."""
    place = root.resolve()
    held = _held.pop(place, None)
    if held is not None:
        with suppress(OSError):
            (place / HOLDER).unlink(missing_ok=True)
        held[0].release()


@contextmanager
def holding(root: Path, verb: str) -> Iterator[None]:
    """Hold the lock of `root` meanwhile, or go on holding it if this process does already."""
    before = root.resolve() in _held
    hold(root, verb)
    try:
        yield
    finally:
        if not before:
            release(root)


def holder_of(root: Path) -> str | None:
    """Who else holds the run folder `root`, in words; None where nobody does."""
    from filelock import FileLock, Timeout

    place = root.resolve()
    if place in _held or not (place / LOCK).exists():
        return None
    try:
        with FileLock(place / LOCK).acquire(timeout=0):
            return None
    except Timeout:
        return _holder(place)
    except OSError as error:
        if not is_read_only(error):
            raise
        return None


def _clear_leftovers(place: Path) -> None:
    """Remove what processes that were killed had begun to write."""
    for path in list(place.rglob(".*")):
        pid = pid_in(path.name)
        if pid is None or _lives(pid):
            continue
        log.debug("removing %s, which an interrupted command left", path)
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _holder(place: Path) -> str:
    """Who holds the lock, in words; who took it just now may not have said so yet."""
    deadline = time.monotonic() + _WAIT
    told = "another llmrec"
    while time.monotonic() < deadline:
        try:
            said = json.loads((place / HOLDER).read_text("utf-8"))
            told = (
                f"`llmrec {said['verb']}`, pid {said['pid']} on {said['host']}, "
                f"since {said['since']}"
            )
            if said["host"] != socket.gethostname() or _lives(int(said["pid"])):
                break
        except (OSError, ValueError, KeyError, TypeError):
            pass
        time.sleep(0.05)
    return told


def _lives(pid: int) -> bool:
    """Whether a process of this machine lives; else the file is that of an earlier holder."""
    if os.name != "posix":
        return True  # elsewhere asking is ending it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
