"""Recommending as a stream: users per second and memory under each engine, synthetic histories.

A run is made of a drawn log (Zipf's law) and a small random decoder, none of it trained. Histories
are drawn into Parquet files and answered by `llmrec.stages.streaming`, one process for each figure;
memory is that of the process, or of each worker of Ray, once a second. With --kill a worker of Ray
is killed once a third of the blocks stand. At the end every user must stand in the answers exactly
once. One line of JSON for each figure on stdout.

    python tools/bench/scale.py --users 1000000 --system markov --engine local
    python tools/bench/scale.py --users 1000000 --system markov --engine ray --workers 2 --kill
    python tools/bench/scale.py --users 20000 --system untuned --engine local
"""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

LOG_USERS, GROUP = 2000, 50_000
WORDS = ["dark", "city", "star", "last", "summer", "dance", "love", "river", "blue", "red", "king"]


def main() -> None:
    """Make what is missing, answer, measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--users", type=int, default=100_000)
    options.add_argument("--items", type=int, default=1000)
    options.add_argument("--system", default="markov")
    options.add_argument("--engine", choices=("local", "ray"), default="local")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--kill", action="store_true")
    options.add_argument("--block", type=int, default=8192)
    options.add_argument("--folder", type=Path, default=None, help="kept; else a temporary one")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = given.folder or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        print(json.dumps(measured(given, root)))


def measured(given: argparse.Namespace, root: Path) -> dict:
    """The figure of one engine."""
    from llmrec.recipe.loading import load
    from llmrec.runs.folder import RunFolder
    from llmrec.stages import prepare, streaming
    from llmrec.stages.recommend_histories import Wanted

    histories = histories_in(root, given.users, given.items)
    recipe = load(recipe_in(root, given.items, given.system), [])
    folder = RunFolder.of(recipe)
    prepare.run(recipe, folder)
    out = root / f"out-{given.engine}-{given.system}-{given.users}-{os.getpid()}"
    watch = Watch(out, -(-given.users // given.block), given.kill)
    wanted = Wanted(10, system=given.system)
    begun = time.monotonic()
    with watch:
        told = streaming.run(
            recipe, folder, histories, wanted, out, given.engine, given.workers, given.block
        )
    seconds = time.monotonic() - begun
    require_once(out, given.users)
    return {
        "what": "stream",
        "engine": given.engine,
        "workers": given.workers if given.engine == "ray" else 1,
        "killed": watch.killed,
        "system": given.system,
        "users": told["users"],
        "items": given.items,
        "rows": told["rows"],
        "seconds": round(seconds, 1),
        "users_per_second": round(told["users"] / seconds, 1),
        "files": len(list(out.glob("part-*"))),
        "mb_out": round(sum(p.stat().st_size for p in out.glob("part-*")) / 2**20, 1),
        "rss_mb": watch.told(),
        "cpus": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": sys.version.split()[0],
    }


class Watch:
    """Memory once a second while it is open: of this process, or of Ray's workers."""

    def __init__(self, out: Path, blocks: int, kill: bool) -> None:
        self.out, self.blocks, self.killed, self._kill = out, blocks, 0, kill
        self.seen: list[tuple[float, int]] = []  # share of the blocks, bytes
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        me = psutil.Process()
        while not self._ended.wait(1.0):
            share = len(list(self.out.glob("part-*"))) / self.blocks
            workers = [p for p in me.children(recursive=True) if _is_worker(p)]
            if self._kill and workers and share > 1 / 3:
                os.kill(workers[0].pid, signal.SIGKILL)
                self.killed, self._kill = 1, False
                continue
            sizes = [_rss(p) for p in workers or [me]]
            self.seen.append((share, max(sizes, default=0)))

    def told(self) -> dict:
        """The largest process at shares of the work, and the most of all."""
        found = {}
        for share in (0.1, 0.25, 0.5, 0.75, 1.0):
            upto = [size for at, size in self.seen if 0 < at <= share]
            if upto:
                found[f"{share:.0%}"] = round(upto[-1] / 2**20)
        return {**found, "most": round(max((s for _, s in self.seen), default=0) / 2**20)}


def _is_worker(process: psutil.Process) -> bool:
    try:
        name = " ".join(process.cmdline())
        return name.startswith("ray::") and "IDLE" not in name and "_RayWorker" in name
    except psutil.Error:
        return False


def _rss(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def require_once(out: Path, users: int) -> None:
    """Fail unless the answers hold every user exactly once, with ranks from 1."""
    seen = np.zeros(users, np.int32)
    for path in sorted(out.glob("part-*")):
        table = pq.read_table(path, columns=["user", "rank"])
        first = table.column("rank").to_numpy() == 1
        names = table.column("user").to_numpy(zero_copy_only=False)[first]
        np.add.at(seen, np.array([int(name) for name in names]), 1)
    if not (seen == 1).all():
        raise SystemExit(f"{(seen != 1).sum()} users are not there exactly once")


def drawn(seed: int, users: int, items: int) -> list[list[int]]:
    """Histories of 1 to 20 items by Zipf's law."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, items + 1)
    lengths = rng.integers(1, 21, users)
    flat = rng.choice(items, int(lengths.sum()), p=weights / weights.sum())
    return np.split(flat, np.cumsum(lengths)[:-1])


def histories_in(root: Path, users: int, items: int) -> Path:
    """A Parquet file of so many users; row groups of GROUP."""
    path = root / f"histories-{users}-{items}.parquet"
    if path.exists():
        return path
    schema = pa.schema([("user", pa.string()), ("history", pa.list_(pa.string()))])
    with pq.ParquetWriter(path, schema) as writer:
        for begin in range(0, users, GROUP):
            count = min(GROUP, users - begin)
            some = [[f"i{i}" for i in row] for row in drawn(begin + 1, count, items)]
            names = [str(begin + i) for i in range(count)]
            writer.write_table(pa.table({"user": names, "history": some}, schema=schema))
    return path


def recipe_in(root: Path, items: int, system: str) -> Path:
    """The recipe of a run over a drawn log, with a small random decoder."""
    log, path = root / f"log-{items}.csv", root / f"stream-{items}.yaml"
    if not log.exists():
        rng = np.random.default_rng(0)
        titles = [f"{' '.join(rng.choice(WORDS, 3))} {n}" for n in range(items)]
        lines = ["user_id,item_id,timestamp,title"]
        rows = drawn(0, LOG_USERS, items)
        # Every item occurs, so that the catalog has them all.
        rows += [np.arange(n, min(n + 50, items)) for n in range(0, items, 50)]
        for user, row in enumerate(rows):
            lines += [f"u{user},i{i},{1000 * user + n},{titles[i]}" for n, i in enumerate(row)]
        log.write_text("\n".join(lines) + "\n", "utf-8")
    path.write_text(
        f"name: stream-{items}\noutput_dir: {root / 'runs'}\ndata: {{source: {log}}}\n"
        f"model: {{base: {base_in(root)}}}\nprompt: {{max_history: 5, max_tokens: 200}}\n"
        f"decode: {{top_k: 10, beams: 10, search: beam, batch_size: 64}}\nsystems: [{system}]\n",
        "utf-8",
    )
    return path


def base_in(root: Path) -> Path:
    """A decoder of 2 layers, 64 wide, random, under SmolLM2's tokenizer."""
    place = root / "base"
    if not place.is_dir():
        import torch
        import transformers

        from llmrec.fetch.cache import model_path

        tokenizer = transformers.AutoTokenizer.from_pretrained(
            model_path("smollm2-135m-instruct", offline=True)
        )
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
        )
        transformers.LlamaForCausalLM(config).save_pretrained(place)
        tokenizer.save_pretrained(place)
    return place


if __name__ == "__main__":
    main()
