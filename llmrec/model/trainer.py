"""The trainer: Hugging Face's, reading TokenTrees.

The loss is a mean over the targets of the whole optimiser step, whatever the batch layout,
accumulation and number of processes. Checkpoints are sealed (see `checkpoints`), a non-finite loss
or gradient stops the run before it reaches the weights, and the adapter that did best in
validation is kept. How validation is done is a function handed in. Knows no recipe.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from llmrec.errors import LlmrecError, RecipeError
from llmrec.model import checkpoints
from llmrec.model.forward import TreeBatch, collate, forward_logits
from llmrec.model.objectives import (
    Choices,
    branch_sums,
    log_probabilities,
    restricted_log_probabilities,
    trie_choices,
)
from llmrec.text.tree import FlatTree, TokenTree
from llmrec.text.trie import TitleTrie

CHECKPOINT, BEST = "checkpoint-", "best-"
FILLER = -1
PROGRESS_SECONDS = 30.0
logger = logging.getLogger("llmrec")


@dataclass(frozen=True)
class Objective:
    """`sft`: softmax over the vocabulary; `msl`: over the trie's continuations, over `tau`."""

    name: str
    trie: TitleTrie
    completions: Sequence[np.ndarray] = field(repr=False)
    tau: float = 1.0

    def prepare(self, rows: Sequence[FlatTree]) -> dict[str, Any]:
        """The batch of some rows, as tensors; `weights` (G,) is 1 for each of its G targets."""
        branches, begin = [], 0
        for row in rows:
            branches.append(row.branches + begin)
            begin += row.branch_count
        if self.name == "msl":
            kept, choices = trie_choices(rows, self.trie, self.completions)
            extra = {"tokens": choices.tokens, "owner": choices.owner, "chosen": choices.chosen}
        else:
            kept = [np.arange(len(row.labels)) for row in rows]
            extra = {
                "labels": torch.from_numpy(np.concatenate([r.labels for r in rows]).astype(int))
            }
        batch = collate(rows, [row.predictors[k] for row, k in zip(rows, kept, strict=True)])
        of_token = np.concatenate([b[k] for b, k in zip(branches, kept, strict=True)])
        return {
            "input_ids": batch.input_ids, "position_ids": batch.position_ids, "mask": batch.mask,
            "at": batch.at, "branches": torch.from_numpy(of_token.astype(np.int64)),
            "weights": torch.ones(begin), **extra,
        }  # fmt: skip

    def branch_log_probabilities(self, model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
        """(G,) log-probability of each target of a prepared batch."""
        trees = TreeBatch(batch["input_ids"], batch["position_ids"], batch["mask"], batch["at"])
        logits = forward_logits(model, trees)
        if self.name == "msl":
            choices = Choices(batch["tokens"], batch["owner"], batch["chosen"])
            values = restricted_log_probabilities(logits, choices, self.tau)
        else:
            values = log_probabilities(logits, batch["labels"])
        return branch_sums(values, batch["branches"], len(batch["weights"]))


class TreeTrainer(Trainer):
    """Trains on TokenTrees. `args.output_dir` is the folder of checkpoints.

    `validate(model)` gives a dict with at least "nll", lower is better; every process calls it.
    `log_path`: one JSON line for each logged step and each validation.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        rows: Sequence[TokenTree],
        objective: Objective,
        validate: Callable[[torch.nn.Module], dict[str, float]],
        log_path: Path,
    ) -> None:
        if args.n_gpu > 1:
            raise RecipeError(
                f"this process sees {args.n_gpu} GPUs; start one process for each with "
                "`accelerate launch --config_file ddp.yaml -m llmrec train ...`"
            )
        self.objective, self.validate, self.log_path = objective, validate, log_path
        self.root = Path(args.output_dir)
        self.started = self._told = time.monotonic()
        self.targets_seen, self._validated_at = 0, -1
        super().__init__(
            model=model, args=args, train_dataset=_Rows(rows), eval_dataset=_Rows([]),
            data_collator=self._collate, callbacks=[_FiniteGradients()],
        )  # fmt: skip
        self.remove_callback(PrinterCallback)  # prints to stdout, which is for data
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the whole step's targets

    def _collate(self, items: list[tuple[int, FlatTree]]) -> dict[str, Any]:
        batch = self.objective.prepare([row for _, row in items])
        counts = torch.tensor([row.branch_count for _, row in items])
        numbers = torch.tensor([number for number, _ in items])
        weights = (numbers != FILLER).float().repeat_interleave(counts)
        return {**batch, "weights": weights, "row_numbers": numbers}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        rows = train_dataset if train_dataset is not None else self.train_dataset
        generator = torch.Generator().manual_seed(self.args.seed)
        # Rows of like length share an optimiser step, so that little is spent on padding; grouping
        # by the whole step keeps its rows the same however it is cut.
        together = self.args.train_batch_size * self.args.world_size
        grouped = LengthGroupedSampler(
            together * self.args.gradient_accumulation_steps,
            lengths=[len(row) for row in rows.rows], generator=generator,
        )  # fmt: skip
        return _Filled(grouped, together if self.args.world_size > 1 else 1)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The micro-batches of one optimiser step and the targets in them, over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        targets = torch.tensor(sum(int(b["weights"].sum()) for b in batches), device=device)
        if self.args.world_size > 1:
            targets = self.accelerator.gather(targets).sum()
        self.targets_seen += int(targets)
        return batches, targets

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Minus the log-probability of the batch's targets over the targets of the whole step."""
        values = self.objective.branch_log_probabilities(model, inputs)
        loss = -(values * inputs["weights"]).sum() / num_items_in_batch
        if not torch.isfinite(loss):
            worst = inputs["row_numbers"].tolist()
            raise LlmrecError(
                f"the loss is {float(loss.detach())} at step {self.state.global_step + 1}, in "
                f"training rows {worst}; nothing was updated with it and the last checkpoint is "
                "good. Lower train.learning_rate or look at these rows"
            )
        # Gradients are averaged over processes, the loss is a sum over them.
        return loss * self.accelerator.num_processes

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validate, log it, and keep the weights if they are the best so far."""
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            measured = self.validate(self.model_wrapped or self.model)
        self.model.train(training)
        step = self._validated_at = self.state.global_step
        self._write_log({"step": step, "valid_nll": measured["nll"],
                         "low": measured.get("low"), "high": measured.get("high")})  # fmt: skip
        best, _ = checkpoints.newest(self.root, BEST)
        if best is None or measured["nll"] < checkpoints.facts(best)["nll"]:
            self._keep_best(step, measured["nll"])
        metrics = {f"eval_{name}": value for name, value in measured.items()}
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as Hugging Face does, and one line to `log_path` for a training loss."""
        super().log(logs, *args, **kwargs)
        if "loss" in logs:
            now = time.monotonic()
            self._write_log({
                "step": self.state.global_step, "loss": logs["loss"],
                "grad_norm": logs.get("grad_norm"), "targets": self.targets_seen,
                "seconds": round(now - self.started, 1),
            })  # fmt: skip
            if now - self._told > PROGRESS_SECONDS:
                self._told = now
                logger.info("train: step %d of %d, loss %.3f, %d targets in %.0f s",
                            self.state.global_step, self.state.max_steps, logs["loss"],
                            self.targets_seen, now - self.started)  # fmt: skip

    def go(self, checkpoint: Path | None) -> int:
        """Train to the end, from `checkpoint` if there is one; returns the last step."""
        if checkpoint is not None:
            known = checkpoints.facts(checkpoint)
            self.targets_seen = known["targets"]
            self.started -= known["seconds"]
        outcome = self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if self._validated_at != self.state.global_step:
            self.evaluate()
        return outcome.global_step

    def _write_log(self, line: dict[str, Any]) -> None:
        if self.args.should_save:
            with self.log_path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")

    def _keep_best(self, step: int, nll: float) -> None:
        staged = self.root / f"{checkpoints.STAGING}-best"
        self.save_model(str(staged), _internal_call=True)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle; nothing reads it
            checkpoints.seal(staged, self.root / f"{BEST}{step}", step=step, nll=nll)
            checkpoints.prune(self.root, BEST, keep=1)
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        name = f"{CHECKPOINT}{self.state.global_step}"
        staging = self.root / checkpoints.STAGING
        self.args.output_dir = str(staging)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = str(self.root)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (staging / name / "training_args.bin").unlink(missing_ok=True)
            checkpoints.seal(
                staging / name, self.root / name, step=self.state.global_step,
                targets=self.targets_seen, seconds=round(time.monotonic() - self.started, 1),
            )  # fmt: skip
            checkpoints.prune(self.root, CHECKPOINT, keep=self.args.save_total_limit or 1)
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()


class _Rows(torch.utils.data.Dataset):
    """Token trees with their numbers, flattened when asked for; FILLER is any row, not counted."""

    def __init__(self, rows: Sequence[TokenTree]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, FlatTree]:
        return index, self.rows[index].flatten()


class _Filled(Sampler):
    """A sampler's indices and then fillers up to a multiple of `size`.

    Processes must run equally many batches; accelerate would repeat rows for that, and count them.
    """

    def __init__(self, indices: Sampler, size: int) -> None:
        self.indices, self.fillers = indices, -len(indices) % size

    def __len__(self) -> int:
        return len(self.indices) + self.fillers

    def __iter__(self) -> Iterator[int]:
        yield from self.indices
        yield from [FILLER] * self.fillers


class _FiniteGradients(TrainerCallback):
    """Stops the run before a non-finite gradient reaches the weights."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        for name, parameter in context["model"].named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise LlmrecError(
                    f"the gradient of {name} is not finite at step {state.global_step + 1}; the "
                    "weights were not updated. Lower train.learning_rate or train.max_grad_norm"
                )


def publish_best(root: Path, adapter: Path, settings: dict[str, Any]) -> None:
    """Copy the best sealed weights under `root` to `adapter`, with the settings they came from."""
    best, skipped = checkpoints.newest(root, BEST)
    if best is None:
        raise LlmrecError(f"{root}: no weights that verify ({'; '.join(skipped) or 'none saved'})")
    staged = adapter.with_name(f".{adapter.name}.{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(best, staged)
    known = checkpoints.facts(best)
    checkpoints.seal(staged, adapter, step=known["step"], nll=known["nll"], settings=settings)
