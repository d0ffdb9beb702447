"""What the GPU figures are measured on: models' shapes, prompts, titles and batches."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Size:
    """A Llama-shaped model with tied embeddings; `pairs` in a training step; goals by figure."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    pairs: int = 4
    goals: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Plan:
    """What is asked: prompts of `prompt` tokens, give or take `spread`, titles of `title` with
    the end token, `users` for llmrec in `batches`, the first `peers` of them for `generate`."""

    sizes: tuple[Size, ...]
    checked: Size
    device: str
    dtype: torch.dtype
    prompt: int
    spread: int
    title: int
    items: int
    users: int
    batches: tuple[int, ...]
    peers: int
    beams: tuple[int, ...]
    needed: float  # seconds that must be left for a part to begin


FULL = Plan(
    (
        Size(
            "Llama-3.2-3B",
            3072,
            28,
            24,
            8,
            8192,
            128256,
            pairs=16,
            goals=(("decode 10", 8.0), ("decode 20", 12.0), ("own answers", 6.0), ("pairs", 2.2)),
        ),
        Size("SmolLM2-135M", 576, 30, 9, 3, 1536, 49152, pairs=32),
    ),
    Size("small", 256, 4, 8, 2, 512, 4096),
    "cuda",
    torch.bfloat16,
    prompt=300,
    spread=20,
    title=10,
    items=4000,
    users=64,
    batches=(8, 32, 64),
    peers=8,
    beams=(10, 20, 50),
    needed=45.0,
)
SMOKE = Plan(
    (Size("tiny", 64, 2, 4, 2, 128, 512, pairs=2, goals=(("decode 2", 8.0), ("pairs", 2.2))),),
    Size("tiny", 64, 2, 4, 2, 128, 512),
    "cpu",
    torch.float32,
    prompt=24,
    spread=4,
    title=5,
    items=60,
    users=4,
    batches=(2, 4),
    peers=2,
    beams=(2, 3),
    needed=1.0,
)
