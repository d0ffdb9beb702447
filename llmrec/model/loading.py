"""Loading a base model, its tokenizer and a LoRA adapter the way transformers and PEFT do.

Knows neither names of models nor where they are kept: it takes a local folder or a Hub id.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from llmrec.errors import LlmrecError, RecipeError
from llmrec.model.attention import with_tree_attention
from llmrec.model.trust import require_pinned_code, require_safe_adapter, require_safe_model

# How often the adapter of a model is off at the moment, and what switches it back.
_off: WeakKeyDictionary[nn.Module, tuple[int, ExitStack]] = WeakKeyDictionary()
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": "auto"}


@dataclass(frozen=True)
class BaseModel:
    """What to load: a folder or Hub id, and how.

    `trust_remote_code` is allowed only with a 40-hex `revision`, so that the code is fixed: a
    commit, or of a folder the hash of its code (see `trust.require_pinned_code`). `sharded`: no
    process is to hold it whole on its device, so it stays where it was loaded until it is cut up.
    """

    source: str
    revision: str | None = None
    dtype: str = "float32"
    quantization: str = "none"
    trust_remote_code: bool = False
    offline: bool = False
    sharded: bool = False

    def __post_init__(self) -> None:
        if self.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise RecipeError(
                "model.trust_remote_code runs code from the model's repository; it needs "
                f"model.revision to be a full 40-hex commit, got {self.revision!r}"
            )


@dataclass(frozen=True)
class Lora:
    """LoRA's rank, scale, dropout, the modules it adapts ("all-linear" or names) and in how many
    of the last layers (None: all).
    """

    r: int = 8
    alpha: int = 16
    dropout: float = 0.0
    target_modules: str | list[str] = field(default="all-linear")
    layers: int | None = None


def load_tokenizer(base: BaseModel) -> Any:
    """The model's tokenizer. Raises LlmrecError when it cannot be loaded."""
    return _load(AutoTokenizer.from_pretrained, base, {})


def embedding_rows(base: BaseModel) -> int | None:
    """How many tokens the model has an embedding of, by its configuration; None: it does not say.

    Raises LlmrecError when there is no configuration.
    """
    config = _load(AutoConfig.from_pretrained, base, {})
    return getattr(config.get_text_config(), "vocab_size", None)


def load_model(base: BaseModel, device: str | torch.device | None = None) -> Any:
    """The causal language model in evaluation mode, on `device` (default: the first GPU, else CPU).

    Attention is one that takes tree masks. `quantization="4bit"` needs bitsandbytes and a GPU.
    """
    if Path(base.source).is_dir():
        require_safe_model(Path(base.source))
    options: dict[str, Any] = {
        "dtype": _DTYPES[base.dtype],
        "attn_implementation": "sdpa",
        "use_safetensors": True,
    }
    if base.quantization == "4bit":
        options["quantization_config"] = _four_bit(base)
    model = _load(AutoModelForCausalLM.from_pretrained, base, options)
    with_tree_attention(model).config.use_cache = False
    if base.quantization == "none" and not base.sharded:
        model.to(device or default_device())
    return model.eval()


def default_device() -> str:
    """The first GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_tuned(base: BaseModel, tuned: Path) -> Any:
    """What training left in folder `tuned`: a LoRA adapter for `base`, or a whole model."""
    if not (tuned / "adapter_config.json").is_file():
        # Whole weights bring their settings along; code named there is not the pinned one.
        own = replace(base, source=str(tuned), revision=None, trust_remote_code=False)
        return load_model(own)
    require_safe_adapter(tuned)
    model = load_model(base)
    try:
        return PeftModel.from_pretrained(model, str(tuned)).eval()
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise LlmrecError(f"{tuned}: not an adapter of {base.source} ({_first(error)})") from None


def with_new_lora(model: nn.Module, lora: Lora, seed: int, sharded: bool = False) -> Any:
    """The model with fresh LoRA weights, drawn from `seed`, ready to train."""
    if getattr(model, "is_loaded_in_4bit", False) and not sharded:  # shards are of one dtype
        # Whether activations are kept is said by train.gradient_checkpointing.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        task_type="CAUSAL_LM",
        **_adapted(model, lora),
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise RecipeError(f"model.lora: {_first(error)}") from None


def _adapted(model: nn.Module, lora: Lora) -> dict[str, Any]:
    """Which modules of which layers, in PEFT's words."""
    names = lora.target_modules
    if lora.layers is None:
        return {"target_modules": names}
    count = model.config.num_hidden_layers
    if lora.layers > count:
        raise RecipeError(f"model.lora.layers is {lora.layers}; this model has {count}")
    if names == "all-linear":  # which PEFT takes for all layers alone
        head = model.get_output_embeddings()
        linear = (nn.Linear, Conv1D)
        found = ((n, m) for n, m in model.named_modules() if isinstance(m, linear))
        names = sorted({name.rpartition(".")[2] for name, module in found if module is not head})
    layers = list(range(count - lora.layers, count))
    return {"target_modules": names, "layers_to_transform": layers}


def with_weights(model: PeftModel, trained: Path) -> PeftModel:
    """The model with the adapter in folder `trained`, which must be of the shape of the model's.

    Raises RecipeError where it is not, LlmrecError where there is none.
    """
    try:
        known = json.loads((trained / "adapter_config.json").read_text("utf-8"))
        weights = load_file(trained / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise LlmrecError(f"{trained}: no trained adapter ({_first(error)})") from None
    ours = model.peft_config["default"]
    try:
        loaded = set_peft_model_state_dict(model, weights)
        lacking = [name for name in loaded.missing_keys if ".lora_" in name]
        differs = lacking or loaded.unexpected_keys or known["lora_alpha"] != ours.lora_alpha
    except RuntimeError:  # another rank
        differs = True
    if differs:
        shape = f"r = {known['r']}, alpha = {known['lora_alpha']}"
        layers = known.get("layers_to_transform")
        raise RecipeError(
            f"{trained} is an adapter of another shape than model.lora: {shape}, of "
            f"{', '.join(sorted(known['target_modules']))} in "
            f"{'all layers' if layers is None else f'layers {layers}'}"
        )
    return model


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """While open, the LoRA adapters of `model` are off: the untuned base model answers.

    The PEFT model may lie inside a distributed wrapper; without one nothing is switched. On
    leaving, every module's training mode and every parameter's requires_grad are as on entry.
    Several may be open, for batches that take turns; the last to leave switches back.
    """
    tuned = next((m for m in model.modules() if isinstance(m, PeftModel)), None)
    held = model if tuned is None else tuned
    count, back = _off.get(held, (0, ExitStack()))
    if count == 0:
        back.enter_context(_switched_off(model, tuned))
    _off[held] = count + 1, back
    try:
        yield
    finally:
        count = _off.pop(held)[0] - 1
        if count:
            _off[held] = count, back
        else:
            back.close()


@contextmanager
def _switched_off(model: nn.Module, tuned: PeftModel | None) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    # Switched on again, PEFT calls every weight of the active adapter trainable, frozen or not.
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with tuned.disable_adapter() if tuned is not None else nullcontext():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _four_bit(base: BaseModel) -> Any:
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not torch.cuda.is_available() or not is_bitsandbytes_available():
        raise RecipeError(
            "model.quantization: 4bit needs a CUDA GPU and bitsandbytes (pip install "
            "'llmrec[gpu]'); use quantization: none on this machine"
        )
    compute = torch.bfloat16 if base.dtype != "float32" else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        # Shards are cut from numbers, which the packed bits pass for.
        **({"bnb_4bit_quant_storage": compute} if base.sharded else {}),
    )


def _load(loader: Any, base: BaseModel, options: dict[str, Any]) -> Any:
    if base.trust_remote_code:
        require_pinned_code(base.source, base.revision, base.offline)
    try:
        return loader(
            base.source,
            revision="main" if Path(base.source).is_dir() else base.revision or "main",
            trust_remote_code=base.trust_remote_code,
            local_files_only=base.offline or Path(base.source).is_dir(),
            **options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        if not base.trust_remote_code and "trust_remote_code" in str(error):
            raise LlmrecError(
                f"model.base: {base.source!r} brings code of its own, which is not run; if you "
                "have read it and trust it, add model.trust_remote_code=true and "
                "model.revision=COMMIT to the command"
            ) from None
        raise LlmrecError(
            f"model.base: {base.source!r} cannot be loaded ({_first(error)}). It must be a name "
            "that `llmrec fetch model` knows, a Hub id or a local folder in safetensors"
        ) from None


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
