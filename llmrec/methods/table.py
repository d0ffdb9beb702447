"""Which method a recipe has: that of the first of these sections that it has."""

from llmrec.methods.adaptrec import ADAPTREC
from llmrec.methods.conformal import CONFORMAL
from llmrec.methods.groups import GRPO
from llmrec.methods.listwise import LISTWISE
from llmrec.methods.method import Method
from llmrec.methods.networks import NETWORK
from llmrec.methods.plain import PLAIN
from llmrec.methods.preferences import DPO, SDPO
from llmrec.methods.soft.training import SOFT
from llmrec.recipe import Recipe
from llmrec.recipe.rules import held

METHODS = {
    "network": NETWORK,
    "conformal": CONFORMAL,
    "soft": SOFT,
    "objective.listwise": LISTWISE,
    "objective.dpo": DPO,
    "objective.sdpo": SDPO,
    "objective.grpo": GRPO,
    "demonstrations.selection": ADAPTREC,
}


def method_of(recipe: Recipe) -> Method:
    """The recipe's method; fine-tuning and nothing else where it has none of the sections."""
    return next(
        (method for path, method in METHODS.items() if held(recipe, path) is not None), PLAIN
    )
