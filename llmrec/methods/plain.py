"""Plain fine-tuning: the real titles of the windows, under the recipe's softmax."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llmrec.data.records import Interactions
from llmrec.evaluation.propensity import propensities
from llmrec.methods.method import Job, Method, Trees, alone
from llmrec.methods.redrawing import redrawing
from llmrec.methods.windows import training_rows
from llmrec.model.losses import Loss
from llmrec.model.softmax import CandidateSoftmax, FullSoftmax, MaskedSoftmax, Softmax
from llmrec.model.trainer import Refresh
from llmrec.recipe import Recipe
from llmrec.text.encoding import Ids, PromptEncoder


def softmax_of(
    recipe: Recipe, encoder: PromptEncoder, completions: Sequence[Ids] | None = None
) -> Softmax:
    """The recipe's softmax over `completions`, by default those of the catalog's titles."""
    if recipe.objective.name == "sft":
        return FullSoftmax()
    wanted = recipe.objective
    if wanted.among == "candidates":
        return CandidateSoftmax(encoder.completions, wanted.tau)
    return MaskedSoftmax(
        encoder.trie, completions or encoder.completions, wanted.tau, wanted.head == "titles"
    )


def rows(job: Job) -> Trees:
    """The windows in the recipe's shape, with the similar users and candidates that they show."""
    return training_rows(job.recipe, job.encoder, job.asked, job.contexts)


def importance_of(job: Job) -> Tensor | None:
    """(N,) what targets weigh by their propensity in training, 1 on average; None: all the same."""
    asked = job.recipe.objective.propensity
    if asked is None:
        return None
    size = len(job.encoder.titles)
    counts = np.bincount(Interactions.read(job.folder.interactions).position, minlength=size)
    weights = 1 / propensities(counts, asked.power, asked.floor)
    return torch.from_numpy(weights * counts.sum() / (weights * counts).sum()).float()


def loss(job: Job) -> Loss:
    """Cross-entropy."""
    return Loss(softmax_of(job.recipe, job.encoder), importance=importance_of(job))


def refresh(job: Job, _: Trees) -> Refresh | None:
    """Candidates drawn anew in each epoch, where the recipe says so."""
    return redrawing(job, rows)


PLAIN = Method(lambda _: {"train": alone}, rows, loss, refresh)
