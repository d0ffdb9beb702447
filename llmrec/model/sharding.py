"""Models whose weights lie in shards over the processes, under FSDP2 or DeepSpeed ZeRO-3.

Knows neither recipes nor launchers' files.
"""

from typing import Any

from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled


def is_sharded(args: TrainingArguments) -> bool:
    """Whether training will put the weights in shards; `args` exist before a model is loaded, as
    ZeRO-3 cuts it up while that happens."""
    return bool(args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP") or _is_zero3()


def _is_zero3() -> bool:
    return bool(is_deepspeed_zero3_enabled())


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """What is trained of a model in FSDP2's shards, whole, in the main process's memory.

    Every process calls this; the others get nothing. Frozen weights are not gathered.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    found: dict[str, Any] = get_model_state_dict(model, options=options)
    return found
