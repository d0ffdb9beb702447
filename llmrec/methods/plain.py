"""Plain fine-tuning: the real titles of the windows, under the recipe's softmax."""

from collections.abc import Sequence

from llmrec.methods.method import Job, Method, Trees, alone
from llmrec.methods.windows import training_rows
from llmrec.model.losses import Loss
from llmrec.model.softmax import FullSoftmax, MaskedSoftmax, Softmax
from llmrec.recipe import Recipe
from llmrec.text.encoding import Ids, PromptEncoder


def softmax_of(
    recipe: Recipe, encoder: PromptEncoder, completions: Sequence[Ids] | None = None
) -> Softmax:
    """The recipe's softmax over `completions`, by default those of the catalog's titles."""
    if recipe.objective.name == "sft":
        return FullSoftmax()
    wanted = recipe.objective
    return MaskedSoftmax(
        encoder.trie, completions or encoder.completions, wanted.tau, wanted.head == "titles"
    )


def rows(job: Job) -> Trees:
    """The windows in the recipe's shape, with the similar users and candidates that they show."""
    return training_rows(job.recipe, job.encoder, job.asked, job.contexts)


def loss(job: Job) -> Loss:
    """Cross-entropy."""
    return Loss(softmax_of(job.recipe, job.encoder))


PLAIN = Method(lambda _: {"train": alone}, rows, loss)
