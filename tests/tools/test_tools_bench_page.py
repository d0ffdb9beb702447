"""tools/bench/all.py tells every figure beside its goal, and which scripts failed."""

from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "tools" / "bench"


@pytest.fixture
def bench(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("all")


def test_figures_stand_beside_their_goals_and_those_behind_are_bold(bench):
    decode = bench.Section(
        "decode",
        "# Decoding, in short\n\nText.\n",
        [
            {
                "figure": "search",
                "beams": 10,
                "softmax": "whole",
                "title_tokens": 11.6,
                "ratio": 7.5,
                "ratio_range": [7.0, 8.0],
                "goal": 6.0,
                "repeats": 3,
            },
            {"figure": "search", "beams": 20, "ratio": 8.5, "goal": 9.0, "repeats": 2},
            {"figure": "no goal", "ratio": 1.0, "goal": None},
        ],
        61.0,
    )
    trie = bench.Section(
        "trie",
        "# Trie\n",
        [
            {"figure": "bytes", "titles": 1000, "llmrec": 151.0, "ratio": 40.0, "goal": 150.0},
            {"figure": "bytes", "titles": 2000, "llmrec": 149.0, "goal": 150.0},
        ],
        59.0,
    )
    failed = bench.Section("soft", None, [], 0.0)
    lines = bench.page([decode, trie, failed], "page.svg").split("\n")

    link = "[decode](#decoding-in-short)"
    assert [line for line in lines if line.startswith("| ")][1:] == [
        "| search, beams 10, softmax whole, title tokens 11.6 | 7.5x (7.0 to 8.0) | at least 6x | "
        f"3 | {link} |",
        f"| search, beams 20 | **8.5x** | at least 9x | 2 | {link} |",
        "| bytes, titles 1000 | **151.0** | at most 150 | 1 | [trie](#trie) |",
        "| bytes, titles 2000 | 149.0 | at most 150 | 1 | [trie](#trie) |",
    ]
    assert "2 minutes in all (decode 61 s, trie 59 s, soft 0 s)" in lines[2]
    assert "## Decoding, in short" in lines
    assert "It failed; there are no figures." in lines
    assert sum("](page.svg)" in line for line in lines) == 1


def test_two_goals_of_a_line_are_two_rows(bench):
    line = {
        "figure": "HR",
        "peer": "other",
        "ratio": 60.0,
        "goal": 50.0,
        "llmrec": 0.6,
        "goal_seconds": 0.5,
        "repeats": 5,
    }
    rows = bench.told(bench.Section("metrics", "# M\n", [line], 1.0))

    assert [row[1:3] for row in rows] == [["60.0x", "at least 50x"], ["**0.6**", "at most 0.5"]]


def test_every_script_that_is_run_exists(bench):
    assert [name for name in bench.SCRIPTS if not (FOLDER / f"{name}.py").exists()] == []
