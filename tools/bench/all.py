"""All CPU benchmarks in one go, and one page of their figures.

Each script runs by itself with the sizes below, smaller than its own, so that all take a quarter of
an hour on two cores. The page begins with every figure beside its goal; the scripts' own pages are
its sections, and an SVG beside it shows how cost grows. Lines of JSON go to stdout, each script's
seconds to stderr. A script that fails is named, and the page says so.

    python tools/bench/all.py --out results/bench-cpu.md
    python tools/bench/all.py --only trie --only metrics
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from growth import draw

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Bench:
    """How a script is called, and how its lines are told: the keys that tell one from the others,
    the key of what is measured, and whether that is to be at most or at least the goal."""

    arguments: tuple[str, ...]
    told: tuple[str, ...]
    value: str = "ratio"
    at_most: bool = False


@dataclass(frozen=True)
class Section:
    """What a script gave: its page, None if it failed, its lines, and how long it took."""

    name: str
    text: str | None
    lines: Sequence[dict]
    seconds: float


SCRIPTS = {
    "decode": Bench(
        ("--shapes", "10", "10-allowed", "10-long", "20", "--repeats", "3", "2"),
        ("beams", "softmax", "title_tokens"),
    ),
    "exact": Bench(
        ("--users", "8", "--checked", "1", "--softmax", "allowed"),
        ("beams", "softmax"),
        at_most=True,
    ),
    "train": Bench(
        (
            "--only",
            "rows",
            "pairs",
            "msl",
            "sets",
            "padding",
            "--targets",
            "1",
            "5",
            "20",
            "--repeats",
            "2",
            "--long-repeats",
            "1",
            "--rejected",
            "3",
        ),
        ("peer", "titles", "targets", "rejected", "prompt_tokens"),
    ),
    "soft": Bench(
        ("--pairs", "2", "--history", "25", "--users", "4", "--repeats", "2", "--peers", "batched"),
        ("answers", "softmax", "prompt_tokens"),
    ),
    "candidates": Bench(("--users", "1", "--repeats", "3", "--titles", "with-year"), ("softmax",)),
    "rerank": Bench(("--users", "8", "--repeats", "3"), ()),
    "catalog": Bench(
        ("--sizes", "1e3", "1e5", "1e6", "--beams", "5", "20", "--prompts", "75", "300"),
        (),
        at_most=True,
    ),
    "trie": Bench(("--sizes", "1e3", "1e5", "1e6"), ("titles",), "llmrec", at_most=True),
    "metrics": Bench((), ("peer",)),
    "prepare": Bench((), ()),
}


def main() -> None:
    """Run the scripts and write the page."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--only", action="append", choices=SCRIPTS, help="run these alone")
    options.add_argument("--out", type=Path, help="write the page here")
    given = options.parse_args()
    sections = []
    for name in given.only or SCRIPTS:
        sections.append(section(name))
        print(f"{name}: {sections[-1].seconds:.0f} s", file=sys.stderr, flush=True)
    print(f"all: {sum(s.seconds for s in sections):.0f} s", file=sys.stderr, flush=True)
    if given.out:
        picture = given.out.with_suffix(".svg")
        drawn = draw([line for part in sections for line in part.lines], picture)
        given.out.write_text(page(sections, picture.name if drawn else None), "utf-8")
    failed = [part.name for part in sections if part.text is None]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def section(name: str) -> Section:
    """Run one script."""
    begun, lines = time.monotonic(), []
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "page.md"
        arguments = (*SCRIPTS[name].arguments, "--out", str(out))
        command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
            for line in running.stdout:
                print(line, end="", flush=True)
                lines += [json.loads(line)] if line.startswith("{") else []
        text = out.read_text("utf-8") if running.returncode == 0 and out.exists() else None
    return Section(name, text, lines, time.monotonic() - begun)


def page(sections: Sequence[Section], picture: str | None) -> str:
    """The table of figures and goals, the picture, and the scripts' pages one level down."""
    minutes = sum(part.seconds for part in sections) / 60
    took = ", ".join(f"{part.name} {part.seconds:.0f} s" for part in sections)
    rows = [row for part in sections for row in told(part)]
    lines = [
        "# Speed on a CPU",
        "",
        f"`python tools/bench/all.py`, {minutes:.0f} minutes in all ({took}). Ratios are of two "
        "sides that ran in turns on the same machine and are equal in what they return: medians "
        "of so many repeats, and their range. What is behind its goal is bold.",
        "",
        "| figure | measured | goal | repeats | section |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    if picture:
        lines += [f"![How the cost of decoding and training grows]({picture})", ""]
    for part in sections:
        text = part.text or f"# {part.name}\n\nIt failed; there are no figures.\n"
        lines += [f"#{line}" if line.startswith("#") else line for line in text.split("\n")]
    return "\n".join(lines)


def told(part: Section) -> list[list[str]]:
    """A row for each line that has a goal in numbers."""
    bench, title = SCRIPTS[part.name], (part.text or part.name).split("\n")[0].strip("# ")
    link = f"[{part.name}](#{re.sub('[^a-z0-9 -]', '', title.lower()).replace(' ', '-')})"
    rows = []
    for line in part.lines:
        if not isinstance(line.get("goal"), int | float):
            continue
        told_by = [f"{key.replace('_', ' ')} {line[key]}" for key in bench.told if key in line]
        goals = [(bench.value, line["goal"], bench.at_most)]
        goals += [("llmrec", line["goal_seconds"], True)] if "goal_seconds" in line else []
        for value, goal, at_most in goals:
            unit = "x" if value == "ratio" else ""
            shown = f"{line[value]}{unit}"
            if unit and "ratio_range" in line:
                shown += " ({} to {})".format(*line["ratio_range"])
            behind = line[value] > goal if at_most else line[value] < goal
            rows.append(
                [
                    ", ".join([line["figure"], *told_by]),
                    f"**{shown}**" if behind else shown,
                    f"at {'most' if at_most else 'least'} {goal:g}{unit}",
                    str(line.get("repeats", 1)),
                    link,
                ]
            )
    return rows


if __name__ == "__main__":
    main()
