"""SOFT as a method: three steps, the last over pairs of a real title and the model's own answer.

Source: Self-Adaptive Self-Distillation Fine-Tuning, arXiv 2505.20771.
"""

from collections.abc import Mapping
from typing import Any

from llmrec.methods import plain
from llmrec.methods.method import Curriculum, Job, Method, Step, Train, Trees, alone
from llmrec.methods.soft import distill
from llmrec.methods.soft.answer_file import Answers
from llmrec.methods.soft.choosing import best_alpha, teacher
from llmrec.methods.soft.curriculum import curriculum_of
from llmrec.methods.soft.pairs import completions_with, questions_of, with_answers
from llmrec.methods.windows import training_rows
from llmrec.model.kept_weights import read_log
from llmrec.model.losses import Loss
from llmrec.recipe import Recipe
from llmrec.runs.folder import RunFolder
from llmrec.runs.made import answers_file
from llmrec.text.rows import with_own_answers


def rows(job: Job) -> Trees:
    """The windows' rows, with the model's own answer beside each target.

    Raises DataError where there are none, or answers to other prompts.
    """
    place = answers_file(job.recipe, job.folder).parent
    answers = Answers.read(place)
    answers.require_questions(questions_of(job.recipe, job.encoder, job.windows), place)
    every = training_rows(job.recipe, job.encoder, job.windows)
    paired, _ = with_answers(every, answers, job.encoder)
    return paired if job.chosen is None else [paired[job.chosen]]


def shown(job: Job) -> Trees:
    """The rows; before there are answers, as if the model answered with the real titles."""
    if answers_file(job.recipe, job.folder).exists():
        return rows(job)
    return [
        with_own_answers(
            row, [s.target for s in row.segments if s.target >= 0], job.encoder.completions
        )
        for row in plain.rows(job)
    ]


def loss(job: Job) -> Loss:
    """Cross-entropy, over the titles and whatever else the model answered; before there are
    answers over the titles, as for the rows that are `shown`."""
    place, completions = answers_file(job.recipe, job.folder), job.encoder.completions
    if place.exists():
        completions, _ = completions_with(Answers.read(place.parent), job.encoder)
    return Loss(plain.softmax_of(job.recipe, job.encoder, completions))


def curriculum(job: Job) -> Curriculum:
    """What the two kinds of targets weigh in each epoch."""
    questions = questions_of(job.recipe, job.encoder, job.windows)
    return curriculum_of(job.recipe, job.encoder, questions, read_log(job.folder.train_log))


def steps(recipe: Recipe) -> Mapping[str, Step]:
    """Fine-tuning, its answers, training on both; what the recipe hands in is not made."""
    soft = recipe.soft
    made: dict[str, Step] = {}
    if soft is not None and soft.answers is None:
        if soft.sft_adapter is None:
            made["sft"] = _fine_tuned
        made["distill"] = _distilled
    return {**made, "soft": best_alpha if soft is not None and soft.alpha == "auto" else alone}


def _fine_tuned(recipe: Recipe, folder: RunFolder, train: Train) -> dict[str, Any]:
    return train(recipe.model_copy(update={"soft": None}), folder.sft)


def _distilled(recipe: Recipe, folder: RunFolder, train: Train) -> dict[str, Any]:
    return distill.run(recipe, folder)


SOFT = Method(
    steps, rows, loss, curriculum=curriculum, shown=shown, main="soft", asks=True, rival=teacher
)
