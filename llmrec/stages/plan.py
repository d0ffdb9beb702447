"""Plan: what a recipe will need on so many GPUs, as arithmetic that anybody can do again.

Reads the data and the model's configuration, loads no weights and runs nothing. Rates are assumed,
and said; everything else follows from the recipe and from the rows that it makes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmrec.errors import RecipeError
from llmrec.inference.from_recipe import base_of
from llmrec.methods.method import Job
from llmrec.methods.table import method_of
from llmrec.model.arithmetic import BYTES, Answering, Shape, Strategy, Training
from llmrec.model.loading import Lora, with_new_lora
from llmrec.model.memory import memory_of
from llmrec.recipe import Recipe
from llmrec.runs.folder import RunFolder
from llmrec.stages import prepare

GIB = 2.0**30
ROOM = 0.92  # of a GPU's memory, at most; the rest is the allocator's and the libraries'
SAMPLE = 512  # rows that lengths are taken from
LAUNCH_MS = 6.3  # of a micro-batch for each layer, as measured on an H200 without graphs
ROW_BYTES = 60  # of a recommended item in a file of answers
_FIXES = {
    "frozen weights": "model.dtype=bfloat16, model.quantization=4bit, or fsdp2",
    "trained weights": "fsdp2 or zero3, or LoRA",
    "gradients": "zero2, fsdp2, or LoRA",
    "moments": "zero2, fsdp2, or LoRA",
    "activations": "train.gradient_checkpointing=true, or a smaller "
    "train.per_device_train_batch_size with more train.gradient_accumulation_steps",
    "mask": "a smaller train.per_device_train_batch_size",
    "logits": "objective.name=msl with objective.head=titles, or a smaller "
    "train.per_device_train_batch_size",
    "layers gathered": "more GPUs",
    "weights cast": "model.dtype=bfloat16, whose weights need no copy",
}


def run(
    recipe: Recipe,
    folder: RunFolder,
    gpus: int = 1,
    nodes: int = 1,
    strategy: Strategy = "ddp",
    memory_gib: float = 80.0,
    tflops: float = 989.0,
    utilisation: float = 0.25,
    users: int | None = None,
) -> dict[str, Any]:
    """Memory of a GPU, time, tokens and disk for training, and for recommending to `users`.

    `gpus` of each of `nodes`; `tflops` of a GPU at its best, of which `utilisation` is reached.
    `fits` is false where the memory does not suffice, and `told` says what would help.
    """
    method = method_of(recipe)
    if method.rows is None:
        raise RecipeError("plan counts language models; a network needs one process and little")
    prepare.run(recipe, folder)
    job = Job.of(recipe, folder)
    shape, trained = _counted(recipe)
    rows = (method.shown or method.rows)(job)
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int))
    lengths = np.array([len(rows[i]) for i in chosen])
    predicted = np.array([len(rows[i].flatten().labels) for i in chosen])
    train, processes = recipe.train, gpus * nodes
    batch = int(train["per_device_train_batch_size"])
    accumulated = int(train.get("gradient_accumulation_steps", 1))
    autocast = bool(train.get("bf16"))
    weights_in = _weights_in(recipe, _on_gpu(recipe))
    training = Training(
        shape,
        batch,
        int(lengths.max()),
        int(batch * predicted.max()),
        trained,
        "bfloat16" if autocast or weights_in == "bfloat16" else "float32",
        weights_in,
        bool(train.get("gradient_checkpointing")),
        strategy,
        processes,
        recipe.model.lora.target_modules if recipe.model.lora is not None else "all-linear",
        autocast,
    )
    epochs = float(train["num_train_epochs"])
    steps = int(-(-len(rows) // (batch * accumulated * processes)) * epochs)
    tokens = float(lengths.mean() * len(rows) * epochs)
    # A step's operations are those of rows of the mean length, as like lengths are read together.
    mean = Training(
        shape,
        1,
        round(lengths.mean()),
        round(predicted.mean()),
        trained,
        checkpointed=training.checkpointed,
    )
    operations = mean.operations * len(rows) * epochs
    rate = tflops * 1e12 * utilisation * processes
    launched = 0.0 if recipe.model.cuda_graphs else LAUNCH_MS / 1000 * shape.layers
    launching = steps * accumulated * launched
    needed = sum(training.memory.values())
    answering = _answering(recipe, job, shape, weights_in, lengths)
    asked = users if users is not None else _test_users(folder)
    answers = answering.operations / answering.users * asked
    kept = int(train.get("save_total_limit") or 1) + 1
    return {
        "fits": needed <= ROOM * memory_gib * GIB,
        "told": _told(training, needed, memory_gib),
        "assumed": {
            "gpus": processes,
            "memory_gib": memory_gib,
            "room": ROOM,
            "tflops": tflops,
            "utilisation": utilisation,
            "launch_ms_of_a_layer": LAUNCH_MS,
        },
        "model": {
            "weights": shape.weights,
            "trained": trained,
            "layers": shape.layers,
            "width": shape.width,
        },
        "training": {
            "rows": len(rows),
            "tokens_of_a_row": {"mean": round(float(lengths.mean()), 1), "max": int(lengths.max())},
            "steps": steps,
            "tokens": round(tokens),
            "operations": operations,
            "hours": round(max(operations / rate, launching) / 3600, 4),
            "bound_by": "launches" if launching > operations / rate else "arithmetic",
            "memory_gib": _gib(training.memory),
            "disk_gib": round(trained * 4 * (3 * kept + 3) / GIB, 3),
        },
        "recommending": {
            "users": asked,
            "operations": answers,
            "hours": round(answers / rate / 3600, 4),
            "memory_gib": _gib(answering.memory),
            "disk_gib": round(asked * recipe.decode.top_k * ROW_BYTES / GIB, 3),
        },
        "arithmetic": _arithmetic(training, processes, tflops, utilisation),
    }


def require_fits(told: dict[str, Any]) -> None:
    """Raise RecipeError where a plan does not fit."""
    if not told["fits"]:
        raise RecipeError(told["told"])


def require_room(recipe: Recipe, device: torch.device) -> None:
    """Raise RecipeError where whole weights alone exceed the memory of `device`.

    Called before anything is loaded: memory that runs out then ends a process without a word.
    """
    if recipe.model.trust_remote_code:  # its code would have to run to be counted
        return
    weights_in = _weights_in(recipe, recipe.model.dtype)
    needed = _counted(recipe)[0].weights * BYTES[weights_in]
    there = memory_of(device)
    on_cpu = device.type == "cpu"
    fix = "model.dtype=bfloat16 or a smaller model" if on_cpu else _FIXES["frozen weights"]
    if needed > there:
        raise RecipeError(
            f"the model's weights take {needed / GIB:.3g} GiB and this "
            f"{'machine' if on_cpu else 'GPU'} has {there / GIB:.3g} GiB; "
            f"{fix} would help (`llmrec plan` counts the rest)"
        )


def _counted(recipe: Recipe) -> tuple[Shape, int]:
    """The model's shape and how many of its weights are trained; no weight is made."""
    base, lora = base_of(recipe), recipe.model.lora
    local = Path(base.source).is_dir()
    config = AutoConfig.from_pretrained(
        base.source,
        revision="main" if local else base.revision or "main",
        local_files_only=local,
        trust_remote_code=False,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        shape = Shape.of(config, sum(p.numel() for p in model.parameters()))
        if lora is None:
            return shape, shape.weights
        wanted = Lora(lora.r, int(lora.alpha), lora.dropout, lora.target_modules, lora.layers)
        tuned = with_new_lora(model, wanted, recipe.seed)
    return shape, sum(p.numel() for p in tuned.parameters() if p.requires_grad)


def _weights_in(recipe: Recipe, dtype: str | None) -> str:
    if recipe.model.quantization == "4bit":
        return "4bit"
    return "bfloat16" if dtype in ("bfloat16", "auto") else "float32"


def _on_gpu(recipe: Recipe) -> str | None:
    """The number format on a GPU that computes in bfloat16, where this machine may have none."""
    said = "dtype" in recipe.model.model_fields_set
    return "bfloat16" if not said and recipe.model.lora is not None else recipe.model.dtype


def _answering(
    recipe: Recipe, job: Job, shape: Shape, weights_in: str, lengths: np.ndarray
) -> Answering:
    titles = [len(ids) for ids in job.encoder.completions]
    prompt = round(float(lengths.mean()) - float(np.mean(titles)))
    decode = recipe.decode
    return Answering(
        shape,
        decode.batch_size,
        max(1, prompt),
        max(decode.width, decode.top_k),
        round(float(np.mean(titles))),
        weights_in,
    )


def _test_users(folder: RunFolder) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(folder.examples("test")).num_rows)


def _gib(parts: dict[str, float]) -> dict[str, float]:
    return {name: round(n / GIB, 3) for name, n in {**parts, "all": sum(parts.values())}.items()}


def _told(training: Training, needed: float, memory_gib: float) -> str:
    room = ROOM * memory_gib
    if needed <= room * GIB:
        return f"{needed / GIB:.1f} of {room:.1f} GiB of a GPU: it fits"
    parts = sorted(training.memory.items(), key=lambda part: -part[1])
    most = ", ".join(f"{name} {n / GIB:.1f}" for name, n in parts[:3])
    return (
        f"{needed / GIB:.1f} GiB are needed of a GPU and {room:.1f} are there (GiB: {most}); "
        f"{_FIXES[parts[0][0]]} would help most"
    )


def _arithmetic(training: Training, processes: int, tflops: float, utilisation: float) -> list[str]:
    """The formulas with their numbers, in the order that they are used."""
    shape, b = training.shape, 2 if training.dtype == "bfloat16" else 4
    return [
        f"kept of a token by a layer = 4 bytes x 4 h + {b} bytes x (3 h + 3 kv + 4 i) + what "
        f"adapters read again, h = {shape.width}, kv = {shape.kv}, i = {shape.inner}: "
        f"{training.kept_bytes} bytes",
        f"activations = {shape.layers} layers x {training.rows} rows x {training.tokens} tokens x "
        f"{training.kept_bytes} bytes"
        + (" (kept of one layer, and the width of the others)" if training.checkpointed else ""),
        f"trained weights = {training.trained} x (4 + 4 + 8) bytes: weight, gradient, two moments"
        + ("" if training.strategy == "ddp" else f", cut by {processes} as {training.strategy}"),
        f"logits = {training.predicted} tokens x {shape.vocabulary} ids x ({b} + 4 + 4) bytes",
        f"operations of a token = 4 x {shape.body} frozen + 6 x {training.trained} trained + "
        f"12 x {shape.layers} x {shape.width} x tokens of attention",
        f"hours = operations / ({processes} GPUs x {tflops:g}e12 x {utilisation:g}) / 3600, or, "
        f"where that is more, micro-batches x {shape.layers} layers x {LAUNCH_MS} ms of launches",
    ]
