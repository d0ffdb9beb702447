"""Several processes of llmrec on one CPU, without importing torch anew for each.

Run as a program it reads one launch a line from stdin, {"world", "strategy", "commands", "out"},
forks `world` processes that join over gloo as torchrun would start them, and prints the exit codes.
Under the strategy fsdp2 accelerate is told that CPUs are devices to shard over, which it believes
of GPUs alone; under zero2 and zero3 the same of DeepSpeed.
"""

import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
ZERO = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "DS_ACCELERATOR": "cpu",
}


class Group:
    """The program, asked from a test. `launch` gives the exit code and stderr of each rank."""

    def __init__(self, out):
        self.out, self._count = Path(out), 0
        here = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**here, "HF_HUB_OFFLINE": "1", "LLMREC_CACHE": str(self.out / "cache")},
        )

    def launch(self, world, strategy, *commands, environment=None):
        """What came of running these llmrec command lines in `world` ranks, one after another."""
        self._count += 1
        asked = {
            "world": world,
            "strategy": strategy,
            "commands": [[str(word) for word in words] for words in commands],
            "out": str(self.out / f"launch{self._count}"),
            "environment": environment or {},
        }
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        codes = json.loads(self._process.stdout.readline())
        said = [Path(f"{asked['out']}-{rank}.err").read_text("utf-8") for rank in range(world)]
        return codes, said

    def done(self, world, strategy, *commands, environment=None):
        """The same, for commands that must succeed."""
        codes, said = self.launch(world, strategy, *commands, environment=environment)
        assert codes == [0] * world, "\n".join(said)

    def close(self):
        """End the program."""
        self._process.stdin.close()
        self._process.wait(30)


def _port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _over_cpus(kind, plugin, given):
    """Have accelerate take `plugin`, after `given(state, it)`, on CPUs too, as of `kind`."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    made = AcceleratorState.__init__

    def sharded(self, *args, **named):
        begun = bool(AcceleratorState._shared_state)
        made(self, *args, **named)
        if not begun and named.get(plugin) is not None:
            self.distributed_type = DistributedType[kind]
            given(self, named[plugin])
            PartialState._shared_state["distributed_type"] = DistributedType[kind]

    AcceleratorState.__init__ = sharded


def _give_fsdp(state, plugin):
    state.fsdp_plugin = plugin


def _give_deepspeed(state, plugin):
    plugin.set_mixed_precision(state._mixed_precision)
    plugin.select(_from_accelerator_state=True)
    state.deepspeed_plugins = plugin


def _rank(asked, rank, port):
    """Be one rank: run the commands and return the exit code of the first that fails, or 0."""
    if asked["world"] > 1:
        world = str(asked["world"])
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": world,
            "LOCAL_WORLD_SIZE": world,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    if asked["strategy"] == "fsdp2":
        os.environ |= FSDP2
        _over_cpus("FSDP", "fsdp_plugin", _give_fsdp)
    if asked["strategy"].startswith("zero"):
        os.environ |= ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": asked["strategy"][-1]}
        _over_cpus("DEEPSPEED", "deepspeed_plugin", _give_deepspeed)
    os.environ |= asked["environment"]
    import torch

    from llmrec import terminal
    from llmrec.cli import main

    code = 0
    for words in asked["commands"]:
        sys.argv = ["llmrec", "-q", *words]
        try:
            if words[0] == "do":  # a function of the tests
                done = getattr(importlib.import_module("ranks"), words[1])
                terminal.guarded(lambda: done(*words[2:]))  # noqa: B023
            else:
                main()
        except SystemExit as end:
            code = int(end.code or 0)
        if code:
            return code
    if asked["strategy"].startswith("zero"):
        from accelerate.state import AcceleratorState

        assert AcceleratorState._shared_state["distributed_type"] == "DEEPSPEED"
        assert "deepspeed.runtime.engine" in sys.modules
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return code


def _forked(asked):
    """The exit codes of all ranks; as under torchrun, when one fails the others are ended."""
    import signal
    import time

    port, running, codes = _port(), {}, {}
    for rank in range(asked["world"]):
        child = os.fork()
        if child == 0:
            place = f"{asked['out']}-{rank}"
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(f"{place}.{name}", os.O_WRONLY | os.O_CREAT, 0o600), number)
            code = 70
            try:
                code = _rank(asked, rank, port)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        running[child] = rank
    while running:
        child, status = os.waitpid(-1, 0)
        code = codes[running.pop(child)] = os.waitstatus_to_exitcode(status)
        if code:
            time.sleep(0.5)
            for other in running:
                os.kill(other, signal.SIGKILL)
    return [codes[rank] for rank in range(asked["world"])]


def _serve():
    for stage in ("pipeline", "distill", "train", "recommend", "report"):
        importlib.import_module(f"llmrec.stages.{stage}")
    importlib.import_module("llmrec.systems.language")
    for line in sys.stdin:
        print(json.dumps(_forked(json.loads(line))), flush=True)


if __name__ == "__main__":
    _serve()
