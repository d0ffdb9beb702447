"""The same optimiser steps by one process of one thread and by two, for `train.py`.

Each number of processes is launched once and trains with the project's own trainer; losses are
checked equal first, and the bytes that processes reduce in a step are counted. Run as a script,
this file is one of the processes.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from soft import tuned
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainingArguments

from llmrec.model.losses import Loss
from llmrec.model.softmax import FullSoftmax
from llmrec.model.trainer import TreeTrainer, Validated
from llmrec.text.tree import Segment, TokenTree

SEED = 0


def process_figure(encoder, prompts, steps: int) -> dict:
    """The same optimiser steps by one process of one thread and by two; equal losses first."""
    rng = np.random.default_rng(SEED)
    rows = [
        (p.tolist(), encoder.completions[int(rng.integers(len(encoder.titles)))].tolist())
        for p in prompts
    ]
    together, found = 4, {}
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as scratch:
            task, out = Path(scratch) / "task.json", Path(scratch) / "found.json"
            task.write_text(
                json.dumps(
                    {"rows": rows, "batch": together // processes, "steps": steps, "out": str(out)}
                )
            )
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
            command = [sys.executable, *(launcher if processes == 2 else []), __file__, str(task)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{' '.join(command)}: {done.stderr[-2000:]}")
            found[processes] = json.loads(out.read_text())
    if not np.allclose(found[1]["losses"], found[2]["losses"], rtol=1e-5):
        sys.exit(f"losses {found[1]['losses']} and {found[2]['losses']}; nothing is compared")
    one, two = (statistics.median(found[n]["seconds"]) for n in (1, 2))
    return {
        "part": "processes",
        "figure": "two processes on two cores, share of twice the speed",
        "rows_a_step": together,
        "one": round(together / one, 3),
        "two": round(together / two, 3),
        "ratio": round(one / two, 2),
        "share": round(one / two / 2, 3),
        "goal": 0.85,
        "limit": 1.0,
        "row_tokens": round(float(np.mean([len(p) + len(c) for p, c in rows])), 1),
        "bytes_reduced_a_step": found[2]["bytes"],
        "bytes_of_gradients": found[2]["gradients"],
        "mb_reduced": round(found[2]["bytes"] / 1e6, 2),
        "mb_gradients": round(found[2]["gradients"] / 1e6, 2),
        "repeats": steps - 1,
        "threads_a_process": 1,
        "losses": found[2]["losses"],
    }


class Clock(TrainerCallback):
    """When steps end, and how many bytes each reduces over processes."""

    def __init__(self, trainer: TreeTrainer) -> None:
        self.trainer, self.ends, self.reduced = trainer, [], 0

    def on_train_begin(self, args, state, control, **_) -> None:
        if isinstance(self.trainer.model_wrapped, DistributedDataParallel):
            self.trainer.model_wrapped.register_comm_hook(None, self._counted)

    def _counted(self, _, bucket):
        self.reduced += bucket.buffer().nbytes
        return allreduce_hook(None, bucket)

    def on_step_end(self, args, state, control, **_) -> None:
        self.ends.append(time.perf_counter())


def work(task: dict) -> None:
    """Train some steps; the first process writes what they took."""
    titles = [np.array(title, np.int32) for _, title in task["rows"]]
    rows = [
        TokenTree((Segment(np.array(prompt, np.int32)), Segment(title, 0, number)))
        for number, ((prompt, _), title) in enumerate(zip(task["rows"], titles, strict=True))
    ]
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            seed=SEED,
            use_cpu=True,
            per_device_train_batch_size=task["batch"],
            max_steps=task["steps"],
            logging_steps=1,
            learning_rate=1e-4,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            save_strategy="no",
            eval_strategy="no",
        )
        log = Path(scratch) / "log.jsonl"
        trainer = TreeTrainer(
            tuned(), arguments, rows, Loss(FullSoftmax()), lambda _: Validated((0.0,), {}), log
        )
        clock = Clock(trainer)
        trainer.add_callback(clock)
        trainer.train()
    if arguments.process_index == 0:
        gradients = sum(
            p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad
        )
        losses = [x["loss"] for x in trainer.state.log_history if "loss" in x]
        Path(task["out"]).write_text(
            json.dumps(
                {
                    "seconds": np.diff(clock.ends).tolist(),
                    "losses": losses,
                    "gradients": gradients,
                    "bytes": clock.reduced // task["steps"],
                }
            ),
            "utf-8",
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(json.loads(Path(sys.argv[1]).read_text("utf-8")))
