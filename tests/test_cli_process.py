"""The process: start-up time and imports, signals and exit codes, stdout for data alone."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

LLMREC = [sys.executable, "-m", "llmrec"]
HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets"}


def call(*arguments, **settings):
    return subprocess.run(
        [*LLMREC, *arguments], capture_output=True, text=True, timeout=60, check=False, **settings
    )


def processor_seconds(*arguments):
    """The least of three, in processor time: other work on the machine does not count."""
    least = float("inf")
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert call(*arguments).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        least = min(least, used)
    return least


def test_help_is_quick():
    assert processor_seconds("--help") < 0.6


def test_validate_is_quick():
    assert processor_seconds("validate", "demo") < 1.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["validate", "demo"],
        ["config", "show", "demo"],
        ["config", "schema"],
        ["recipes", "ls"],
        ["recipes", "show", "demo"],
        ["prompts", "ls"],
        ["study", "soft", "--dry-run"],
        ["prompts", "show", "next_item/movie"],
        ["train", "--help"],
    ],
    ids=" ".join,
)
def test_light_verbs_import_nothing_heavy(arguments):
    program = (
        "import sys\nfrom llmrec.cli import app\n"
        f"try:\n    app({arguments})\nexcept SystemExit as end:\n    assert not end.code\n"
        f"assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr


def test_stages_that_need_no_torch_import_none():
    program = (
        "import sys\n"
        "from llmrec.fetch import cache\nfrom llmrec.runs import folder\n"
        "from llmrec.stages import prepare, evaluate, compare, prompts\n"
        "from llmrec.studies import study\n"
        f"assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_end_with_their_code_and_no_traceback(number, code):
    program = (
        "import time\nfrom llmrec import terminal\n"
        "def work():\n    print('ready', flush=True)\n    time.sleep(30)\n"
        "terminal.guarded(work)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == code
    assert time.monotonic() - started < 5
    assert "Traceback" not in errors


def test_results_go_to_stdout_and_the_rest_to_stderr():
    good = call("validate", "demo", "--json")
    assert json.loads(good.stdout)["name"] == "demo"
    assert good.stderr == ""
    bad = call("validate", "demo", "seed=x")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "command line, 'seed=x'" in bad.stderr


def test_only_the_first_process_of_a_launch_prints():
    second = call("validate", "demo", env={**os.environ, "RANK": "1"})
    assert (second.returncode, second.stdout) == (0, "")


def test_a_closed_pipe_is_no_traceback():
    process = subprocess.Popen(
        [*LLMREC, "config", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    errors = process.stderr.read()
    process.wait(timeout=30)
    assert "Traceback" not in errors


def test_a_defect_keeps_its_traceback():
    program = "from llmrec import terminal\nterminal.guarded(lambda: 1 / 0)"
    outcome = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 1
    assert "ZeroDivisionError" in outcome.stderr
