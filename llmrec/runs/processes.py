"""The processes that a launcher started: how they meet, wait, decide and share work.

What one process does alone, and work that takes processes unequally long, is waited for through
the launcher's key-value store and not in a collective, so it may take any time; collectives, whose
patience is the recipe's `train.ddp_timeout`, are entered when all are there. A process that dies is
the launcher's to notice, which ends the others.
"""

import itertools
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from llmrec.errors import LlmrecError, RecipeError
from llmrec.recipe import Recipe

T = TypeVar("T")
PATIENCE = 60.0  # seconds within which a shared folder shows what another host wrote
_SOONEST, _LATEST = 0.001, 0.25  # seconds between two looks at the store
_calls = itertools.count()  # processes call in one order, so numbers name the same call
_probed: set[Path] = set()
_by_itself: list[bool] = []


def processes() -> PartialState:
    """The processes that a launcher started, this one alone without a launcher."""
    # Without `cpu` accelerate does not join processes on a machine that has no GPU.
    return PartialState(cpu=not torch.cuda.is_available())


def joined(timeout: float | None = None) -> PartialState:
    """The processes of a launcher, made a group whose collectives wait `timeout` seconds.

    Only the first call of a process makes the group; the recipe's `train.ddp_timeout` goes here.
    """
    waits = {} if timeout is None else {"timeout": timedelta(seconds=timeout)}
    return PartialState(cpu=not torch.cuda.is_available(), **waits)


def begun(recipe: Recipe, root: Path) -> PartialState:
    """The processes of a launcher, before they work on a run in the folder `root`.

    Raises RecipeError where they do not share it.
    """
    state = joined(recipe.train.get("ddp_timeout"))
    if _met() > 1 and root not in _probed:
        _require_shared(root)
        _probed.add(root)
    return state


def share_of(count: int) -> list[int]:
    """Which of `count` things this process does; neighbours go to different processes.

    Processes do equally many, as sharded models demand, so some are done twice.
    """
    of, state = _met(), processes()
    each = -(-count // of)
    return [(n * of + state.process_index) % count for n in range(each)]


def gathered(found: Mapping[int, T]) -> dict[int, T]:
    """What all processes found for their shares, by number; every process calls this."""
    return dict(found) if _met() == 1 else dict(gather_object(list(found.items())))


def taken(count: int) -> Iterator[int]:
    """The numbers below `count` that this process is to work on, each taken when it is free.

    Every number goes to one process. Every process calls this, with the same `count`.
    """
    if _met() == 1:
        yield from range(count)
        return
    store, queue = _store(), f"llmrec/queue/{next(_calls)}"
    while (number := store.add(queue, 1) - 1) < count:
        yield number


def together() -> None:
    """Return when every process has come here, however long that takes."""
    if (of := _met()) == 1:
        return
    store, place = _store(), f"llmrec/met/{next(_calls)}"
    store.add(place, 1)
    _wait(lambda: store.add(place, 0) >= of)
    processes().wait_for_everyone()  # none may go away while another still asks


def main_only(do: Callable[[], T]) -> T:
    """What the main process finds, in all of them; the others wait, and fail as it fails.

    While it does so it is alone: whatever else here it calls is for itself.
    """
    state = processes()
    if _met() == 1:
        return do()
    store, place = _store(), f"llmrec/main/{next(_calls)}"
    told: list[Any] = [None, None]
    failure: BaseException | None = None
    if state.is_main_process:
        try:
            with _alone():
                told[0] = do()
        except Exception as error:
            failure = error
            told[1] = error if isinstance(error, LlmrecError) else LlmrecError(repr(error))
        store.set(place, "done")
    _wait(lambda: store.check([place]))
    broadcast_object_list(told)
    state.wait_for_everyone()
    if failure is not None:
        raise failure
    if told[1] is not None:
        told[1].is_told = True  # by the process that failed
        raise told[1]
    return told[0]  # type: ignore[no-any-return]


@contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through the body before the others do, as what it makes they read."""
    state = processes()
    if _met() == 1:
        yield
        return
    store, place = _store(), f"llmrec/first/{next(_calls)}"
    if not state.is_main_process:
        _wait(lambda: store.check([place]))
    yield  # where it fails in the main process, the launcher ends the others
    if state.is_main_process:
        store.set(place, "done")


def staged(stage: Callable[[], T], *, everyone: bool) -> T:
    """Run a stage and return what it gave, in all processes or the main one alone; then all go on.

    Where one of all fails it ends, and the launcher ends the others, which may be waiting for it
    anywhere.
    """
    if not everyone:
        return main_only(stage)
    result = stage()
    together()
    return result


def _require_shared(root: Path) -> None:
    """Raise RecipeError unless every process sees in `root` what the main one writes there."""
    state = processes()

    def written() -> str:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".shared-{secrets.token_hex(8)}"
        probe.write_text(socket.gethostname(), "utf-8")
        return probe.name

    name = main_only(written)
    deadline = time.monotonic() + PATIENCE
    while not (seen := (root / name).exists()) and time.monotonic() < deadline:
        time.sleep(_LATEST)
    blind = [who for who, saw in gather_object([(_here(), seen)]) if not saw]
    if state.is_main_process:
        (root / name).unlink(missing_ok=True)
    if blind:
        raise RecipeError(
            f"{root}: {', '.join(blind)} do not see what the first process writes there; "
            "output_dir must lie in a folder that all hosts share"
        )


def _met() -> int:
    """How many processes meet in what is called here."""
    return 1 if _by_itself else processes().num_processes


@contextmanager
def _alone() -> Iterator[None]:
    _by_itself.append(True)
    try:
        yield
    finally:
        _by_itself.pop()


def _here() -> str:
    return f"rank {processes().process_index} on {socket.gethostname()}"


def _store() -> Any:
    """What the launcher's processes found one another by."""
    return torch.distributed.distributed_c10d._get_default_store()


def _wait(there: Callable[[], bool]) -> None:
    pause = _SOONEST
    while not there():
        time.sleep(pause)
        pause = min(2 * pause, _LATEST)
