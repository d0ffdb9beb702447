"""What an experiment can say: the recipe's sections, their keys, defaults and bounds.

Strict: no key beyond these, no value of another kind. Knows nothing of YAML, files or line numbers
(`llmrec.recipe.loading` does) and imports neither torch nor transformers.
"""

from typing import Annotated, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from llmrec.recipe import trainer_arguments as training_arguments
from llmrec.recipe.conformal import Conformal
from llmrec.recipe.data import Data
from llmrec.recipe.decoding import Decode
from llmrec.recipe.demonstrations import Demonstrations
from llmrec.recipe.evaluation import Evaluate
from llmrec.recipe.model import Model
from llmrec.recipe.networks import Baselines, NetworkSection
from llmrec.recipe.prompt import Prompt
from llmrec.recipe.rules import broken
from llmrec.recipe.section import Name, Section, Word
from llmrec.recipe.soft import Soft
from llmrec.recipe.systems import SYSTEMS, SystemName
from llmrec.recipe.training import ObjectiveSection, RowsSection, Validation


class Recipe(Section):
    """One experiment."""

    name: Name
    """Name of the run and of its folder below output_dir."""
    output_dir: Word = "runs"
    """Folder of all runs, relative to where llmrec is started."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seeds subsets, initial adapter weights and the order of training."""
    data: Data
    """Interactions, filters, split."""
    model: Model = Field(default_factory=Model)
    """The language model."""
    prompt: Prompt = Prompt()
    """How a history becomes text."""
    demonstrations: Demonstrations | None = None
    """Similar users shown in prompts; null: none."""
    objective: ObjectiveSection = ObjectiveSection()
    """The training loss."""
    rows: RowsSection = RowsSection()
    """Layout of training examples."""
    train: dict[str, JsonValue] = Field(default=dict(training_arguments.DEFAULTS))
    """Names of transformers.TrainingArguments."""
    soft: Soft | None = None
    """Self-distillation and its curriculum; null: plain fine-tuning."""
    baselines: Baselines = Baselines()
    """How baselines are chosen."""
    network: NetworkSection | None = None
    """A sequential network, trained instead of a language model; null: none."""
    conformal: Conformal | None = None
    """Fine-tuning with conformal prediction; null: without."""
    validation: Validation = Validation()
    """Which weights are kept."""
    decode: Decode = Decode()
    """Constrained beam search."""
    systems: Annotated[list[SystemName], Field(min_length=1)] = Field(default=list(SYSTEMS))
    """Rows of the table."""
    evaluate: Evaluate = Evaluate()
    """Metrics and intervals."""

    @field_validator("train")
    @classmethod
    def _with_defaults(cls, given: dict[str, JsonValue]) -> dict[str, JsonValue]:
        # Keys and kinds are judged key by key in recipe_loading, where a line can be named; this
        # is for recipes made in Python.
        for key, value in given.items():
            if key in training_arguments.REFUSED:
                raise ValueError(f"{key}: {training_arguments.REFUSED[key]}")
            if key not in training_arguments.KINDS:
                raise ValueError(f"{key} is no name of transformers.TrainingArguments")
            if not training_arguments.fits(key, value):
                raise ValueError(f"{key}: {training_arguments.allowed_values(key)}")
        return {**training_arguments.DEFAULTS, **given}

    @field_validator("systems")
    @classmethod
    def _each_once(cls, systems: list[SystemName]) -> list[SystemName]:
        if len(set(systems)) != len(systems):
            raise ValueError("every system once")
        return systems

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        wrong = broken(self)
        if wrong:
            raise ValueError("\n".join(wrong))
        return self
