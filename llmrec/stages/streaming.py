"""Recommend for any number of users: Parquet in, a folder of Parquet files out.

The input is cut into blocks of consecutive users, each answered into a file of its own, which is
there whole or not at all: nothing that grows with the number of users is held, a worker that dies
loses no more than the block it was at, and every user is answered once. Who works on the blocks is
the engine's choice; what a worker does is the same in all.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from llmrec import stopping
from llmrec.data.files import replacing, write_json
from llmrec.errors import DataError, LlmrecError, RecipeError
from llmrec.recipe import Recipe
from llmrec.runs.folder import RunFolder
from llmrec.stages.recommend_histories import Answers, Wanted
from llmrec.systems.raw_histories import RawRequest, of_rows

log = logging.getLogger("llmrec")
EngineName = Literal["local", "accelerate", "ray"]
USERS = 8192  # of a block
TOGETHER = 512  # users that are handed on at a time
MANIFEST = "_llmrec.json"  # readers of a folder leave out what begins so
_USERS = b"llmrec.users"
_COLUMNS = ("user", "history", "candidates")


@dataclass(frozen=True)
class Block:
    """`count` users of a Parquet file from its row `begin` on; its `number` over all files, and
    how many users stand `before` it, as who has no name is called by a number."""

    number: int
    file: Path
    begin: int
    count: int
    before: int

    @property
    def part(self) -> str:
        """The name of the file that its answers go to."""
        return f"part-{self.number:06d}.parquet"

    def requests(self) -> Iterator[RawRequest]:
        """Its users, read a few at a time."""
        file = pq.ParquetFile(self.file)
        columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
        groups, at = _groups_of(file, self.begin, self.begin + self.count)
        left, number = self.count, self.before
        for some in file.iter_batches(TOGETHER, row_groups=groups, columns=columns):
            behind = max(0, min(self.begin - at, some.num_rows))
            at += some.num_rows
            mine = some.slice(behind, left)
            yield from of_rows(self.file, mine, number)
            left, number = left - mine.num_rows, number + mine.num_rows
            if not left:
                return


class Worker:
    """Answers blocks into the folder `out`; the run is loaded with the first one."""

    def __init__(self, recipe: Recipe, folder: RunFolder, wanted: Wanted, out: Path) -> None:
        self.again = (recipe, folder, wanted, out)  # what another process makes it from
        self.answers, self.out = Answers(recipe, folder, wanted), out
        self.batch = recipe.decode.batch_size

    def __call__(self, block: Block) -> int:
        """Answer a block unless that is done; how many users it has."""
        place = self.out / block.part
        if place.exists():
            return block.count
        found, requests = [], block.requests()
        # A baseline's probabilities of all items are held for as many users as are asked at once.
        guided = self.answers.recommender.system.way == "guided"
        while some := list(islice(requests, self.batch if guided else TOGETHER)):
            stopping.check()
            found.append(self.answers.to(some))
        told = {**(found[0].schema.metadata or {}), _USERS: str(block.count).encode()}
        with replacing(place) as temporary:
            pq.write_table(pa.concat_tables(found).replace_schema_metadata(told), temporary)
        return block.count


def run(
    recipe: Recipe,
    folder: RunFolder,
    histories: Path,
    wanted: Wanted,
    out: Path,
    engine: EngineName = "local",
    workers: int = 1,
    users: int = USERS,
) -> dict[str, Any]:
    """Answer all users of a Parquet file, or of those in a folder, into the folder `out`.

    Interrupted, the same call goes on with the blocks that are left, under any engine. `workers`:
    processes of Ray; `users`: of a block. Raises RecipeError where `out` holds something else,
    DataError for histories that cannot be read.
    """
    begun, worker = time.monotonic(), Worker(recipe, folder, wanted, out)
    do = _main_only(recipe, out) if engine == "accelerate" else (lambda do: do())
    blocks = do(lambda: blocks_of(histories, users))
    if not blocks:
        raise DataError(f"{histories}: holds no history")

    def left() -> list[int]:
        _require_same(out, {"answers": worker.answers.key, "histories": _told_of(blocks)})
        return [n for n, block in enumerate(blocks) if not (out / block.part).exists()]

    todo = [blocks[n] for n in do(left)]
    if todo:
        _ENGINES[engine](worker, todo, workers)
    answered = sum(block.count for block in todo)
    return {
        "folder": str(out),
        "users": sum(block.count for block in blocks),
        "rows": do(lambda: _rows_of(out, blocks)),
        "answered_before": sum(block.count for block in blocks) - answered,
        "seconds": round(time.monotonic() - begun, 1),
    }


def blocks_of(histories: Path, users: int) -> list[Block]:
    """The blocks of a Parquet file, or of all in a folder, in the order of their names."""
    if not histories.exists():
        raise RecipeError(f"--histories {histories}: no such file; give Parquet, or a folder of it")
    files = sorted(histories.glob("*.parquet")) if histories.is_dir() else [histories]
    blocks: list[Block] = []
    before = 0
    for file in files:
        try:
            known = pq.ParquetFile(file)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file}: not a readable Parquet file ({error})") from None
        if "history" not in known.schema_arrow.names:
            names = ", ".join(known.schema_arrow.names)
            raise DataError(f"{file}: no column history; it has {names}")
        for begin in range(0, known.metadata.num_rows, users):
            count = min(users, known.metadata.num_rows - begin)
            blocks.append(Block(len(blocks), file, begin, count, before + begin))
        before += known.metadata.num_rows
    return blocks


def _groups_of(file: pq.ParquetFile, begin: int, end: int) -> tuple[list[int], int]:
    """The row groups that hold rows from `begin` to `end`, and the row that the first begins at."""
    at, first, groups = 0, 0, []
    for number in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(number).num_rows
        if at < end and at + rows > begin:
            first = first if groups else at
            groups.append(number)
        at += rows
    return groups, first


def _told_of(blocks: Sequence[Block]) -> list[list[Any]]:
    """What the blocks are cut from, for the manifest."""
    sizes = {block.file: block.file.stat().st_size for block in blocks}
    return [[str(b.file), sizes[b.file], b.begin, b.count] for b in blocks]


def _require_same(out: Path, key: dict[str, Any]) -> None:
    """Begin the folder, or go on with it where it was begun for the same."""
    place = out / MANIFEST
    if place.is_file():
        if json.loads(place.read_text("utf-8")) == key:
            for leftover in out.glob(".part-*.tmp"):
                leftover.unlink(missing_ok=True)
            return
        raise RecipeError(
            f"--out {out}: holds answers to other histories, or of another run or other settings; "
            "name a new folder, or remove it"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError(f"--out {out}: holds other things; name a new folder for the answers")
    out.mkdir(parents=True, exist_ok=True)
    write_json(place, key)


def _rows_of(out: Path, blocks: Sequence[Block]) -> int:
    """All rows of the answers. Raises LlmrecError unless every block has been answered whole."""
    rows = 0
    for block in blocks:
        known = pq.read_metadata(out / block.part)
        if int((known.metadata or {}).get(_USERS, -1)) != block.count:
            raise LlmrecError(
                f"{out / block.part}: holds no whole answers; remove it and run the same command "
                "again"
            )
        rows += known.num_rows
    return rows


def _main_only(recipe: Recipe, out: Path) -> Callable[[Callable[[], Any]], Any]:
    from llmrec.runs.processes import begun, main_only  # brings torch

    begun(recipe, out.parent)
    return main_only


def _here(worker: Worker, blocks: Sequence[Block], workers: int) -> None:
    told = time.monotonic()
    for done, block in enumerate(blocks, 1):
        worker(block)
        if time.monotonic() - told > 30:
            told = time.monotonic()
            log.info("recommend: %d of %d blocks", done, len(blocks))


def _by_processes(worker: Worker, blocks: Sequence[Block], workers: int) -> None:
    from llmrec.runs.processes import taken, together

    for number in taken(len(blocks)):
        worker(blocks[number])
    together()


def _by_ray(worker: Worker, blocks: Sequence[Block], workers: int) -> None:
    try:
        import ray
        import ray.data
    except ImportError:
        raise RecipeError("--engine ray needs Ray: pip install 'llmrec[ray]'") from None
    import torch

    here = "RAY_ADDRESS" not in os.environ  # else a cluster that is running
    if not ray.is_initialized():
        # Workers import this very package, wherever this process has it from.
        path = str(Path(__file__).parents[2])
        shared = os.pathsep.join(filter(None, (path, os.environ.get("PYTHONPATH"))))
        ray.init(
            **({"num_cpus": workers, "include_dashboard": False} if here else {}),
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": shared}},
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    rows = [{**asdict(block), "file": str(block.file)} for block in blocks]
    asked = ray.data.from_items(rows, override_num_blocks=len(rows))
    # Ray starts a worker that died again, and gives it what it was at.
    answered = asked.map(
        _RayWorker,
        fn_constructor_args=worker.again,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows))),
        num_cpus=1,
        num_gpus=1 if torch.cuda.is_available() else 0,
    )
    try:
        for _ in answered.iter_rows():
            stopping.check()
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, LlmrecError) else error from None
    finally:
        if here:
            ray.shutdown()


class _RayWorker:
    """The worker as Ray Data calls it."""

    def __init__(self, recipe: Recipe, folder: RunFolder, wanted: Wanted, out: Path) -> None:
        self.worker = Worker(recipe, folder, wanted, out)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"users": self.worker(Block(**{**row, "file": Path(row["file"])}))}


_ENGINES: dict[str, Callable[[Worker, Sequence[Block], int], None]] = {
    "local": _here,
    "accelerate": _by_processes,
    "ray": _by_ray,
}
