"""SOFT pairs against TRL's own trainer on the doubled data, for `train.py`.

TRL's `SFTTrainer` gets a row for each title of a pair, pads them with its own collator, and does a
training step on all; it computes the head at completion positions only. Gradient checkpointing,
which it switches on by default, is off on both sides. Without TRL installed there is no figure.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Sequence

import numpy as np

from llmrec.text.encoding import PromptEncoder


def trl_step(model, encoder: PromptEncoder, paths: Sequence[tuple]) -> Callable[[], float] | None:
    """A step of TRL's trainer over rows of prompt and completion: forward, backward, the loss; None
    where TRL is not installed.

    The loss is the mean over the tokens of all completions.
    """
    if importlib.util.find_spec("trl") is None:
        return None
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "input_ids": np.concatenate([prompt, title]).tolist(),
            "completion_mask": [0] * len(prompt) + [1] * len(title),
        }
        for prompt, title in paths
    ]
    with tempfile.TemporaryDirectory() as scratch:
        settings = SFTConfig(
            output_dir=scratch,
            per_device_train_batch_size=len(rows),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            completion_only_loss=True,
            max_length=None,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            seed=0,
        )
        trainer = SFTTrainer(
            model,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=encoder.tokenizer,
        )
    batch = next(iter(trainer.get_train_dataloader()))

    def step() -> float:
        loss = trainer.compute_loss(model, dict(batch))
        trainer.accelerator.backward(loss)
        return float(loss.detach())

    return step
