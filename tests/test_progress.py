"""Long work tells how far it is: lines now and then, bars on a terminal, hours before they pass."""

import io
import logging
import os
import pty
import subprocess
import sys

import pytest

from llmrec import progress, terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns; the lines that were told."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def steps(clock, seconds, count, total, what="train: step", less=""):
    with progress.over(what, less) as told:
        for done in range(1, count + 1):
            clock[0] += seconds
            told.at(done, total, f"loss {1 / done:.1f}")


def test_a_line_every_thirty_seconds_with_the_time_left(clock, caplog):
    with caplog.at_level(logging.INFO, "llmrec"):
        steps(clock, 8.0, 12, 20)
    # 32 s: three units since the first took 24 s, 16 are left; 64 s; 96 s
    assert [r.message for r in caplog.records] == [
        "train: step 4 of 20, loss 0.2, about 128 s left".replace("128 s", "2 min"),
        "train: step 8 of 20, loss 0.1, about 96 s left",
        "train: step 12 of 20, loss 0.1, about 64 s left",
    ]


def test_hours_are_said_first_and_once_with_what_makes_them_less(clock, caplog):
    with caplog.at_level(logging.INFO, "llmrec"):
        steps(clock, 6.0, 4, 5000, less="rows.count")
    [first] = [r for r in caplog.records if r.levelno == logging.WARNING]
    # at the third unit 12 s have passed since the first: 4,997 units of 6 s
    assert first.message == "train: step 3 of 5000: about 8.3 h left; less of it: rows.count"
    with caplog.at_level(logging.INFO, "llmrec"):
        caplog.clear()
        steps(clock, 6.0, 4, 100)
    assert not caplog.records


def test_work_of_unknown_length_tells_what_is_behind(clock, caplog):
    with caplog.at_level(logging.INFO, "llmrec"):
        steps(clock, 31.0, 2, None, what="prepare: row")
    assert caplog.records[-1].message == "prepare: row 2, loss 0.5"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5999, "100 min"),
        (7200, "2.0 h"),
        (2e5, "2.3 days"),
    ],
)
def test_durations_in_words(seconds, said):
    assert progress.words(seconds) == said


PROGRAM = """
import logging
from llmrec import progress, terminal
terminal.set_up_logging({quiet})
with progress.over("train: step") as told, progress.over("inside") as inner:
    for done in range(1, 4):
        told.at(done, 3, "loss 1.0")
        inner.at(done, 3)
    logging.getLogger("llmrec").info("a line above")
"""


def on_a_terminal(program):
    """What a program writes to a terminal that is its stderr."""
    ours, theirs = pty.openpty()
    os.environ.setdefault("TERM", "xterm")
    process = subprocess.Popen([sys.executable, "-c", program], stderr=theirs, close_fds=True)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other side is gone
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert process.wait(timeout=30) == 0
    return said.decode()


def test_a_terminal_gets_bars_and_lines_above_them():
    said = on_a_terminal(PROGRAM.format(quiet=False))
    assert "train: step" in said
    assert "3/3" in said
    assert "a line above" in said
    assert said.rstrip("\r\n").endswith(("\x1b[2K", "\x1b[?25h", "\x1b[1A"))  # taken away again


def test_no_bars_for_who_wants_quiet_or_does_not_watch():
    assert on_a_terminal(PROGRAM.format(quiet=True)) == ""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(quiet=False)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "a line above\n"


def test_titles_in_a_note_do_nothing_to_the_terminal(monkeypatch):
    drawn = io.StringIO()
    drawn.isatty = lambda: True
    monkeypatch.setattr(terminal.sys, "stderr", drawn)
    bar = terminal._Bars().bar("recommend")
    bar.show(3, 3, "\x1b[2J[bold]Alien", None)
    bar.close()
    assert "\\x1b[2J[bold]Alien" in drawn.getvalue()
