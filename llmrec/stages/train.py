"""Train: prepared examples in, the adapter that did best in validation out.

Goes on from the newest whole checkpoint, and does nothing when an adapter of the same settings
stands already.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from transformers import TrainingArguments

from llmrec.data.catalog import Catalog
from llmrec.data.files import write_json
from llmrec.data.records import Examples
from llmrec.errors import LlmrecError, RecipeError
from llmrec.evaluation.intervals import mean_interval
from llmrec.model import checkpoints
from llmrec.model.forward import require_tree_support
from llmrec.model.loading import Lora, load_model, with_new_lora
from llmrec.model.trainer import CHECKPOINT, Objective, TreeTrainer, publish_best
from llmrec.recipe import Recipe
from llmrec.stages import prepare
from llmrec.stages.folder import RunFolder
from llmrec.stages.language import base_of, encoder_of, processes, scored_paths
from llmrec.text.encoding import PromptEncoder
from llmrec.text.rows import SHAPES, windows
from llmrec.text.tree import TokenTree

log = logging.getLogger("llmrec")
SETTINGS = "settings.json"


def run(recipe: Recipe, folder: RunFolder, dry_run: bool = False) -> dict[str, Any]:
    """Train as the recipe says; returns what `adapter/` then holds.

    With `dry_run`, returns what a run would do (see `preview`) and trains nothing.
    """
    state = processes()
    with state.main_process_first():
        prepare.run(recipe, folder)
        encoder = encoder_of(recipe, Catalog.read(folder.items))
    rows = training_rows(recipe, encoder, Examples.read(folder.examples("train")))
    if dry_run:
        return preview(recipe, folder, encoder, rows)
    settings = _settings(recipe, folder)
    done = finished(folder, settings)
    if done is not None:
        log.info("train: %s stands already (best at step %s), nothing to do", folder.adapter,
                 done["step"])  # fmt: skip
        return {**done, "adapter": str(folder.adapter), "skipped": True}
    model = load_model(base_of(recipe))
    require_tree_support(model, recipe.prompt.max_tokens)
    model = with_new_lora(model, _lora(recipe), recipe.seed) if recipe.model.lora else model
    resume = _resume_point(folder, settings, state)
    trainer = TreeTrainer(
        model, _arguments(recipe, folder), rows, objective_of(recipe, encoder),
        validation_of(recipe, folder, encoder), folder.train_log,
    )  # fmt: skip
    log.info("train: %d rows of shape %s, %d targets", len(rows), recipe.rows.shape,
             sum(row_targets(row) for row in rows))  # fmt: skip
    steps = trainer.go(resume)
    if state.is_main_process:
        publish_best(folder.checkpoints, folder.adapter, settings=settings)
    state.wait_for_everyone()
    known = checkpoints.facts(folder.adapter)
    return {"adapter": str(folder.adapter), "step": known["step"], "valid_nll": known["nll"],
            "steps": steps, "skipped": False}  # fmt: skip


def training_rows(recipe: Recipe, encoder: PromptEncoder, train: Examples) -> list[TokenTree]:
    """Windows of the training sequences as token trees of the recipe's shape.

    A window is `prompt.max_history` items and the one after; `rows.count` of them are drawn with
    the recipe's seed, so a smaller count is a subset of a larger one.
    """
    shape = recipe.rows.shape
    if shape != "single":
        encoder.require_shared_prefixes()
    sequences = [np.append(e.history, e.target).astype(np.int32) for e in train]
    pieces = windows(sequences, recipe.prompt.max_history + 1)
    if not pieces:
        raise RecipeError("no training sequence has two items; there is nothing to train on")
    order = np.random.default_rng(recipe.seed).permutation(len(pieces))[: recipe.rows.count]
    return [SHAPES[shape](encoder, pieces[i][:-1], int(pieces[i][-1])) for i in order]


def row_targets(row: TokenTree) -> int:
    """How many targets a row has."""
    return sum(segment.target >= 0 for segment in row.segments)


def objective_of(recipe: Recipe, encoder: PromptEncoder) -> Objective:
    """The recipe's objective over the encoder's titles."""
    return Objective(recipe.objective.name, encoder.trie, encoder.completions,
                     recipe.objective.tau)  # fmt: skip


def validation_of(
    recipe: Recipe, folder: RunFolder, encoder: PromptEncoder
) -> Callable[[nn.Module], dict[str, float]]:
    """Mean target likelihood on the validation users, which every process shares in."""
    valid = Examples.read(folder.examples("valid"))
    state = processes()

    def measure(model: nn.Module) -> dict[str, float]:
        # Every process reads equally many batches, as sharded models demand: short shares repeat.
        share = -(-len(valid) // state.num_processes)
        mine = (np.arange(share) + state.process_index * share) % len(valid)
        nll = np.empty(share)
        scored = scored_paths(model, encoder, valid.take(mine), batch_size=recipe.decode.batch_size,
                              filter_seen=recipe.decode.filter_seen)  # fmt: skip
        for batch, paths in scored:
            nll[batch] = paths.nll()
        gathered = np.array(gather_object(nll.tolist()))[: len(valid)]
        gathered = gathered[np.isfinite(gathered)]  # a repeated item cannot be recommended
        if len(gathered) == 0:
            raise LlmrecError("no validation target can be recommended: all are in the histories; "
                              "set decode.filter_seen: false")  # fmt: skip
        interval = mean_interval(gathered, seed=recipe.seed)
        return {"nll": interval.mean, "low": interval.low, "high": interval.high}

    return measure


def preview(
    recipe: Recipe, folder: RunFolder, encoder: PromptEncoder, rows: list[TokenTree]
) -> dict[str, Any]:
    """What training would read, do and need: lengths, truncation, steps, parameters, disk."""
    lengths = np.array([len(row) for row in rows])
    train = Examples.read(folder.examples("train"))
    dropped = [encoder.prompt(h).dropped > max(0, len(h) - recipe.prompt.max_history)
               for h in train.histories()[:2000]]  # fmt: skip
    batch = recipe.train["per_device_train_batch_size"] * recipe.train.get(
        "gradient_accumulation_steps", 1
    ) * processes().num_processes  # fmt: skip
    model = load_model(base_of(recipe))
    total = sum(p.numel() for p in model.parameters())
    if recipe.model.lora:
        model = with_new_lora(model, _lora(recipe), recipe.seed)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    epochs = float(recipe.train["num_train_epochs"])
    kept = int(recipe.train.get("save_total_limit") or 1) + 2  # best, adapter
    return {
        "rows": len(rows), "targets": sum(map(row_targets, rows)),
        "row_tokens": {f"p{q}": int(np.percentile(lengths, q)) for q in (5, 50, 95, 100)},
        "share_of_prompts_that_lost_titles_to_max_tokens": float(np.mean(dropped)),
        "optimiser_steps": int(-(-len(rows) // batch) * epochs),
        "parameters": total, "trainable_parameters": trainable,
        "disk_needed_bytes": trainable * 4 * 3 * kept,  # weights and two moments of AdamW
        "disk_free_bytes": shutil.disk_usage(_existing(folder.root)).free,
    }  # fmt: skip


def finished(folder: RunFolder, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The facts of a verified adapter of these very settings, else None."""
    if not folder.adapter.is_dir():
        return None
    wrong = checkpoints.problem(folder.adapter)
    if wrong is not None:
        log.warning("train: %s is damaged (%s); training again", folder.adapter, wrong)
        return None
    known = checkpoints.facts(folder.adapter)
    if known.get("settings") != settings:
        raise LlmrecError(
            f"{folder.adapter} was trained with other settings or data; give the recipe another "
            "name, or remove that folder and the checkpoints beside it"
        )
    return {"step": known["step"], "valid_nll": known["nll"]}


def _resume_point(folder: RunFolder, settings: dict[str, Any], state: PartialState) -> Path | None:
    """The newest whole checkpoint of these settings; begins afresh when there is none."""
    root = folder.checkpoints
    with state.main_process_first():
        known = root / SETTINGS
        if known.exists() and json.loads(known.read_text("utf-8")) != settings:
            raise LlmrecError(
                f"{root} holds checkpoints of other settings or data; give the recipe another "
                "name, or remove that folder"
            )
        if state.is_main_process:
            write_json(known, settings)
            checkpoints.clear_staging(root)
        newest, skipped = checkpoints.newest(root, CHECKPOINT)
        for reason in skipped:
            log.warning("train: skipped a damaged checkpoint, %s", reason)
        step = checkpoints.facts(newest)["step"] if newest else 0
        if state.is_main_process:
            _forget_after(folder, step)
    if newest:
        log.info("train: going on from %s", newest.name)
    return newest


def _forget_after(folder: RunFolder, step: int) -> None:
    """Drop log lines and best weights of steps that will be run again."""
    if folder.train_log.exists():
        lines = [json.loads(line) for line in folder.train_log.read_text("utf-8").splitlines()
                 if line.endswith("}")]  # fmt: skip
        kept = [json.dumps(line) + "\n" for line in lines if step and line["step"] <= step]
        folder.train_log.write_text("".join(kept), "utf-8")
    for best in folder.checkpoints.glob("best-*"):
        if int(best.name.removeprefix("best-")) > step:
            shutil.rmtree(best)


def _arguments(recipe: Recipe, folder: RunFolder) -> TrainingArguments:
    given: dict[str, Any] = {
        "eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 1,
        "disable_tqdm": True, **recipe.train,
    }  # fmt: skip
    try:
        return TrainingArguments(
            output_dir=str(folder.checkpoints), seed=recipe.seed, data_seed=recipe.seed,
            remove_unused_columns=False, logging_nan_inf_filter=False,
            use_cpu=given.pop("use_cpu", not torch.cuda.is_available()), **given,
        )  # fmt: skip
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"train: {error}") from None


def _lora(recipe: Recipe) -> Lora:
    lora = recipe.model.lora
    assert lora is not None  # noqa: S101  callers ask first
    return Lora(lora.r, int(lora.alpha), lora.dropout, lora.target_modules)


def _settings(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """All that the trained weights depend on, for telling whether a folder's weights are these."""
    chosen = recipe.model_dump(include={"seed", "model", "prompt", "objective", "rows", "train"})
    manifest = hashlib.sha256((folder.data / "manifest.json").read_bytes()).hexdigest()
    return {**chosen, "data": manifest}


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
