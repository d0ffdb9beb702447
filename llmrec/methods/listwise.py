"""Learning to choose: the target among its candidates, which are branches of one prompt.

What is learned is what the candidate protocol measures: the softmax over the candidates' own
log-probabilities.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from llmrec.errors import RecipeError
from llmrec.methods.method import Job, Method, Trees, alone
from llmrec.methods.plain import importance_of, softmax_of
from llmrec.methods.redrawing import redrawing
from llmrec.model.losses import KeptValues, ListwiseLoss, Loss
from llmrec.model.trainer import Refresh
from llmrec.text.letters import letter_ids
from llmrec.text.tree import Segment, TokenTree


def candidate_rows(job: Job, others: int | None = None) -> Trees:
    """Each window's prompt with its candidates behind it, the target before all others.

    Where the answer is a letter, a branch is the letter that its candidate has in the prompt.
    `others`: how many of the other candidates, drawn with the recipe's seed; None: all, in order.
    """
    prompting, encoder = job.prompting, job.encoder
    made = []
    for window, prompt, among in zip(job.asked, prompting.ids(), prompting.candidates, strict=True):
        rest = among[among != window.target]
        if others is not None:
            rest = np.random.default_rng([job.recipe.seed, window.row]).permutation(rest)[:others]
        answers: Any = encoder.completions
        if encoder.letters:
            answers = dict(zip(among.tolist(), letter_ids(encoder.title_tokens), strict=False))
        branches = (
            Segment(answers[item], 0, item, kind=min(place, 1))
            for place, item in enumerate([window.target, *rest.tolist()])
        )
        made.append(TokenTree((Segment(prompt), *branches)))
    return made


def loss(job: Job) -> ListwiseLoss:
    """Minus the target's log-probability among its row's candidates."""
    return ListwiseLoss(
        softmax_of(job.recipe, job.encoder),
        tau=job.recipe.objective.listwise.tau,
        importance=importance_of(job),
    )


def with_retriever(job: Job, _: Trees, __: nn.Module, loss: Loss) -> Loss:
    """The loss in which the retriever's log-probabilities stand beside the model's.

    Raises RecipeError for a retriever that has seen the targets, or none.
    """
    asked = job.recipe.objective.listwise
    if asked.fusion == 0:
        return loss
    known = None if job.proposed is None else job.proposed.log_q
    if known is None or job.prompting is None or np.isnan(known).any():
        raise RecipeError(
            "objective.listwise.fusion needs a retriever that can tell what it would say without "
            "the target: data.candidates.from markov or item_knn, or folds of 2 or more"
        )
    places = job.prompting.candidates == np.array([w.target for w in job.windows])[:, None]
    order = np.argsort(~places, axis=1, kind="stable")  # as rows have it: the target first
    values = -asked.tau * asked.fusion * np.take_along_axis(known, order, axis=1)
    return replace(loss, reference=KeptValues(torch.from_numpy(values)))  # type: ignore[call-arg]


def refresh(job: Job, _: Trees) -> Refresh | None:
    """Candidates drawn anew in each epoch, where the recipe says so."""
    return redrawing(job, candidate_rows)


LISTWISE = Method(
    lambda _: {"train": alone}, candidate_rows, loss, refresh, compared=(1,), begin=with_retriever
)
