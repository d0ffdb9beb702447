"""Train: prepared examples in, the adapter that did best in validation out.

Goes on from the newest whole checkpoint, and does nothing when an adapter of the same settings
stands already.
"""

import logging
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from transformers import TrainingArguments

from llmrec.data import sealed as checkpoints
from llmrec.data.files import replacing, require_space
from llmrec.errors import LlmrecError, RecipeError
from llmrec.inference.from_recipe import base_of
from llmrec.methods.method import Job, Kept
from llmrec.methods.table import method_of
from llmrec.methods.validation import validation_of
from llmrec.model.attention import with_tree_blocks
from llmrec.model.forward import require_tree_support
from llmrec.model.kept_weights import BEST, CHECKPOINT, log_line, read_log
from llmrec.model.loading import Lora, default_device, load_model, with_new_lora, with_weights
from llmrec.model.settings import judged_by_libraries
from llmrec.model.sharding import is_sharded
from llmrec.model.trainer import TreeTrainer
from llmrec.recipe import Recipe
from llmrec.recipe.trainer_arguments import FRACTIONS
from llmrec.runs.artifact import Artifact
from llmrec.runs.folder import RunFolder
from llmrec.runs.made import adapter, start_of
from llmrec.runs.processes import begun, main_first, main_only, processes, together
from llmrec.stages import prepare
from llmrec.stages.holding import alone
from llmrec.stages.plan import require_room
from llmrec.stages.tracking import tracking

log = logging.getLogger("llmrec")


@alone("train")
def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Train the language model as the recipe says; returns what `adapter/` then holds.

    Where its method has several steps this is the last one alone.
    """
    state = begun(recipe, folder.root)
    method, job = method_of(recipe), prepared(recipe, folder)
    rows = method.rows(job)
    made = adapter(recipe, folder)
    done = main_only(made.facts_or_none)
    if done is not None:
        log.info(
            "train: %s stands already (best at step %s), nothing to do",
            folder.adapter,
            done["step"],
        )
        return {**_described(done), "adapter": str(folder.adapter), "skipped": True}
    loss = method.loss(job)
    arguments = arguments_of(recipe, folder)
    sharded = is_sharded(arguments)
    if not sharded:
        require_room(recipe, arguments.device)
    model = model_of(recipe, sharded)
    _require_graphs(recipe, model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    require_space(folder.root, bytes_needed(recipe, trainable), "training")
    require_tree_support(model, recipe.prompt.max_tokens)
    resume = _resume_point(folder, made)
    trainer: TreeTrainer | None = None
    with (
        tracking(folder, recipe.train.get("report_to")),
        judged_by_libraries(lambda: resume is not None or (trainer is not None and trainer.begun)),
    ):
        trainer = TreeTrainer(
            model,
            arguments,
            rows,
            loss,
            validation_of(recipe, folder, job.encoder),
            folder.train_log,
            method.curriculum(job),
            recipe.validation.patience,
            method.refresh(job, rows),
            made.key,
            recipe.model.cuda_graphs,
            recipe.soft.period if recipe.soft is not None else None,
            None if method.begin is None else partial(method.begin, job, rows),
        )
        if method.asks or recipe.validation.metric != "nll":
            _require_whole_weights(trainer.accelerator)
        log.info("train: %d rows of shape %s", len(rows), recipe.rows.shape)
        steps = trainer.go(resume)
    rival = method.rival(job)
    if state.is_main_process:
        _publish(folder, made, rival)
    together()
    known = _described(checkpoints.facts(folder.adapter))
    return {"adapter": str(folder.adapter), **known, "steps": steps, "skipped": False}


def _require_graphs(recipe: Recipe, model: Any) -> None:
    if recipe.model.cuda_graphs and (model.device.type != "cuda" or processes().num_processes > 1):
        raise RecipeError(
            "model.cuda_graphs: true needs one process on one CUDA GPU, and this is one of "
            f"{processes().num_processes} on {model.device.type}; set model.cuda_graphs=false"
        )


def _require_whole_weights(accelerator: Any) -> None:
    """Processes that search read the model unequally often, which sharded weights cannot take."""
    plugin = accelerator.state.deepspeed_plugin
    sharded = accelerator.distributed_type == DistributedType.FSDP or (
        plugin is not None and plugin.zero_stage == 3
    )
    if sharded:
        raise RecipeError(
            "soft, conformal, objective.grpo, demonstrations.selection and validation.metric hr or "
            "ndcg ask the live model while it trains, and under FSDP or ZeRO-3 no process holds it "
            "whole; launch with ddp or zero2"
        )


def prepared(recipe: Recipe, folder: RunFolder) -> Job:
    with main_first():
        prepare.run(recipe, folder)
        return Job.of(recipe, folder)


def bytes_needed(recipe: Recipe, trainable: int) -> int:
    """Of checkpoints (weights and two moments of AdamW), of the best weights and the adapter; and
    one checkpoint more, as the next is whole before the former goes."""
    checkpoints_kept = int(recipe.train.get("save_total_limit") or 1) + 1
    return trainable * 4 * (3 * checkpoints_kept + 3)


def _publish(folder: RunFolder, made: Artifact, rival: Kept | None = None) -> None:
    """Put the weights that did best in validation in place, or the rival's if those are better."""
    best, skipped = checkpoints.newest(folder.checkpoints, BEST)
    if best is None:
        raise LlmrecError(
            f"{folder.checkpoints}: no weights that verify ({'; '.join(skipped) or 'none saved'})"
        )
    known = checkpoints.facts(best)
    own = {name: known[name] for name in ("step", "score", "figures")}
    if rival is None or tuple(known["score"]) <= rival.score:
        made.adopt(best, **own)
        return
    log.warning(
        "train: the best validation is worse than the %s's (score %s at step %s against %s; lower "
        "is better): the %s's weights are kept as %s",
        *(rival.name, known["score"], known["step"], list(rival.score), rival.name, folder.adapter),
    )
    of_rival = {"step": rival.step, "score": list(rival.score), "figures": dict(rival.figures)}
    made.adopt(rival.place, **of_rival, kept=rival.name, trained=own)


def _described(facts: dict[str, Any]) -> dict[str, Any]:
    """What an adapter's manifest says of training."""
    kept = {"kept": facts["kept"]} if "kept" in facts else {}
    return {"step": facts["step"], **facts["figures"], **kept}


def _resume_point(folder: RunFolder, made: Artifact) -> Path | None:
    """The newest whole checkpoint, if it is on the way to `made`; begins afresh without one.

    The main process chooses it, for all.
    """
    root = folder.checkpoints

    def chosen() -> str | None:
        newest, skipped = checkpoints.newest(root, CHECKPOINT)
        for reason in skipped:
            log.warning("train: skipped a damaged checkpoint, %s", reason)
        step = 0
        if newest is not None:
            facts = checkpoints.facts(newest)
            made.resumes(facts, newest)
            step = facts["step"]
        root.mkdir(parents=True, exist_ok=True)
        checkpoints.clear_staging(root)
        _forget_after(folder, step)
        return None if newest is None else newest.name

    name = main_only(chosen)
    if name is not None:
        log.info("train: going on from %s", name)
    return None if name is None else root / name


def _forget_after(folder: RunFolder, step: int) -> None:
    """Drop log lines and best weights of steps that will be run again."""
    if folder.train_log.exists():
        lines = read_log(folder.train_log)
        kept = [log_line(line) for line in lines if step and line["step"] <= step]
        with replacing(folder.train_log) as temporary:
            temporary.write_text("".join(kept), "utf-8")
    for told in (*folder.selected.glob("*.json"), *folder.candidate_sets.glob("*.json")):
        if not step or int(told.stem) > step:
            told.unlink()
    for best in folder.checkpoints.glob("best-*"):
        if int(best.name.removeprefix("best-")) > step:
            shutil.rmtree(best)


def training_arguments_of(recipe: Recipe) -> dict[str, Any]:
    """What `train` of a recipe says, with what it does not say."""
    return {
        "eval_strategy": "epoch",
        "save_strategy": "steps",  # an epoch may take days
        "save_steps": 100,
        "save_total_limit": 1,
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,  # every adapter takes part in every pass
        **({"tf32": True} if _has_tf32() else {}),
        "run_name": recipe.name,
        **recipe.train,
    }


def arguments_of(recipe: Recipe, folder: RunFolder) -> TrainingArguments:
    given = training_arguments_of(recipe)
    # Their defaults are fractions, and an optimiser may take no whole number for one.
    given |= {name: float(given[name]) for name in FRACTIONS if isinstance(given.get(name), int)}
    given["report_to"] = given.get("report_to") or "none"
    try:
        return TrainingArguments(
            output_dir=str(folder.checkpoints),
            seed=recipe.seed,
            data_seed=recipe.seed,
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
            use_cpu=given.pop("use_cpu", not torch.cuda.is_available()),
            **given,
        )
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise RecipeError(f"train: {type(error).__name__}: {error}") from None


def _has_tf32() -> bool:
    """Whether the GPU multiplies float32 matrices in TF32, which recipes may turn off."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def model_of(recipe: Recipe, sharded: bool = False) -> Any:
    """The model as training begins: with a fresh adapter, or with the one that it starts from."""
    in_blocks = recipe.model.attn_implementation == "flex_attention"
    if in_blocks and default_device() != "cuda":
        raise RecipeError(
            "model.attn_implementation: flex_attention needs a CUDA GPU to train on; set sdpa"
        )
    model = _model_of(recipe, sharded)
    return with_tree_blocks(model) if in_blocks else model


def _model_of(recipe: Recipe, sharded: bool) -> Any:
    base, lora = replace(base_of(recipe), sharded=sharded), recipe.model.lora
    start = start_of(recipe)
    if lora is None:
        if start is not None and not (start / "config.json").is_file():
            raise RecipeError(f"model.start_from: {start} is no whole model; give model.lora")
        whole = base if start is None else replace(base, source=str(start), revision=None)
        return load_model(whole)
    shape = Lora(lora.r, int(lora.alpha), lora.dropout, lora.target_modules, lora.layers)
    model = with_new_lora(load_model(base), shape, recipe.seed, sharded)
    return model if start is None else with_weights(model, start)
