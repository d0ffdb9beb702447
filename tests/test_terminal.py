"""What a terminal is given does nothing but show, however hostile a title or a file's name."""

import io
import json
import logging

import pytest

from llmrec import terminal
from llmrec.errors import DataError

HOSTILE = [
    "\x1b]0;owned\x07",
    "\x1b[2J\x1b[H",
    "\x1b[31mred",
    "\x9b2J",
    "\x08\x08\x08",
    "over\rwritten",
    "\u202egpj.exe",
    "\u2066x\u2069",
    "\x7f",
    "\x00",
]


def shown(call, capsys):
    call()
    return "".join(capsys.readouterr())


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_escapes_are_written_out(text, capsys):
    title = f"The {text} Man"

    def fails():
        raise DataError(title)

    with pytest.raises(SystemExit):
        terminal.guarded(fails)
    said = capsys.readouterr().err
    record = logging.LogRecord("llmrec", logging.INFO, "", 0, "%s", (title,), None)
    said += terminal._Harmless("%(message)s").format(record)
    for value, as_json in (
        (title, False),
        ([title], False),
        ({"a": [title]}, False),
        (title, True),
    ):
        said += shown(lambda v=value, j=as_json: terminal.show(v, j), capsys)
    out = io.StringIO()
    terminal.show_lines([{"title": title}], out)
    assert json.loads(out.getvalue()) == {"title": title}  # the data is what it was
    said += out.getvalue()
    left = said.replace("\x1b[31m", "") if "[31m" in text else said  # a colour is no harm
    assert not any(ord(c) < 32 and c not in "\n\t" for c in left), repr(said)
    assert not any(c in left for c in "\x7f\x80\x9b\u202e\u2066\u2069"), repr(said)
    assert "The " in said
    assert " Man" in said


def test_colours_of_our_own_are_left(capsys):
    assert (
        shown(lambda: terminal.show("\x1b[1;32mx\x1b[0m", False), capsys) == "\x1b[1;32mx\x1b[0m\n"
    )
    assert terminal.harmless("\x1b[1;32mx", False) == "\\x1b[1;32mx"


def test_long_values_and_lists_are_cut_once():
    long = terminal.harmless("a" * 10_000, False)
    assert long == "a" * terminal.MAX_LINE + "... (10000 characters)"
    lines = terminal.harmless("\n".join(map(str, range(500))), False).splitlines()
    assert len(lines) == terminal.MAX_LINES + 1
    assert lines[-1] == f"  ... and {500 - terminal.MAX_LINES} more lines"
    assert terminal.harmless("a\tb\nc: ü 北", False) == "a\tb\nc: ü 北"
