"""Many runs of the command in little time: a server that has imported all that is slow, and forks.

Each fork is a process of its own that does what `llmrec ARGUMENTS` does from there on; it can be
killed, signalled and waited for. The server alone imports torch, the tests need not.
"""

import json
import os
import signal
import subprocess
import sys
import time

SERVER = """
import json, os, sys, traceback
import datasets, faiss, peft, torch, transformers
from llmrec import cli
from llmrec.stages import distill, evaluate, export, leakage, pipeline, recommend, report, retrieve
from llmrec.stages import calibrate, compare, train
from llmrec.model import trainer
from llmrec.systems import recommender, table_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        pid, status = os.waitpid(asked["wait"], 0 if asked["block"] else os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        continue
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    for number, name in ((1, asked["out"]), (2, asked["err"])):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(asked["folder"])
    os.environ.update(asked["environment"])
    sys.argv = ["llmrec", *asked["arguments"]]
    code = 0
    try:
        exec(asked["before"])
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
"""


class Forked:
    """A fork that runs, or ran, a command."""

    def __init__(self, server, pid, out, err):
        self.server, self.pid, self.out, self.err, self.code = server, pid, out, err, None

    def poll(self, block=False):
        """Its exit code, minus the signal where one ended it; None while it runs."""
        if self.code is None:
            self.code = self.server.ask({"wait": self.pid, "block": block})
        return self.code

    def send(self, number=signal.SIGKILL):
        """Send it a signal."""
        os.kill(self.pid, number)

    def ended(self, seconds=120):
        """Wait for its end; exit code, what it printed and what it told."""
        until = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > until:
                self.send()
                self.poll(block=True)
                raise AssertionError(f"not done after {seconds} s: {self.err.read_text()[-2000:]}")
            time.sleep(0.005)
        return self.code, self.out.read_text(), self.err.read_text(errors="replace")


class Forks:
    """The server. `folder`: where forks run and what they print is kept."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, what):
        """One answer of the server."""
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, *arguments, before="", **environment):
        """Run `llmrec ARGUMENTS` in a fork; `before`: a program that runs there first."""
        self.count += 1
        out, err = (self.folder / f"{self.count % 8}.{name}" for name in ("out", "err"))
        asked = {
            "arguments": [str(argument) for argument in arguments],
            "folder": str(self.folder),
            "out": str(out),
            "err": str(err),
            "environment": environment,
            "before": before,
        }
        return Forked(self, self.ask(asked), out, err)

    def run(self, *arguments, **settings):
        """Exit code, stdout and stderr of a command."""
        return self.start(*arguments, **settings).ended()

    def close(self):
        """End the server."""
        self.process.stdin.close()
        self.process.wait(timeout=10)
