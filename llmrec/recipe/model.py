"""The language model of an experiment and what of it is trained."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from llmrec.recipe import device
from llmrec.recipe.section import Count, Section, Word

COMMIT = re.compile(r"[0-9a-f]{40}")


class LoraSection(Section):
    """Low-rank adaptation through PEFT."""

    r: Count = 8
    """Rank."""
    alpha: Count = 16
    """Scale; the update is multiplied by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the adapter; 0 keeps shared prompts exact."""
    target_modules: str | list[str] = "all-linear"
    """all-linear, or a list of module names such as [q_proj, v_proj]."""
    layers: Count | None = None
    """Last layers that are adapted; the others stay frozen, and no gradient is computed for them.
    null: all."""

    @field_validator("target_modules", mode="wrap")
    @classmethod
    def _words(cls, value: Any, _: Any) -> str | list[str]:
        if value == "all-linear":
            return "all-linear"
        if isinstance(value, list) and value and all(isinstance(v, str) and v for v in value):
            return list(value)
        raise ValueError("all-linear, or a list of module names")


class Model(Section):
    """The language model and what of it is trained."""

    base: Word = "smollm2-135m-instruct"
    """A name that `llmrec fetch model` knows, a Hub id, or a folder."""
    revision: Word | None = None
    """Commit, tag or branch of a Hub id; of a folder with trusted code, the hash of that code."""
    dtype: Literal["float32", "bfloat16", "auto"] | None = None
    """Number format of the weights; auto: as they were saved; null: bfloat16 under LoRA on a GPU
    that computes in it, else float32, and the run keeps which of them it was."""
    quantization: Literal["none", "4bit"] = "none"
    """4bit: the frozen weights in 4 bits under LoRA (QLoRA), on a GPU."""
    trust_remote_code: bool = False
    """Run code that the model brings; only on the command line, and needs a 40-hex revision."""
    lora: LoraSection | None = LoraSection()
    """The adapter; null: every weight is trained."""
    start_from: Word | None = None
    """A trained adapter, or a run that has one, whose weights training goes on from, with an
    optimiser and a schedule that begin afresh; null: an adapter that changes nothing yet."""
    attn_implementation: Literal["sdpa", "flex_attention"] = "sdpa"
    """What training reads rows by. flex_attention, on a CUDA GPU: what a token sees is told in
    blocks, and no S x S mask is made; changes speed and memory alone, for long rows."""
    cuda_graphs: bool = False
    """On a CUDA GPU, the model's passes in training launched as graphs, which a small model's steps
    wait for otherwise; changes speed alone."""
    adapter: Word | None = None
    """Folder of an adapter to recommend with, instead of training one."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.trust_remote_code and not (self.revision and COMMIT.fullmatch(self.revision)):
            raise ValueError(
                "trust_remote_code runs code that the model brings; it needs `revision` to be a "
                "full commit, or of a folder the hash of its code (40 hex digits), so that the "
                "code cannot change"
            )
        if self.quantization == "4bit" and self.lora is None:
            raise ValueError("4bit weights cannot be trained; give `lora` or set quantization none")
        if self.dtype is None:
            half = self.lora is not None and device.computes_in_bfloat16()
            object.__setattr__(self, "dtype", "bfloat16" if half else "float32")
        return self
