"""Plain fine-tuning: the real titles of the windows, under the recipe's softmax."""

from collections.abc import Sequence

from llmrec.model.softmax import FullSoftmax, MaskedSoftmax, Softmax
from llmrec.recipe import Recipe
from llmrec.text.encoding import Ids, PromptEncoder


def softmax_of(
    recipe: Recipe, encoder: PromptEncoder, completions: Sequence[Ids] | None = None
) -> Softmax:
    """The recipe's softmax over `completions`, by default those of the catalog's titles."""
    if recipe.objective.name == "sft":
        return FullSoftmax()
    return MaskedSoftmax(encoder.trie, completions or encoder.completions, recipe.objective.tau)
