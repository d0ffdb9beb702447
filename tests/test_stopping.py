"""Signals are never ignored: looked at where stopping is safe, else the process is ended."""

import os
import signal
import subprocess
import sys
import time

import pytest

from llmrec import stopping

HEAD = """
import time
from llmrec import stopping, terminal
def ready():
    print('r', flush=True)
"""
TAIL = "terminal.guarded(work)"
SWALLOWS = """
def work():
    ready()
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            pass
"""
STUCK = "def work():\n    ready()\n    sum(1 for _ in range(10**10))\n"
DONE_MEANWHILE = "def work():\n    ready()\n    time.sleep(0.7)\n"
STEPS = """
def work():
    ready()
    for _ in range(1000):
        time.sleep(0.05)
        stopping.check()
"""
SLOW = "def work():\n    with stopping.gracefully():\n        ready()\n        time.sleep(60)\n"


FORKS = """
def work():
    import multiprocessing
    worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(20,))
    worker.start()
    time.sleep(0.3)
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == -15, worker.exitcode
    ready()
    time.sleep(1)
"""


def ended(program, *numbers, between=0.3, **environment):
    """Start a command, send it signals; (exit code, stderr, seconds after the last signal)."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + program + TAIL],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout.readline() == "r\n"
    for at, number in enumerate(numbers):
        if at:
            time.sleep(between)
        process.send_signal(number)
    begun = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors
    return process.returncode, errors, time.monotonic() - begun


@pytest.fixture(autouse=True)
def without_a_wish():
    yield
    stopping.withdraw()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("program", [SWALLOWS, STUCK, DONE_MEANWHILE, STEPS])
def test_no_signal_is_ignored(program, number, code):
    found, errors, seconds = ended(program, number)
    assert found == code
    assert "stopping" in errors
    assert seconds < (1.5 if program in (STEPS, DONE_MEANWHILE) else 5)


def test_signals_of_workers_are_not_ours():
    code, errors, _ = ended(FORKS)
    assert (code, errors) == (0, "")


def test_a_second_signal_ends_what_stops_by_itself():
    code, errors, seconds = ended(SLOW, signal.SIGINT, signal.SIGINT)
    assert code == 130
    assert "once more to stop at once" in errors
    assert seconds < 2


def test_what_does_not_stop_in_time_is_ended():
    code, errors, seconds = ended(SLOW, signal.SIGTERM, LLMREC_GRACE="0.4")
    assert code == 75
    assert "not stopped after 0.4 s" in errors
    assert seconds < 3


def test_a_wish_is_raised_where_it_is_looked_at():
    stopping.check()
    stopping.request(75)
    stopping.request(130)  # the first counts
    with pytest.raises(stopping.Stopped) as end:
        stopping.check()
    assert end.value.code == 75
    assert not stopping.is_graceful()
    with stopping.gracefully():
        assert stopping.is_graceful()
    assert not stopping.is_graceful()


def test_batches_stop_between_two_and_go_on(tmp_path):
    import numpy as np

    from llmrec.runs.batch_files import answer_in_parts, collected

    plan, asked = [np.array([0, 1]), np.array([2]), np.array([3])], []

    def answer(batch):
        asked.append(batch.tolist())
        if len(asked) == 2:
            stopping.request(75)
        return [int(i) for i in batch]

    with pytest.raises(stopping.Stopped):
        answer_in_parts(tmp_path, plan, lambda: answer, "test")
    stopping.withdraw()
    answer_in_parts(tmp_path, plan, lambda: answer, "test")
    assert asked == [[0, 1], [2], [3]]
    assert collected(tmp_path)[0] == [0, 1, 2, 3]
