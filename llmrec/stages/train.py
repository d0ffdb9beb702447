"""Train: prepared examples in, the adapter that did best in validation out.

Goes on from the newest whole checkpoint, and does nothing when an adapter of the same settings
stands already.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import DistributedType, PartialState
from transformers import TrainingArguments

from llmrec.data import sealed as checkpoints
from llmrec.data.candidates import draw_candidates
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples, Interactions
from llmrec.errors import LlmrecError, RecipeError
from llmrec.inference.from_recipe import base_of, encoder_of
from llmrec.inference.prompting import Prompting, prompting_of
from llmrec.methods.adaptrec import Reselecting
from llmrec.methods.conformal import CandidateRows, LiveCandidates, candidate_rows, conformal_loss
from llmrec.methods.plain import softmax_of
from llmrec.methods.soft.answer_file import Answers, Question
from llmrec.methods.soft.curriculum import curriculum_of
from llmrec.methods.validation import validation_of
from llmrec.methods.windows import (
    Window,
    as_examples,
    questions_of,
    row_targets,
    training_rows,
    training_windows,
    with_answers,
)
from llmrec.model.forward import require_tree_support
from llmrec.model.kept_weights import BEST, CHECKPOINT, read_log
from llmrec.model.loading import Lora, load_model, with_new_lora
from llmrec.model.losses import Loss
from llmrec.model.trainer import Refresh, TreeTrainer
from llmrec.recipe import Recipe
from llmrec.runs.artifact import Artifact
from llmrec.runs.folder import RunFolder
from llmrec.runs.made import adapter
from llmrec.runs.processes import processes
from llmrec.stages import prepare
from llmrec.text.encoding import Ids, PromptEncoder
from llmrec.text.rows import with_own_answers
from llmrec.text.tree import TokenTree

log = logging.getLogger("llmrec")


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Train as the recipe says; returns what `adapter/` then holds.

    With a section `soft` this is its last step alone: it needs the answers of `distill`.
    """
    state = processes()
    encoder, windows = _prepared(recipe, folder)
    prompting = training_prompting(recipe, folder, encoder, windows)
    rows = _rows(recipe, folder, encoder, windows, prompting)
    completions: Sequence[Ids] = encoder.completions
    questions: list[Question] = []
    if recipe.soft is not None:
        questions = questions_of(recipe, encoder, windows)
        answers = Answers.read(answers_of(recipe, folder))
        answers.require_questions(questions, answers_of(recipe, folder))
        rows, completions = with_answers(rows, answers, encoder)
    made = adapter(recipe, folder)
    done = made.facts_or_none()
    if done is not None:
        log.info(
            "train: %s stands already (best at step %s), nothing to do",
            folder.adapter,
            done["step"],
        )
        return {**_described(done), "adapter": str(folder.adapter), "skipped": True}
    loss = Loss(softmax_of(recipe, encoder, completions))
    if recipe.conformal is not None:
        loss = conformal_loss(recipe, encoder, Catalog.read(folder.items))
    model = load_model(base_of(recipe))
    require_tree_support(model, recipe.prompt.max_tokens)
    model = with_new_lora(model, _lora(recipe), recipe.seed) if recipe.model.lora else model
    resume = _resume_point(folder, made, state)
    curriculum = None
    if recipe.soft is not None:
        curriculum = curriculum_of(recipe, encoder, questions, read_log(folder.train_log))
    trainer = TreeTrainer(
        model,
        _arguments(recipe, folder),
        rows,
        loss,
        validation_of(recipe, folder, encoder),
        folder.train_log,
        curriculum,
        recipe.validation.patience,
        _refresh(recipe, folder, windows, prompting, rows),
        made.key,
    )
    selects = recipe.demonstrations is not None and recipe.demonstrations.selection is not None
    asks = selects or recipe.conformal is not None
    if recipe.soft is not None or recipe.validation.metric != "nll" or asks:
        _require_whole_weights(trainer.accelerator)
    log.info("train: %d rows of shape %s, %d targets", len(rows), recipe.rows.shape, _targets(rows))
    steps = trainer.go(resume)
    if state.is_main_process:
        _publish(folder, made)
    state.wait_for_everyone()
    known = _described(checkpoints.facts(folder.adapter))
    return {"adapter": str(folder.adapter), **known, "steps": steps, "skipped": False}


def _require_whole_weights(accelerator: Any) -> None:
    """Processes that search read the model unequally often, which sharded weights cannot take."""
    plugin = accelerator.state.deepspeed_plugin
    sharded = accelerator.distributed_type == DistributedType.FSDP or (
        plugin is not None and plugin.zero_stage == 3
    )
    if sharded:
        raise RecipeError(
            "soft, conformal, demonstrations.selection and validation.metric hr or ndcg ask the "
            "live model while it trains, and under FSDP or ZeRO-3 no process holds it whole; "
            "launch with ddp or zero2"
        )


def _prepared(recipe: Recipe, folder: RunFolder) -> tuple[PromptEncoder, list[Window]]:
    with processes().main_process_first():
        prepare.run(recipe, folder)
        encoder = encoder_of(recipe, Catalog.read(folder.items), folder)
    return encoder, training_windows(recipe, Examples.read(folder.examples("train")))


def training_prompting(
    recipe: Recipe,
    folder: RunFolder,
    encoder: PromptEncoder,
    windows: Sequence[Window],
    keep: bool = True,
) -> Prompting | None:
    """The windows' prompts with their similar users and candidates; None where there are neither.

    A window's candidates are drawn as those of an example are, and what is shown of other users
    ended before its target was chosen. `keep`: the users found, in the run.
    """
    shown = recipe.demonstrations is not None or recipe.data.candidates is not None
    if not shown or recipe.rows.shape != "single":  # rows of several targets show neither
        return None
    train = Examples.read(folder.examples("train"))
    asked = as_examples(windows, train, Interactions.read(folder.interactions))
    candidates = None
    if recipe.data.candidates is not None:
        candidates = draw_candidates(
            asked, len(encoder.titles), recipe.data.candidates, recipe.seed, purpose=0
        )
    with processes().main_process_first():
        return prompting_of(recipe, folder, encoder, "train", asked, candidates, keep)


def _rows(
    recipe: Recipe,
    folder: RunFolder,
    encoder: PromptEncoder,
    windows: Sequence[Window],
    prompting: Prompting | None,
) -> Sequence[TokenTree]:
    if recipe.conformal is not None:
        return candidate_rows(recipe, folder, encoder, windows)
    return training_rows(recipe, encoder, windows, prompting and prompting.shown_first())


def _targets(rows: Sequence[TokenTree]) -> int:
    return len(rows) if isinstance(rows, CandidateRows) else sum(map(row_targets, rows))


def _refresh(
    recipe: Recipe,
    folder: RunFolder,
    windows: Sequence[Window],
    prompting: Prompting | None,
    rows: Sequence[TokenTree],
) -> Refresh | None:
    if isinstance(rows, CandidateRows):
        return LiveCandidates(recipe, folder, rows)
    if prompting is None or prompting.selecting is None:
        return None
    reselecting = Reselecting(recipe, folder, windows, prompting)
    return lambda model, step, _: reselecting(model, step)


def answers_of(recipe: Recipe, folder: RunFolder) -> Path:
    """The folder of the model's own answers: the recipe's, or else the run's."""
    given = recipe.soft.answers if recipe.soft else None
    return Path(given) if given else folder.answers


def preview(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """What training would read, do and need: lengths, truncation, steps, parameters, disk.

    With a section `soft` of its last step, the lengths as if the model answered the real titles.
    """
    encoder, windows = _prepared(recipe, folder)
    prompting = training_prompting(recipe, folder, encoder, windows)
    rows = _rows(recipe, folder, encoder, windows, prompting)
    if recipe.soft is not None:
        rows = [
            with_own_answers(
                row, [s.target for s in row.segments if s.target >= 0], encoder.completions
            )
            for row in rows
        ]
    lengths = np.array([len(row) for row in rows])
    train = Examples.read(folder.examples("train"))
    dropped = [
        encoder.prompt(h).dropped > max(0, len(h) - recipe.prompt.max_history)
        for h in train.histories()[:2000]
    ]
    batch = (
        recipe.train["per_device_train_batch_size"]
        * recipe.train.get("gradient_accumulation_steps", 1)
        * processes().num_processes
    )
    model = load_model(base_of(recipe))
    total = sum(p.numel() for p in model.parameters())
    if recipe.model.lora:
        model = with_new_lora(model, _lora(recipe), recipe.seed)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    epochs = float(recipe.train["num_train_epochs"])
    kept = int(recipe.train.get("save_total_limit") or 1) + 2  # best, adapter
    return {
        "rows": len(rows),
        "targets": _targets(rows),
        "row_tokens": {f"p{q}": int(np.percentile(lengths, q)) for q in (5, 50, 95, 100)},
        "share_of_prompts_that_lost_titles_to_max_tokens": float(np.mean(dropped)),
        "optimiser_steps": int(-(-len(rows) // batch) * epochs),
        "parameters": total,
        "trainable_parameters": trainable,
        "disk_needed_bytes": trainable * 4 * 3 * kept,  # weights and two moments of AdamW
        "disk_free_bytes": shutil.disk_usage(_existing(folder.root)).free,
    }


def _publish(folder: RunFolder, made: Artifact) -> None:
    """Put the weights that did best in validation in place."""
    best, skipped = checkpoints.newest(folder.checkpoints, BEST)
    if best is None:
        raise LlmrecError(
            f"{folder.checkpoints}: no weights that verify ({'; '.join(skipped) or 'none saved'})"
        )
    known, staged = checkpoints.facts(best), made.staged()
    shutil.copytree(best, staged)
    made.seal(staged, step=known["step"], score=known["score"], figures=known["figures"])


def _described(facts: dict[str, Any]) -> dict[str, Any]:
    """What an adapter's manifest says of training."""
    return {"step": facts["step"], **facts["figures"]}


def _resume_point(folder: RunFolder, made: Artifact, state: PartialState) -> Path | None:
    """The newest whole checkpoint, if it is on the way to `made`; begins afresh without one."""
    root = folder.checkpoints
    with state.main_process_first():
        newest, skipped = checkpoints.newest(root, CHECKPOINT)
        for reason in skipped:
            log.warning("train: skipped a damaged checkpoint, %s", reason)
        step = 0
        if newest is not None:
            facts = checkpoints.facts(newest)
            made.resumes(facts, newest)
            step = facts["step"]
        if state.is_main_process:
            root.mkdir(parents=True, exist_ok=True)
            checkpoints.clear_staging(root)
            _forget_after(folder, step)
    if newest:
        log.info("train: going on from %s", newest.name)
    return newest


def _forget_after(folder: RunFolder, step: int) -> None:
    """Drop log lines and best weights of steps that will be run again."""
    if folder.train_log.exists():
        lines = read_log(folder.train_log)
        kept = [json.dumps(line) + "\n" for line in lines if step and line["step"] <= step]
        folder.train_log.write_text("".join(kept), "utf-8")
    for told in (*folder.selected.glob("*.json"), *folder.candidate_sets.glob("*.json")):
        if not step or int(told.stem) > step:
            told.unlink()
    for best in folder.checkpoints.glob("best-*"):
        if int(best.name.removeprefix("best-")) > step:
            shutil.rmtree(best)


def _arguments(recipe: Recipe, folder: RunFolder) -> TrainingArguments:
    given: dict[str, Any] = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "disable_tqdm": True,
        **recipe.train,
    }
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
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"train: {error}") from None


def _lora(recipe: Recipe) -> Lora:
    lora = recipe.model.lora
    assert lora is not None  # noqa: S101  callers ask first
    return Lora(lora.r, int(lora.alpha), lora.dropout, lora.target_modules)


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
