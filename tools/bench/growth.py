"""Draws how cost grows, from lines of JSON that `catalog.py` and `train.py` print.

python tools/bench/all.py --out results/bench-cpu.md     # draws results/bench-cpu.svg too
python tools/bench/growth.py lines.jsonl more.jsonl --out results/growth.svg
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

PANELS = (
    ("items", "items in the catalog", True),
    ("beams", "beams", False),
    ("prompt tokens", "tokens of a prompt", False),
)
SEARCHES = {
    "beams_users_per_second": "beams, whole vocabulary",
    "best_first_users_per_second": "best-first, allowed tokens",
}
FIELDS = {"items": "items", "beams": "beams", "prompt tokens": "prompt_tokens"}


def draw(figures: Sequence[dict], path: Path) -> bool:
    """Write an SVG with a panel for each thing that was swept; False if nothing was."""
    from matplotlib.figure import Figure

    swept = [f for f in figures if f.get("swept") in FIELDS]
    rows = [f for f in figures if "targets" in f and f.get("titles") == "MovieLens"]
    if not swept or not rows:
        return False
    sheet = Figure(figsize=(9, 6), layout="constrained")
    panels = sheet.subplots(2, 2).ravel()
    for axes, (what, said, logarithmic) in zip(panels, PANELS, strict=False):
        points = sorted((f for f in swept if f["swept"] == what), key=lambda f: f[FIELDS[what]])
        at = [f[FIELDS[what]] for f in points]
        for key, name in SEARCHES.items():
            axes.plot(at, [f[key] for f in points], marker="o", label=name)
        if logarithmic:
            axes.set_xscale("log")
        axes.set(xlabel=said, ylabel="users/s", ylim=(0, None))
        axes.legend()
    rows = sorted(rows, key=lambda f: f["targets"])
    for key, name in (("tree", "one row"), ("padded", "one row a target")):
        panels[3].plot([f["targets"] for f in rows], [f[key] for f in rows], marker="o", label=name)
    panels[3].set(xlabel="targets of a user", ylabel="targets/s trained", ylim=(0, None))
    panels[3].legend()
    sheet.savefig(path, format="svg", metadata={"Date": None})
    return True


def main() -> None:
    """Draw what files of lines hold; other lines in them are passed over."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("files", type=Path, nargs="+")
    options.add_argument("--out", type=Path, required=True)
    given = options.parse_args()
    lines = [line for file in given.files for line in file.read_text("utf-8").splitlines()]
    if not draw([json.loads(line) for line in lines if line.startswith("{")], given.out):
        sys.exit("the files hold no line of a swept size, or none of targets in a row")


if __name__ == "__main__":
    main()
