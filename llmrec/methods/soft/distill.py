"""Distill: the fine-tuned model answers its own training prompts (step 2 of SOFT).

Answers are made once per prompt, kept batch by batch so that an interrupted run goes on, and shared
among processes; the file is the same bytes either way.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmrec.data.catalog import Catalog
from llmrec.data.files import sha256_of
from llmrec.data.records import Examples
from llmrec.decoding.beginning import beginning_of
from llmrec.errors import DataError, LlmrecError, RecipeError
from llmrec.inference.free_answers import Answering, Embedding
from llmrec.inference.from_recipe import base_of, encoder_of, sft_adapter_of, weights_hash
from llmrec.methods.soft.answer_file import FILE, Answers
from llmrec.methods.windows import questions_of, training_windows
from llmrec.model.forward import require_tree_support
from llmrec.model.loading import load_tuned
from llmrec.recipe import Recipe
from llmrec.recipe.soft import Distill
from llmrec.runs.batch_files import Batch, answer_in_parts, batches, collected, discard
from llmrec.runs.folder import RunFolder
from llmrec.runs.processes import processes

log = logging.getLogger("llmrec")


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `distilled/answers.parquet` unless it stands; returns its figures.

    Raises LlmrecError where there is no fine-tuned adapter to ask.
    """
    soft = recipe.soft
    if soft is None:
        raise RecipeError("the recipe has no section `soft`, so there is nothing to distill")
    state = processes()
    with state.main_process_first():
        encoder = encoder_of(recipe, Catalog.read(folder.items), folder)
    windows = training_windows(recipe, Examples.read(folder.examples("train")))
    questions = questions_of(recipe, encoder, windows)
    adapter = sft_adapter_of(recipe, folder)
    settings = _settings(recipe, folder, adapter)
    standing = _standing(folder.answers, settings)
    if standing is not None:
        standing.require_questions(questions, folder.answers)
        log.info("distill: %s stands already, nothing to do", folder.answers / FILE)
        return {"answers": str(folder.answers), "skipped": True, **standing.figures}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    parts = folder.answers / f".parts-{key}"

    loaded: list[Any] = []

    def model() -> Any:
        if not loaded:
            loaded.append(load_tuned(base_of(recipe), adapter))
            require_tree_support(loaded[0], recipe.prompt.max_tokens)
        return loaded[0]

    def begin() -> Callable[[Batch], list[Any]]:
        answering, asked = Answering(encoder, soft.distill, recipe.decode), model()
        prompts = (encoder.prompt(question.history).ids for question in questions)
        beginning = beginning_of(asked, prompts)
        return lambda batch: [
            [asdict(beam) for beam in beams]
            for beams in answering.ask(
                asked, [questions[i].history for i in batch], beginning=beginning
            )
        ]

    lengths = [len(encoder.prompt(question.history).ids) for question in questions]
    plan = batches(lengths, recipe.decode.batch_size)
    answer_in_parts(parts, plan, begin, state, "distill")
    if state.is_main_process:
        beams, seconds = collected(parts)
        # All texts at once, in one order: a state's last bits depend on what it is read beside.
        texts = [beam["text"] for one in beams for beam in one]
        truths = [q.truth for q, one in zip(questions, beams, strict=True) for _ in one]
        distances = iter(Embedding(encoder).distances(model(), texts, truths))
        measured = [[{**beam, "distance": float(next(distances))} for beam in one] for one in beams]
        chosen = [chosen_beam(one, soft.distill) for one in measured]
        columns = ([c[name] for c in chosen] for name in ("text", "position", "distance"))
        Answers(questions, *columns, measured, settings).write(folder.answers)
        discard(parts)
        log.info("distill: %d answers in %.0f s", len(questions), seconds)
    state.wait_for_everyone()
    return {
        "answers": str(folder.answers),
        "skipped": False,
        **Answers.read(folder.answers).figures,
    }


def chosen_beam(beams: list[dict[str, Any]], distill: Distill) -> dict[str, Any]:
    """The beam that is the answer: the first, or the first of those nearest to the truth."""
    if distill.select == "first_beam":
        return beams[0]
    return min(beams, key=lambda beam: float(beam["distance"]))


def _standing(folder: Path, settings: dict[str, Any]) -> Answers | None:
    """The answers of these very settings, if they are there and readable."""
    if not (folder / FILE).exists():
        return None
    try:
        standing = Answers.read(folder)
    except DataError as error:
        log.warning("distill: %s; making them again", error)
        return None
    if standing.settings != settings:
        raise LlmrecError(
            f"{folder / FILE} was made with other settings, data or another adapter; give the "
            "recipe another name, or remove that folder"
        )
    return standing


def _settings(recipe: Recipe, folder: RunFolder, adapter: Path) -> dict[str, Any]:
    assert recipe.soft is not None  # noqa: S101  run asks first
    known: dict[str, Any] = recipe.model_dump(
        mode="json",
        include={
            "seed": True,
            "prompt": True,
            "rows": True,
            "decode": {"renormalise"},
            "model": {"base", "revision", "dtype", "quantization"},
        },
    )
    return {
        **known,
        "distill": recipe.soft.distill.model_dump(mode="json"),
        "adapter": weights_hash(adapter),
        "data": sha256_of(folder.data / "manifest.json"),
    }
