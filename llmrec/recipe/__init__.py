"""What an experiment can say, and how it is read and checked. Imports neither torch nor a stage."""

from llmrec.recipe.experiment import Recipe

__all__ = ["Recipe"]
