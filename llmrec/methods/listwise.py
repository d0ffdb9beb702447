"""Learning to choose: the target among its candidates, which are branches of one prompt.

What is learned is what the candidate protocol measures: the softmax over the candidates' own
log-probabilities.
"""

from llmrec.methods.method import Job, Method, Trees, alone
from llmrec.methods.plain import softmax_of
from llmrec.model.losses import ListwiseLoss
from llmrec.text.tree import Segment, TokenTree


def rows(job: Job) -> Trees:
    """Each window's prompt with its candidates behind it, the target before all others."""
    prompting, completions = job.prompting, job.encoder.completions
    made = []
    for window, prompt, among in zip(job.asked, prompting.ids(), prompting.candidates, strict=True):
        others = [item for item in among.tolist() if item != window.target]
        branches = (
            Segment(completions[item], 0, item, kind=min(place, 1))
            for place, item in enumerate([window.target, *others])
        )
        made.append(TokenTree((Segment(prompt), *branches)))
    return made


def loss(job: Job) -> ListwiseLoss:
    """Minus the target's log-probability among its row's candidates."""
    return ListwiseLoss(softmax_of(job.recipe, job.encoder), tau=job.recipe.objective.listwise.tau)


LISTWISE = Method(lambda _: {"train": alone}, rows, loss, compared=(1,))
