"""A served run under load on the loopback address: requests/s and latency by clients at once.

Prepares the shipped recipe, starts `llmrec serve` on it, and asks for each system the histories of
its test users, one a request, from 1, 4 and 16 clients that each wait for an answer before they ask
again. One client is what one-by-one calls give. Every level asks the same requests, so the lists
are checked equal. Server and clients share the cores they are given. A page on stdout or in --out.

    python tools/bench/serving.py --out results/serving.md
"""

import argparse
import asyncio
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.recipe.loading import load
from llmrec.runs.folder import RunFolder
from llmrec.stages import prepare

CLIENTS = (1, 4, 16)


def main() -> None:
    """Prepare, serve, ask, write the page."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--recipe", default="demo")
    options.add_argument("--requests", nargs="*", default=["untuned=24", "markov=1500"])
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    counts = {name: int(n) for name, n in (one.split("=") for one in given.requests)}
    with tempfile.TemporaryDirectory() as place:
        recipe = load(given.recipe, [f"output_dir={place}"])
        folder = RunFolder.of(recipe)
        prepare.run(recipe, folder)
        folder.keep(recipe)
        ids = Catalog.read(folder.items).item_ids
        histories = [
            [{"id": ids[p]} for p in history]
            for history in Examples.read(folder.examples("test")).histories()
        ]
        rows = []
        for system, count in counts.items():
            asked = [histories[n % len(histories)] for n in range(count)]
            with Served(folder, system) as served:
                rows += asyncio.run(levels(served, system, asked, given.repeats))
    page = written(given, rows)
    print(page)
    if given.out is not None:
        given.out.write_text(page, "utf-8")


class Served:
    """`llmrec serve` in a process of its own; `address` once it answers."""

    def __init__(self, folder: RunFolder, system: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "llmrec", "serve", str(folder.root), "--system", system]
        self._process = subprocess.Popen([*command, "--port", str(port), "--seconds", "600"])

    def __enter__(self) -> "Served":
        end = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.address}/health"):  # noqa: S310
                    return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    sys.exit("the server did not start")
                time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        if self._process.wait(60) != 0:
            sys.exit(f"the server ended with {self._process.returncode}")


class Connection:
    """One kept HTTP connection, which asks as little of the processor as can be."""

    def __init__(self, address: str) -> None:
        self.host, port = address.removeprefix("http://").split(":")
        self.port = int(port)

    async def __aenter__(self) -> "Connection":
        self._reader, self._writer = await asyncio.open_connection(self.host, self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def call(self, method: str, path: str, body: bytes = b"") -> bytes:
        """What is answered; ends the program where that is no 200."""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/json\r\n\r\n"
        self._writer.write(head.encode() + body)
        said = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(re.search(r"content-length: (\d+)", said)[1])
        content = await self._reader.readexactly(length)
        if " 200 " not in said.splitlines()[0]:
            sys.exit(f"{said.splitlines()[0]}: {content.decode()}")
        return content

    async def ask(self, system: str, history: list) -> list[str]:
        """Item ids of a history's list."""
        body = {"histories": [history], "system": system, "top_k": 10}
        said = json.loads(await self.call("POST", "/recommend", json.dumps(body).encode()))
        return [item["item_id"] for item in said["results"][0]["items"]]

    async def batches(self) -> tuple[float, float]:
        """How many batches were answered so far, and histories in them."""
        text = (await self.call("GET", "/metrics")).decode()
        number = re.search(r"^llmrec_batch_histories_count (\S+)", text, re.MULTILINE)
        total = re.search(r"^llmrec_batch_histories_sum (\S+)", text, re.MULTILINE)
        return float(number[1]), float(total[1])


async def levels(served: Served, system: str, asked: list, repeats: int) -> list[dict]:
    """A row for each number of clients, which take turns; all have the lists of one client."""
    alone: list = []
    measured: dict[int, list[dict]] = {clients: [] for clients in CLIENTS}
    async with Connection(served.address) as first:
        await first.ask(system, asked[0])  # what is loaded or fitted once
    for turn in range(repeats):
        for clients in CLIENTS[:: -1 if turn % 2 else 1]:
            async with Connection(served.address) as idle:  # which would be closed meanwhile
                before = await idle.batches()
            found, seconds, taken = await under_load(served.address, system, asked, clients)
            async with Connection(served.address) as idle:
                after = await idle.batches()
            alone = alone or found
            equal = sum(one == other for one, other in zip(found, alone, strict=True))
            measured[clients].append(
                {
                    "requests/s": len(asked) / seconds,
                    "p50": 1000 * float(np.percentile(taken, 50)),
                    "p99": 1000 * float(np.percentile(taken, 99)),
                    "histories a batch": (after[1] - before[1]) / max(1, after[0] - before[0]),
                    "equal": equal / len(asked),
                }
            )
    return [
        {"system": system, "clients": clients, "requests": len(asked)}
        | {key: sorted(turn[key] for turn in turns) for key in turns[0]}
        for clients, turns in measured.items()
    ]


async def under_load(
    address: str, system: str, asked: list, clients: int
) -> tuple[list, float, list[float]]:
    """Lists in the order of the requests, seconds in all, and those of each request."""
    found, taken = [None] * len(asked), [0.0] * len(asked)
    left = iter(range(len(asked)))

    async def one() -> None:
        async with Connection(address) as connection:
            for number in left:
                begun = time.perf_counter()
                found[number] = await connection.ask(system, asked[number])
                taken[number] = time.perf_counter() - begun

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return found, time.perf_counter() - begun, taken


def written(given: argparse.Namespace, rows: list[dict]) -> str:
    """The page in Markdown."""
    cores, threads = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS", "any")
    lines = [
        "# Serving",
        "",
        f"`python tools/bench/serving.py --requests {' '.join(given.requests)}`: `llmrec serve` of "
        f"the recipe `{given.recipe}` (1,682 items, ten recommended, one history a request), "
        f"server and clients together on {cores} core(s), {platform.machine()}, {threads} "
        "thread(s). Each client waits for its answer before it asks again; one client is what "
        f"one-by-one calls give. Medians of {given.repeats} turns, in brackets the least and the "
        "most; the machine had other work beside this.",
        "",
        "| system | clients | requests | requests/s | p50, ms | p99, ms | histories a batch | "
        "against one by one | lists equal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        [first] = [r for r in rows if r["system"] == row["system"] and r["clients"] == CLIENTS[0]]
        gain = statistics.median(row["requests/s"]) / statistics.median(first["requests/s"])
        lines.append(
            f"| {row['system']} | {row['clients']} | {row['requests']} | "
            f"{_spread(row['requests/s'], 2)} | {_spread(row['p50'], 0)} | "
            f"{_spread(row['p99'], 0)} | {_spread(row['histories a batch'], 1)} | {gain:.2f} x | "
            f"{min(row['equal']):.0%} |"
        )
    print(json.dumps(rows), file=sys.stderr)
    return "\n".join([*lines, ""])


def _spread(values: list[float], digits: int) -> str:
    """The median of ascending values, the least and the most in brackets."""
    middle = statistics.median(values)
    return f"{middle:.{digits}f} [{values[0]:.{digits}f}, {values[-1]:.{digits}f}]"


if __name__ == "__main__":
    main()
