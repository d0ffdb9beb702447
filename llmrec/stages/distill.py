"""`llmrec distill`: prepared examples and a fine-tuned adapter in, its answers out."""

from typing import Any

from llmrec.methods.soft import distill
from llmrec.recipe import Recipe
from llmrec.runs.folder import RunFolder
from llmrec.runs.processes import begun, main_first
from llmrec.stages import prepare
from llmrec.stages.holding import alone


@alone("distill")
def run(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Prepare, then let the fine-tuned model answer its training prompts; see `soft.distill`."""
    begun(recipe, folder.root)
    with main_first():
        prepare.run(recipe, folder)
    return distill.run(recipe, folder)
