"""How a trainer's states come to stand on disk: staged, sealed, and looked for room before.

A checkpoint or the best weights are whole or not there; what a save that failed left is removed,
and what stood before stays. Knows folders and bytes, no loss and no data.
"""

import shutil
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llmrec.data import sealed as checkpoints
from llmrec.data.files import require_space
from llmrec.model.halving import HalvingTrainer
from llmrec.model.kept_weights import BEST, CHECKPOINT
from llmrec.model.sharding import trained_weights


class SavingTrainer(HalvingTrainer):
    """A Trainer that saves below `root`.

    `facts_of_checkpoint` is called by every process and gives what a checkpoint's manifest says
    besides its step and the `settings` that the weights depend on; `started` is when training was.
    """

    root: Path
    settings: Mapping[str, Any] | None
    started: float

    @abstractmethod
    def facts_of_checkpoint(self) -> dict[str, Any]:
        """What going on from here has to know, as JSON."""

    def keep_best(self, step: int, **facts: Any) -> None:
        """Save the weights as those that did best in validation."""
        with self._staging(f"{checkpoints.STAGING}-best") as staged:
            self._require_space(moments=0)
            self.save_model(str(staged), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._seal(staged, BEST, step, keep=1, **facts)
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Hugging Face does, but of an adapter in shards its own weights alone are gathered."""
        if self.is_fsdp_enabled and hasattr(self.model, "peft_config"):
            self._save(output_dir, state_dict=trained_weights(self.model))
        else:
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        step = self.state.global_step
        with self._staging(checkpoints.STAGING) as staging:
            self._require_space(moments=2)
            self.args.output_dir = str(staging)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = str(self.root)
            facts = self.facts_of_checkpoint()
            if self.args.should_save:
                seconds = round(time.monotonic() - self.started, 1)
                self._seal(
                    staging / f"{CHECKPOINT}{step}",
                    CHECKPOINT,
                    step,
                    keep=self.args.save_total_limit or 1,
                    seconds=seconds,
                    settings=self.settings,
                    **facts,
                )
        self.accelerator.wait_for_everyone()

    def _seal(self, staged: Path, prefix: str, step: int, keep: int, **facts: Any) -> None:
        (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle; nothing reads it
        checkpoints.seal(staged, self.root / f"{prefix}{step}", step=step, **facts)
        checkpoints.prune(self.root, prefix, keep)

    @contextmanager
    def _staging(self, name: str) -> Iterator[Path]:
        """A folder below `root` to save to, which the main process removes at the end."""
        staged = self.root / name
        try:
            yield staged
        finally:
            if self.args.should_save:
                shutil.rmtree(staged, ignore_errors=True)

    def _require_space(self, moments: int) -> None:
        """Raise LlmrecError unless there is room for the weights that train and so many moments."""
        if self.args.should_save:
            trained = [p for p in self.model.parameters() if p.requires_grad]
            needed = (1 + moments) * sum(p.numel() * p.element_size() for p in trained)
            require_space(self.root, needed, "a checkpoint")
