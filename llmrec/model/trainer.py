"""The trainer: Hugging Face's, reading TokenTrees.

The loss is a mean over the targets of the whole optimiser step, whatever the batch layout,
accumulation and number of processes. Checkpoints are sealed (see `checkpoints`), a non-finite loss
or gradient stops the run before it reaches the weights, and the adapter that did best in
validation is kept. How validation is done, and what each kind of target weighs in an epoch, are
functions handed in. Knows no recipe.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainingArguments

from llmrec import progress, stopping
from llmrec.data import sealed as checkpoints
from llmrec.errors import LlmrecError, RecipeError
from llmrec.model.attention import WIDTH, reads_blocks
from llmrec.model.callbacks import Epochs, Finite, Losses, Stopping, Watched, require_finite
from llmrec.model.compiling import bare, of_any_size, require_compiler
from llmrec.model.curriculum import Mixture
from llmrec.model.epoch_losses import EpochLosses, means
from llmrec.model.graphed import launch_as_graphs, padded
from llmrec.model.kept_weights import BEST, log_line, read_log
from llmrec.model.losses import Loss
from llmrec.model.row_order import FILLER, RowOrder, Rows, Weights
from llmrec.model.saving import SavingTrainer
from llmrec.model.trust import require_safe_checkpoint
from llmrec.text.tree import TokenTree

LESS = "train.num_train_epochs, rows.count, data.subset.train"
logger = logging.getLogger("llmrec")

Coming = Callable[[int], list[int]]
Refreshed = tuple[Sequence[TokenTree], dict[str, Any]] | None
Refresh = Callable[[torch.nn.Module, int, Coming], Refreshed]


@dataclass(frozen=True)
class Validated:
    """What a validation found.

    `score`: lower is better, later numbers tell equal ones apart. `figures` go into the log.
    """

    score: tuple[float, ...]
    figures: dict[str, float]


class TreeTrainer(SavingTrainer):
    """Trains on TokenTrees. `args.output_dir` is the folder of checkpoints.

    `validate(model)` is called by every process. `log_path`: one JSON line for each logged step,
    validation and epoch. `curriculum(model, number, count)`, called before each period (an epoch,
    or `period` steps) with the live model, says what the kinds of targets weigh in it; without one
    every target weighs 1. `patience`: training stops after so many validations that were no better.
    `refresh(model, step, coming)`, called before each optimiser step with the live model, may give
    other trees for all rows, and what it has to say for the log; `coming(n)` are the numbers of the
    rows that the next n steps read. A loss over the whole step is read twice (see `losses`).
    `settings` are those that the weights depend on; every checkpoint's manifest has them.
    `cuda_graphs`: passes are launched as graphs (see `graphed`). `begin`, called with the model as
    it was given and the loss, gives the loss that is learned.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        rows: Sequence[TokenTree],
        loss: Loss,
        validate: Callable[[torch.nn.Module], Validated],
        log_path: Path,
        curriculum: Callable[[torch.nn.Module, int, int], Mixture] | None = None,
        patience: int | None = None,
        refresh: Refresh | None = None,
        settings: Mapping[str, Any] | None = None,
        cuda_graphs: bool = False,
        period: int | None = None,
        begin: Callable[[torch.nn.Module, Loss], Loss] | None = None,
    ) -> None:
        if args.n_gpu > 1:
            raise RecipeError(
                f"this process sees {args.n_gpu} GPUs; start one process for each with "
                "`accelerate launch --config_file ddp.yaml -m llmrec train ...`"
            )
        if args.torch_compile:
            require_compiler(args.device, args.torch_compile_backend)
        self.loss, self.validate, self.log_path = loss, validate, log_path
        self.curriculum, self.patience, self.refresh = curriculum, patience, refresh
        self.root, self.settings, self.period = Path(args.output_dir), settings, period
        self.begin = begin
        self.cuda_graphs, self.in_blocks = cuda_graphs, reads_blocks(model)
        if cuda_graphs:
            launch_as_graphs(model)
        self.started = time.monotonic()
        self.watched = Watched()
        self.targets_seen, self._resumed_at = 0.0, -1
        self.begun = False  # whether a batch was read
        self._logged = read_log(log_path)
        self._scores = [tuple(x["score"]) for x in self._logged if "score" in x]
        self._parts: list[dict[str, float]] = []  # of the losses since the last log line
        self._losses = EpochLosses()
        self._weights: Weights | None = None  # of a period of steps
        self._step_losses: Losses = []
        super().__init__(
            model=model,
            args=args,
            train_dataset=Rows(rows),
            eval_dataset=Rows([]),
            data_collator=self._collate,
            callbacks=[
                Finite(self._losses_of_step, self._norm_of_engine),
                Epochs(self.begin_epoch, self.end_epoch),
                self.watched,
                Stopping(self._asked_to_stop),
            ],
        )
        self.remove_callback(PrinterCallback)  # prints to stdout, which is for data
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the whole step's targets

    def _collate(self, items: list[tuple[int, Weights]]) -> dict[str, Any]:
        numbers, of_kind = zip(*items, strict=True)
        return {"row_numbers": [*numbers], "of_kind": [*of_kind]}  # tensors would be moved

    def piece_of(self, fetched: dict[str, Any]) -> dict[str, Any]:
        """The rows of a fetched batch, as they are now, as tensors."""
        numbers, held = torch.tensor(fetched["row_numbers"]), self._weights
        of_kind = torch.tensor(fetched["of_kind"][0] if held is None else held)
        # What the whole step's loss compares is weighed by it, so nothing is left out.
        weights = () if self.loss.whole_step else tuple(of_kind.tolist())
        rows = [self.train_dataset.flat(number, weights) for number in numbers.tolist()]
        batch = self.loss.prepare(rows)
        if self.cuda_graphs:
            batch = padded(batch, -(-self.args.train_batch_size // self.pieces))
        elif self.in_blocks:
            batch = padded(batch, len(rows), WIDTH)
        counts = torch.tensor([row.branch_count for row in rows])
        counted = (numbers != FILLER).float().repeat_interleave(counts)
        told = of_kind[batch["kinds"]] * counted * batch.pop("importance", 1.0)
        lengths = np.concatenate([np.bincount(row.branches) for row in rows])
        seen = {"row_numbers": numbers, "lengths": torch.from_numpy(lengths)}
        return {**batch, "weights": told, "counted": told > 0, **seen}

    def _coming(self, steps: int) -> list[int]:
        step = self.state.global_step
        return self._order.coming(step, min(steps, self.state.max_steps - step))

    def _refresh_rows(self) -> None:
        if self.refresh is None:
            return
        with self._measuring() as model:
            found = self.refresh(model, self.state.global_step, self._coming)
        if found is not None:
            self.train_dataset.rows, facts = found
            line = {"step": self.state.global_step, **facts}
            if facts and line not in self._logged:  # as after an interruption at this very step
                self._write_log(line)

    def _get_train_sampler(self, train_dataset: Any = None) -> RowOrder:
        rows = train_dataset if train_dataset is not None else self.train_dataset
        # Grouped by the whole optimiser step, so its rows are the same however it is cut.
        together = self.args.train_batch_size * self.args.world_size
        self._order = RowOrder(
            [len(row) for row in rows.rows],
            together * self.args.gradient_accumulation_steps,
            together if self.args.world_size > 1 else 1,
            self.args.seed,
            self.loss.kind_weights,
        )
        return self._order

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The micro-batches of one optimiser step and their summed weights, over all processes."""
        self.begun = True
        self._refresh_rows()
        self._begin_period()  # the weights are of now, not of when a batch was fetched
        fetched, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        micro = self.begin_step(fetched)
        targets = torch.tensor(self._targets, device=device)
        if self.args.world_size > 1:
            targets = self.accelerator.gather(targets).sum()
        self.targets_seen += float(targets)
        if self.loss.whole_step:
            self._parts.append(self._step_parts)
        return [pieces[0] for pieces in micro], targets

    def weigh_step(self, batches: list[dict[str, Any]]) -> None:
        """Count the step's targets; where they are compared with each other, read and weigh it."""
        self._targets = sum(float(batch["weights"].sum()) for batch in batches)
        if self.loss.whole_step:
            with self._measuring() as model, self.compute_loss_context_manager():
                read = [self.loss.read(model, self._prepare_inputs(b)) for b in batches]
            self._step_parts = self.loss.weigh(batches, read, self.accelerator)

    def taking_back(self) -> Callable[[], None]:
        """See `HalvingTrainer`."""
        sums = self._losses.sums.clone()

        def take_back() -> None:
            self._losses.sums.copy_(sums)
            self._step_losses.clear()

        return take_back

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Minus the batch's weighted log-probabilities over the summed weights of the step."""
        if self.args.torch_compile:
            of_any_size(inputs)
        values = self.loss.softmax.branch_log_probabilities(model, inputs)
        loss = -(values * inputs["weights"]).sum() / num_items_in_batch
        if "offset" in inputs:
            loss = loss + inputs["offset"]
        self._losses.add(values, inputs)  # nothing waits for a GPU; see `Finite`
        self._step_losses.append((loss.detach(), inputs["row_numbers"]))
        if self.is_deepspeed_enabled and self.accelerator.sync_gradients:
            # Its backward pass updates the weights as well.
            require_finite(self._losses_of_step(), [], self.state.global_step + 1)
        # Gradients are averaged over processes, the loss is a sum over them.
        return loss * self.accelerator.num_processes

    def _losses_of_step(self) -> Losses:
        found, self._step_losses = self._step_losses, []
        return found

    def _norm_of_engine(self) -> float | None:
        """That of all gradients of the step, where DeepSpeed keeps them to itself."""
        if not self.is_deepspeed_enabled:
            return None
        norm = self.accelerator.deepspeed_engine_wrapped.get_global_grad_norm()
        return None if norm is None else float(norm)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validate, log it, and keep the weights if they are the best so far."""
        with self._measuring() as model:
            measured = self.validate(model)
        step = self.state.global_step
        self._write_log({"step": step, **measured.figures, "score": list(measured.score)})
        better = not self._scores or measured.score < min(self._scores)
        self._scores.append(measured.score)
        if better or checkpoints.newest(self.root, BEST)[0] is None:
            self.keep_best(step, score=measured.score, figures=measured.figures)
        metrics = {f"eval_{name}": value for name, value in measured.figures.items()}
        self.log(metrics)
        handler = self.callback_handler
        self.control = handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self._has_stalled():
            logger.info(
                "train: no better validation in %s, stopping at step %d", self.patience, step
            )
            self.control.should_training_stop = True
        return metrics

    def begin_epoch(self) -> None:
        """Weigh the kinds of targets for the epoch that begins, unless it was interrupted."""
        epoch, step = int(self.state.epoch + 1e-6), self.state.global_step
        if step == self._resumed_at and self.state.epoch - epoch < 1e-6:
            # What an interruption right after the last step of the epoch before has left undone.
            self._end_interrupted_epoch()
            if self.args.eval_strategy == "epoch" and not self._is_validated():
                self.evaluate()
            self._losses.sums.zero_()
        self._order.epoch = epoch
        if self.curriculum is not None and self.period is None:
            self._order.weights = self._mixed("epoch", epoch, int(self.state.num_train_epochs))

    def _begin_period(self) -> None:
        """Weigh the kinds of targets for the steps that begin, where a period is some steps."""
        if self.curriculum is not None and self.period is not None:
            count = math.ceil(self.state.max_steps / self.period)
            self._weights = self._mixed("period", self.state.global_step // self.period, count)

    def _mixed(self, unit: str, number: int, count: int) -> Weights:
        """The weights of an epoch or period; measured and logged when they are first asked for."""
        known = [x for x in self._logged if "weights" in x and x.get(unit) == number]
        if known:
            return tuple(known[-1]["weights"])
        assert self.curriculum is not None  # noqa: S101  callers ask first
        with self._measuring() as model:
            mixture = self.curriculum(model, number, count)
        at = {"epoch": round(self.state.epoch, 4), unit: number, "weights": list(mixture.weights)}
        self._write_log({"step": self.state.global_step, **at, **mixture.facts})
        return mixture.weights

    def end_epoch(self) -> None:
        """Log the mean loss of each kind of target over the epoch."""
        sums = self._loss_sums_of_all()
        self._losses.sums.zero_()
        epoch = math.ceil(self.state.epoch - 1e-6) - 1
        self._write_log({"step": self.state.global_step, "epoch": epoch, **means(sums)})

    def facts_of_checkpoint(self) -> dict[str, Any]:
        """See `SavingTrainer`."""
        return {"targets": self.targets_seen, "loss_sums": self._loss_sums_of_all().tolist()}

    def _loss_sums_of_all(self) -> torch.Tensor:
        """(3, kinds) what `EpochLosses` counted in the epoch so far."""
        return self.accelerator.reduce(self._losses.sums.to(self.args.device)).cpu()

    @contextmanager
    def _measuring(self) -> Iterator[torch.nn.Module]:
        """The live model in evaluation mode; its mode is put back afterwards."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield bare(self.model_wrapped)
        finally:
            self.model.train(training)

    def _has_stalled(self) -> bool:
        if self.patience is None or not self._scores:
            return False
        return len(self._scores) - 1 - self._scores.index(min(self._scores)) >= self.patience

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as Hugging Face does, and one line to `log_path` for a training loss."""
        super().log(logs, *args, **kwargs)
        if "loss" in logs:
            parts, self._parts = self._parts, []
            names = parts[0] if parts else ()
            means = {name: sum(p[name] for p in parts) / len(parts) for name in names}
            self._write_log(
                {
                    "step": self.state.global_step,
                    "loss": logs["loss"],
                    **means,
                    "grad_norm": logs.get("grad_norm"),
                    "targets": round(self.targets_seen),
                    "seconds": round(time.monotonic() - self.started, 1),
                }
            )

    def go(self, checkpoint: Path | None) -> int:
        """Train to the end, from `checkpoint` if there is one; returns the last step."""
        if checkpoint is not None:
            require_safe_checkpoint(checkpoint)
            known = checkpoints.facts(checkpoint)
            self.targets_seen = known["targets"]
            self.started -= known["seconds"]
            self._resumed_at = int(known["step"])
            if self.args.process_index == 0:  # they are those of all processes
                self._losses.restore(known["loss_sums"])
            if self._has_stalled():
                return self._resumed_at
        self.accelerator.wait_for_everyone()  # all have read the log before one writes
        if self.begin is not None:  # before a checkpoint is loaded
            with self._measuring() as model, self.compute_loss_context_manager():
                self.loss = self.begin(model, self.loss)
        with stopping.gracefully(), progress.over("train: step", LESS) as self.watched.told:
            outcome = self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if self.state.global_step < self.state.max_steps and not self._has_stalled():
            stopping.check()
            raise LlmrecError(
                f"training stopped at step {self.state.global_step} of {self.state.max_steps}, "
                "before its end; nothing was published, run the same command again to go on"
            )
        if self._resumed_at == self.state.global_step:
            self._end_interrupted_epoch()
        if not self._is_validated():
            self.evaluate()
        return outcome.global_step

    def _end_interrupted_epoch(self) -> None:
        """End the epoch whose last step was saved right before an interruption, once."""
        epoch = math.ceil(self.state.epoch - 1e-6) - 1
        if not any("losses" in x and x["epoch"] == epoch for x in self._logged):
            self.end_epoch()

    def _is_validated(self) -> bool:
        step = self.state.global_step
        return any("score" in x and x["step"] == step for x in self._logged)

    def _asked_to_stop(self) -> int | None:
        """The exit code of a wish to stop that any process heard, in all of them."""
        code = stopping.requested() or 0
        if self.args.world_size > 1:
            heard = torch.tensor([code], device=self.args.device)
            code = int(self.accelerator.gather(heard).max())
        return code or None

    def _write_log(self, line: dict[str, Any]) -> None:
        self._logged.append(line)
        if self.args.should_save:
            with self.log_path.open("a", encoding="utf-8") as stream:
                stream.write(log_line(line))
