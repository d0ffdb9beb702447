"""All CPU benchmarks in one go, and one page of their figures.

Each script runs by itself with the sizes below; its page becomes a section of --out, beside which
an SVG shows how cost grows; its lines of JSON go to stdout. A script that fails is named, and the
page says so.

    python tools/bench/all.py --out results/bench-cpu.md
    python tools/bench/all.py --only trie --only metrics
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from growth import draw

HERE = Path(__file__).parent
SCRIPTS = {
    "decode": [],
    "exact": ["--users", "8", "--allowed"],
    "soft": ["--pairs", "2", "--users", "4", "--repeats", "2"],
    "train": ["--targets", "1", "5", "20", "--rejected", "3", "--repeats", "2"],
    "candidates": ["--users", "1", "--repeats", "2"],
    "catalog": ["--repeats", "1"],
    "trie": ["--sizes", "1e3", "1e5", "1e6"],
    "metrics": [],
    "prepare": [],
}


def main() -> None:
    """Run the scripts and write the page."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--only", action="append", choices=SCRIPTS, help="run these alone")
    options.add_argument("--out", type=Path, help="write the page here")
    given = options.parse_args()
    sections, failed, figures, begun = [], [], [], time.monotonic()
    for name in given.only or SCRIPTS:
        text, found, seconds = section(name)
        figures += found
        sections.append(text or f"# {name}\n\nIt failed; there are no figures.\n")
        failed += [] if text else [name]
        print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
    total = (time.monotonic() - begun) / 60
    if given.out:
        head = ["# Speed on a CPU", "",
                f"`python tools/bench/all.py`, {total:.0f} minutes in all. Every figure is a ratio "
                "of two sides that ran in turns on the same machine, equal in what they return.",
                ""]  # fmt: skip
        picture = given.out.with_suffix(".svg")
        if draw(figures, picture):
            head += [f"![How the cost of decoding and training grows]({picture.name})", ""]
        given.out.write_text("\n".join(head) + "\n" + "\n".join(sections), "utf-8")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def section(name: str) -> tuple[str | None, list[dict], float]:
    """The page of one script, headings one level down, None if it failed; its lines; seconds."""
    begun, figures = time.monotonic(), []
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "page.md"
        command = [sys.executable, str(HERE / f"{name}.py"), *SCRIPTS[name], "--out", str(page)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
            for line in running.stdout:
                print(line, end="", flush=True)
                figures += [json.loads(line)] if line.startswith("{") else []
        text = page.read_text("utf-8") if running.returncode == 0 and page.exists() else None
    if text is not None:
        text = "\n".join(f"#{line}" if line.startswith("#") else line for line in text.split("\n"))
    return text, figures, time.monotonic() - begun


if __name__ == "__main__":
    main()
