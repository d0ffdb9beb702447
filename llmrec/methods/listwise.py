"""Learning to choose: the target among its candidates, which are branches of one prompt.

What is learned is what the candidate protocol measures: the softmax over the candidates' own
log-probabilities.
"""

from typing import Any

import numpy as np

from llmrec.methods.method import Job, Method, Trees, alone
from llmrec.methods.plain import importance_of, softmax_of
from llmrec.model.losses import ListwiseLoss
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


LISTWISE = Method(lambda _: {"train": alone}, candidate_rows, loss, compared=(1,))
