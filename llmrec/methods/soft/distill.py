"""Distill: the fine-tuned model answers its own training prompts (step 2 of SOFT).

Answers are made once per prompt, kept batch by batch so that an interrupted run goes on, and shared
among processes; the file is the same bytes either way.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from llmrec.data.batching import Batch
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.errors import RecipeError
from llmrec.inference.engine import Engine, by_beams, plan_of
from llmrec.inference.free_answers import Embedding, own_answers
from llmrec.inference.from_recipe import base_of, encoder_of, sft_adapter_of
from llmrec.methods.soft.answer_file import Answers
from llmrec.methods.soft.pairs import questions_of
from llmrec.methods.windows import training_windows
from llmrec.model.forward import require_tree_support
from llmrec.model.in_flight import by_turns
from llmrec.model.loading import load_tuned
from llmrec.recipe import Recipe
from llmrec.recipe.soft import Distill
from llmrec.runs import made
from llmrec.runs.batch_files import answer_in_parts, collected, discard
from llmrec.runs.folder import RunFolder
from llmrec.runs.processes import begun, main_first, main_only, together

log = logging.getLogger("llmrec")


def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Write `distilled/answers.parquet` unless it stands; returns its figures.

    Raises LlmrecError where there is no fine-tuned adapter to ask.
    """
    soft = recipe.soft
    if soft is None:
        raise RecipeError("the recipe has no section `soft`, so there is nothing to distill")
    state = begun(recipe, folder.root)
    with main_first():
        encoder = encoder_of(recipe, Catalog.read(folder.items), folder)
    windows = training_windows(recipe, Examples.read(folder.examples("train")))
    questions = questions_of(recipe, encoder, windows)
    adapter = sft_adapter_of(recipe, folder)
    artifact = made.answers(recipe, folder)
    if main_only(lambda: artifact.facts_or_none() is not None):
        standing = Answers.read(folder.answers)
        standing.require_questions(questions, folder.answers)
        log.info("distill: %s stands already, nothing to do", artifact.place)
        return {"answers": str(folder.answers), "skipped": True, **standing.figures}
    parts = folder.answers / f".parts-{artifact.fingerprint[:16]}"

    loaded: list[Any] = []

    def model() -> Any:
        if not loaded:
            loaded.append(load_tuned(base_of(recipe), adapter))
            require_tree_support(loaded[0], recipe.prompt.max_tokens)
        return loaded[0]

    def begin() -> Callable[[Batch], list[Any]]:
        engine = Engine(model(), encoder, decode).behind(prompts)
        return lambda batch: [
            [asdict(beam) for beam in beams]
            for beams in own_answers(engine, [prompts[i] for i in batch], soft.distill)
        ]

    prompts = [encoder.prompt(question.history).ids for question in questions]
    decode = by_beams(recipe.decode, soft.distill.beams)
    plan = plan_of(prompts, decode)
    over = partial(by_turns, decode.batches_in_flight)
    answer_in_parts(parts, plan, begin, "distill", over)
    if state.is_main_process:
        beams, seconds = collected(parts)
        # All texts at once, in one order: a state's last bits depend on what it is read beside.
        texts = [beam["text"] for one in beams for beam in one]
        truths = [q.truth for q, one in zip(questions, beams, strict=True) for _ in one]
        distances = iter(Embedding(encoder).distances(model(), texts, truths))
        measured = [[{**beam, "distance": float(next(distances))} for beam in one] for one in beams]
        chosen = [chosen_beam(one, soft.distill) for one in measured]
        columns = ([c[name] for c in chosen] for name in ("text", "position", "distance"))
        artifact.write(Answers(questions, *columns, measured).write)
        discard(parts)
        log.info("distill: %d answers in %.0f s", len(questions), seconds)
    together()
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
