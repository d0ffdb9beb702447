"""The process around a verb: logs on stderr, results on stdout, signals and errors as exit codes.

Knows no verb and no recipe.
"""

import json
import logging
import math
import os
import re
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, redirect_stdout, suppress
from threading import Thread
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

from llmrec import progress, stopping
from llmrec.errors import LlmrecError
from llmrec.known_errors import explained

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

INTERRUPTED, CTRL_C, FAILED = 75, 130, 1
# Seconds that a signal leaves: to what stops by itself, as a training that saves first, and to all
# else, which leaves no part behind whenever it ends.
GRACE, AT_ONCE = 120.0, 2.0
DRAWN_EVERY = 0.2  # seconds between two drawings of a bar
SENTENCES = 100  # characters of a list from which each of it has a line of its own
MAX_LINE, MAX_LINES = 2000, 100  # of an error or a log line
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_UNSEEN_BUT_COLOUR = re.compile(rf"(?!\x1b\[[0-9;]*m){_UNSEEN.pattern}")
T = TypeVar("T")


def guarded(command: Callable[[], Any]) -> NoReturn:
    """Run a command and exit with its code; a person's mistake is a message, never a traceback.

    A signal is noted and looked at where stopping is safe (see `stopping`). What does not stop in
    time is ended, and so is everything at a second signal.
    """
    _listen()
    quiet_libraries()
    code = 0
    try:
        command()
    except LlmrecError as error:
        if error.__cause__ is not None and os.environ.get("LLMREC_TRACEBACK"):
            raise  # what it rests on is another's, or a defect that looks like it
        _tell_launcher(error)
        code = error.exit_code if error.is_told else _told(error, error.exit_code)
    except OSError as error:
        # Disk full, no permission, a file that went away: the message says it, a traceback hides
        # it. LLMREC_TRACEBACK=1 brings it back.
        if os.environ.get("LLMREC_TRACEBACK"):
            raise
        code = _told(explained(error) or error, FAILED)
    except Exception as error:
        known = None if os.environ.get("LLMREC_TRACEBACK") else explained(error)
        if known is None:
            raise
        _tell_launcher(error)
        code = _told(known, known.exit_code)
    except SystemExit as end:
        # A wish to stop is not ignored, even where the work was done before it was looked at.
        sys.exit(end.code if stopping.requested() is None else stopping.requested())
    sys.exit(code if stopping.requested() is None else stopping.requested())


def _told(error: Exception, code: int) -> int:
    print(f"error: {harmless(str(error), False)}", file=sys.stderr)
    return code


def harmless(text: str, colours: bool) -> str:
    """`text` as a terminal may be given it, whatever file it comes from.

    Control characters, which could move the cursor or rename the window, are written out as \\x1b,
    and so are those that turn the direction of writing; with `colours` a colour is left. A line is
    cut after MAX_LINE characters and a text after MAX_LINES lines.
    """
    lines = text.split("\n")
    more = len(lines) - MAX_LINES
    if more > 0:
        lines = [*lines[:MAX_LINES], f"  ... and {more} more lines"]
    cut = (x if len(x) <= MAX_LINE else f"{x[:MAX_LINE]}... ({len(x)} characters)" for x in lines)
    return (_UNSEEN_BUT_COLOUR if colours else _UNSEEN).sub(_written_out, "\n".join(cut))


def _written_out(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


class _Harmless(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record), False)


def _tell_launcher(error: Exception) -> None:
    """Leave the message where torchrun looks for why a process ended, if that started it."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        handler = get_error_handler()
        handler.initialize()
        handler.record_exception(error)


def _listen() -> None:
    """Have a thread wait for SIGTERM and SIGINT, as it hears them while the main one is in C."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_hear_nothing)
    Thread(target=_wait_for_signals, args=(reader,), daemon=True).start()


def _hear_nothing() -> None:
    """In a forked worker: who sends it SIGTERM means it alone; Ctrl+C goes to all, and whoever
    started it decides."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _wait_for_signals(reader: int) -> None:
    number = _next_signal(reader, None)
    by_hand = number == signal.SIGINT
    code = CTRL_C if by_hand else INTERRUPTED
    stopping.request(code)
    again = "once more to stop at once" if by_hand else "run the same command again to go on"
    what = "stopping at the next step" if stopping.is_graceful() else "stopping"
    _say(f"{what}; {again}")
    left = _seconds_left()
    if _next_signal(reader, left) is None:
        _say(f"not stopped after {left:g} s; ending it")
    os._exit(code)


def _next_signal(reader: int, seconds: float | None) -> int | None:
    """The next of the two signals; None where none came in time. Others are not ours."""
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        left = None if until is None else max(0.0, until - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            return None
        if (number := os.read(reader, 1)[0]) in (signal.SIGTERM, signal.SIGINT):
            return number


def _seconds_left() -> float:
    if not stopping.is_graceful():
        return AT_ONCE
    try:
        return float(os.environ.get("LLMREC_GRACE", GRACE))
    except ValueError:
        return GRACE


def _say(line: str) -> None:
    # Not by `print`: the main thread may be inside one.
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())


def quiet_libraries() -> None:
    """No telemetry or warnings to developers, and no progress bars where nobody watches."""
    # What a library will change in its next version is no news to the person training a model.
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")


def is_main_process() -> bool:
    """False in all but the first process that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def by_main(do: Callable[[], T]) -> T:
    """What the main process finds, in all that a launcher started; without one `do()` alone.

    The others wait, and fail as it fails.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return do()
    from llmrec.runs.processes import staged  # brings torch

    return staged(do, everyone=False)


def takes_colour() -> bool:
    """Whether stdout is a terminal that shows colour (NO_COLOR turns it off)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def stdout_for_data() -> AbstractContextManager[Any]:
    """What libraries print meanwhile goes to stderr, so that stdout holds the result alone."""
    return redirect_stdout(sys.stderr)


def set_up_logging(quiet: bool) -> None:
    """Log lines of llmrec to stderr; warnings alone if `quiet` or not the main process."""
    logger = logging.getLogger("llmrec")
    handler = _ToStderr()
    handler.setFormatter(_Harmless("%(message)s"))
    logger.handlers = [handler]
    logger.propagate = False
    silent = quiet or not is_main_process()
    logger.setLevel(logging.WARNING if silent else logging.INFO)
    progress.draw_with(None if silent or not sys.stderr.isatty() else _Bars())


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is now, which while bars are drawn is above them."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Bars:
    """Bars on a terminal's stderr, as many as there is work; drawn when it tells, by no thread."""

    def __init__(self) -> None:
        self._drawn: RichProgress | None = None

    def bar(self, what: str) -> "_Bar":
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        if self._drawn is None:
            fields = ("{task.description}", "{task.fields[count]}", "{task.fields[note]}")
            name, count, note = (TextColumn(field, markup=False) for field in fields)
            console = Console(file=sys.stderr)
            self._drawn = Progress(
                name, BarColumn(24), count, note, console=console, auto_refresh=False,
                transient=True, redirect_stdout=False,
            )  # fmt: skip
            self._drawn.start()
        task = self._drawn.add_task(what, total=None, count="", note="")
        return _Bar(self, self._drawn, task)

    def over(self, bars: "RichProgress") -> None:
        """Leave the terminal as it was once nothing is drawn any more."""
        if self._drawn is bars and not bars.tasks:
            bars.stop()
            self._drawn = None


class _Bar:
    def __init__(self, bars: _Bars, drawn: "RichProgress", task: Any) -> None:
        self._bars, self._drawn, self._task, self._shown = bars, drawn, task, 0.0

    def show(self, done: int, total: int | None, note: str, left: float | None) -> None:
        if time.monotonic() - self._shown < DRAWN_EVERY and done != total:
            return
        self._shown = time.monotonic()
        count = f"{done}/{total}" if total is not None else f"{done}"
        rest = "" if left is None else f"{progress.words(left)} left"
        said = harmless(", ".join(part for part in (note, rest) if part), False)
        self._drawn.update(self._task, completed=done, total=total, count=count, note=said)
        self._drawn.refresh()

    def close(self) -> None:
        self._drawn.remove_task(self._task)
        self._drawn.refresh()
        self._bars.over(self._drawn)


def show(result: Any, as_json: bool) -> None:
    """Print a verb's result: JSON, or text a person can read. Once, whatever the processes."""
    if not is_main_process():
        return
    if as_json:
        print(_json(result, 2))
        return
    if isinstance(result, str):
        text = result
    elif isinstance(result, list) and not any(isinstance(item, dict | list) for item in result):
        text = "\n".join(_word(item) for item in result)
    else:
        text = "\n".join(_lines(result, ""))
    print(_UNSEEN_BUT_COLOUR.sub(_written_out, text))


def show_lines(rows: Iterable[Any], stream: TextIO) -> None:
    """Print one line of JSON for each row, as it comes."""
    for row in rows:
        if is_main_process():
            print(_json(row, None), file=stream, flush=True)


def _json(value: Any, indent: int | None) -> str:
    """JSON with the characters written out that would do something to a terminal."""
    text = json.dumps(_plain(value), indent=indent, ensure_ascii=False)
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _plain(value: Any) -> Any:
    """`value` with null for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(value: Any, indent: str) -> list[str]:
    if isinstance(value, dict):
        lines = []
        for key, item in value.items():
            if isinstance(item, dict | list) and item:
                lines += [f"{indent}{key}:", *_lines(item, indent + "  ")]
            elif isinstance(item, str) and "\n" in item:
                lines += [f"{indent}{key}:", *(indent + "  " + line for line in item.splitlines())]
            else:
                lines.append(f"{indent}{key}: {_word(item)}")
        return lines
    if isinstance(value, list):
        if all(not isinstance(item, dict | list) for item in value):
            words = [_word(item) for item in value]
            if sum(map(len, words)) > SENTENCES:
                return [f"{indent}- {word}" for word in words]
            return [indent + ", ".join(words)]
        return [line for item in value for line in (*_lines(item, indent), "")][:-1]
    return [indent + _word(value)]


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
