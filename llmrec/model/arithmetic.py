"""What training and answering cost, from shapes alone: bytes, operations; nothing is run.

A decoder of L layers is counted as Llama's are. Numbers are per process. What is approximate is the
activations: the tensors that autograd keeps, counted one by one in `Shape`.
"""

from dataclasses import dataclass
from typing import Any, Literal

Strategy = Literal["ddp", "zero2", "zero3", "fsdp2"]
BYTES = {"float32": 4.0, "bfloat16": 2.0, "4bit": 0.52}  # of a weight; 4 bits and their scales
HALF = {"float32": 4, "bfloat16": 2}
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """A decoder: L `layers` of width h, with `groups` query heads to one of keys, `kv` the width
    of all keys of a token, i the width `inner` of the MLP, V ids; `weights` all parameters,
    `embedded` those of the embedding and of a head of its own, which no matrix product of the body
    reads."""

    layers: int
    width: int
    groups: int
    kv: int
    inner: int
    vocabulary: int
    weights: int
    embedded: int

    @staticmethod
    def of(config: Any, weights: int) -> "Shape":
        """From a model's configuration and the number of its parameters."""
        text = config.get_text_config()
        heads = text.num_attention_heads
        head = getattr(text, "head_dim", None) or text.hidden_size // heads
        of_keys = getattr(text, "num_key_value_heads", None) or heads
        inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        tables = 1 if getattr(text, "tie_word_embeddings", False) else 2
        return Shape(
            text.num_hidden_layers,
            text.hidden_size,
            heads // of_keys,
            of_keys * head,
            inner,
            text.vocab_size,
            weights,
            tables * text.vocab_size * text.hidden_size,
        )

    @property
    def body(self) -> int:
        """Weights that each token is multiplied with, but for the head."""
        return self.weights - self.embedded

    @property
    def kept_else(self) -> int:
        """Numbers of a token that a layer keeps for the way back, its weights frozen, beside its
        norms' inputs: queries and keys turned, values, what attention gives, and of the MLP gate,
        up and the activation."""
        return 2 * self.width + 2 * self.kv + 3 * self.inner

    def inputs_of(self, modules: str | list[str]) -> int:
        """Those that a layer's `modules` read, each once, whoever shares it."""
        names = EVERY if modules == "all-linear" else tuple(modules)
        together = (EVERY[:3], EVERY[3:4], EVERY[4:6])
        widths = sum(self.width for group in together if set(group) & set(names))
        return widths + (self.inner if "down_proj" in names else 0)

    def read_by(self, modules: str | list[str]) -> int:
        """The same, each as often as it is read."""
        names = EVERY if modules == "all-linear" else modules
        return sum(self.inner if name == "down_proj" else self.width for name in names)


@dataclass(frozen=True)
class Training:
    """What a process learns from at a time: `rows` rows of `tokens` tokens, padded, of which all
    together `predicted` need logits; `trained` weights of float32 with two moments, adapters of
    `modules` or all; frozen ones `weights_in`, and products in `dtype`, by `autocast` or because
    the weights are; `checkpointed`: a layer's activations are computed again on the way back."""

    shape: Shape
    rows: int
    tokens: int
    predicted: int
    trained: int
    dtype: str = "float32"
    weights_in: str = "float32"
    checkpointed: bool = False
    strategy: Strategy = "ddp"
    processes: int = 1
    modules: str | list[str] = "all-linear"
    autocast: bool = False

    @property
    def kept_bytes(self) -> int:
        """Bytes of activations that a layer keeps of a token."""
        shape, b = self.shape, HALF[self.dtype]
        # Norms compute in float32; what they normalised is kept where their weights are trained.
        whole = self.trained >= shape.weights
        kept = 4 * (4 if whole else 2) * shape.width + b * shape.kept_else
        if whole or self.dtype == "float32":
            return kept + b * shape.inputs_of("all-linear" if whole else self.modules)
        # Adapters are of float32 and get a copy of what they read: in it, or in autocast's.
        return kept + (2 if self.autocast else 4) * shape.read_by(self.modules)

    @property
    def memory(self) -> dict[str, float]:
        """Bytes by what they are for."""
        shape, b = self.shape, HALF[self.dtype]
        cut_weights = self.processes if self.strategy in ("fsdp2", "zero3") else 1
        cut_states = self.processes if self.strategy != "ddp" else 1
        frozen = shape.weights if self.trained < shape.weights else 0
        layer = self.rows * self.tokens * self.kept_bytes
        whole = shape.layers * layer
        if self.checkpointed:
            whole = shape.layers * self.rows * self.tokens * shape.width * b + layer
        gathered = 0.0 if cut_weights == 1 else 2 * shape.body / shape.layers * self._weight
        return {
            "frozen weights": frozen * self._weight / cut_weights,
            "trained weights": 4.0 * self.trained / cut_weights,
            "gradients": 4.0 * self.trained / cut_states,
            "moments": 8.0 * self.trained / cut_states,
            "layers gathered": gathered,
            "activations": float(whole),
            "weights cast": 2.0 * shape.body if self._is_cast else 0.0,
            "mask": float(self.rows * self.tokens**2 * shape.groups * b),
            "logits": float(self.predicted * shape.vocabulary * (b + 4 + 4)),
        }

    @property
    def operations(self) -> float:
        """Floating point operations of one forward and one backward pass over these rows.

        A frozen weight costs 2 a token forward and 2 backward, a trained one 2 more.
        """
        tokens = self.rows * self.tokens
        kept = 4.0 * self.shape.body + 6.0 * min(self.trained, self.shape.body)
        if self.trained >= self.shape.weights:
            kept = 6.0 * self.shape.body
        again = 2.0 * self.shape.body if self.checkpointed else 0.0
        head = 4.0 * self.predicted * self.shape.width * self.shape.vocabulary
        return tokens * (kept + again) + self.attention + head

    @property
    def _is_cast(self) -> bool:
        return self.autocast and self.weights_in == "float32"

    @property
    def attention(self) -> float:
        """Those of `operations` that are products of queries with keys and with values."""
        rows = self.rows * self.tokens**2
        return 3 * 4.0 * self.shape.layers * self.shape.width * rows

    @property
    def _weight(self) -> float:
        return BYTES[self.weights_in]


@dataclass(frozen=True)
class Answering:
    """`users` prompts of `prompt` tokens read at once, and behind each `beams` titles of `title`
    tokens."""

    shape: Shape
    users: int
    prompt: int
    beams: int
    title: int
    weights_in: str = "float32"

    @property
    def memory(self) -> dict[str, float]:
        """Bytes by what they are for."""
        b = HALF.get(self.weights_in, 2)
        columns = self.prompt + self.beams * self.title
        return {
            "weights": self.shape.weights * BYTES[self.weights_in],
            "keys and values": 2.0 * self.shape.layers * self.shape.kv * b * self.users * columns,
            "logits": float(self.users * self.beams * self.shape.vocabulary * (b + 4)),
        }

    @property
    def operations(self) -> float:
        """Floating point operations for all these users; a prompt is read once."""
        tokens = self.prompt + self.beams * max(0, self.title - 1)
        head = 2.0 * (1 + self.beams * self.title) * self.shape.width * self.shape.vocabulary
        return self.users * (2.0 * self.shape.body * tokens + head)
