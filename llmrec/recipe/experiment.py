"""What an experiment can say: the recipe's sections, their keys, defaults and bounds.

Strict: no key beyond these, no value of another kind. Knows nothing of YAML, files or line numbers
(`llmrec.recipe.loading` does) and imports neither torch nor transformers.
"""

from operator import attrgetter
from typing import Annotated, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from llmrec.recipe import trainer_arguments as training_arguments
from llmrec.recipe.conformal import Conformal
from llmrec.recipe.data import Data
from llmrec.recipe.decoding import Decode
from llmrec.recipe.demonstrations import Demonstrations
from llmrec.recipe.evaluation import Evaluate
from llmrec.recipe.model import Model
from llmrec.recipe.networks import Network
from llmrec.recipe.prompt import Prompt
from llmrec.recipe.section import Name, Section, Word
from llmrec.recipe.soft import Soft
from llmrec.recipe.systems import SYSTEMS, SystemName, parsed
from llmrec.recipe.training import Objective, Rows, Validation


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
    model: Model = Model()
    """The language model."""
    prompt: Prompt = Prompt()
    """How a history becomes text."""
    demonstrations: Demonstrations | None = None
    """Similar users shown in prompts; null: none."""
    objective: Objective = Objective()
    """The training loss."""
    rows: Rows = Rows()
    """Layout of training examples."""
    train: dict[str, JsonValue] = Field(default=dict(training_arguments.DEFAULTS))
    """Names of transformers.TrainingArguments."""
    soft: Soft | None = None
    """Self-distillation and its curriculum; null: plain fine-tuning."""
    network: Network | None = None
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
    def _distilled(self) -> Self:
        if self.soft is None:
            return self
        if self.model.lora is None:
            raise ValueError(
                "soft measures distances in the untuned model, which is the tuned one with its "
                "adapter off; it needs model.lora"
            )
        if self.objective.name == "msl" and self.soft.distill.decode == "free":
            raise ValueError(
                "objective msl knows titles of the catalog alone and soft.distill.decode free "
                "gives other text too; set decode: constrained or objective sft"
            )
        return self

    @model_validator(mode="after")
    def _networked(self) -> Self:
        if self.network is None:
            return self
        steps = {system.step for system in parsed(self.systems) if system.kind == "network"}
        if "ce" in steps and "cpft" not in steps:
            raise ValueError(
                "system network_ce is trained for as many steps as network_cpft, "
                "which is not among the systems"
            )
        other = [s.name for s in parsed(self.systems) if s.has_adapter]
        if other:
            raise ValueError(
                f"a recipe with section network trains no language model; drop "
                f"system {other[0]} or the section"
            )
        if self.data.candidates is not None:
            raise ValueError("a network ranks the whole catalog; drop data.candidates or network")
        return self

    @model_validator(mode="after")
    def _conformal_language_model(self) -> Self:
        if self.conformal is None or self.network is not None:
            return self
        if self.rows.shape != "single":
            raise ValueError(
                "conformal compares the candidates of one target; it needs rows.shape single"
            )
        if self.soft is not None or self.demonstrations is not None:
            raise ValueError("conformal cannot be combined with soft or demonstrations")
        if self.data.candidates is not None:
            raise ValueError("conformal draws its own candidates; drop data.candidates")
        return self

    @model_validator(mode="after")
    def _calibrated(self) -> Self:
        if self.evaluate.calibration is not None and self.data.candidates is not None:
            raise ValueError(
                "calibration is of answers from the whole catalog; drop "
                "evaluate.calibration or data.candidates"
            )
        return self

    @model_validator(mode="after")
    def _ranked(self) -> Self:
        validation = self.validation
        constrained = validation.metric != "nll" and validation.answer == "constrained"
        beams = None if self.decode.kind == "best_first" else self.decode.beams
        if constrained and beams is not None and validation.k > beams:
            raise ValueError(
                f"validation.k = {validation.k} items cannot come out of decode.beams = {beams}"
            )
        return self

    @model_validator(mode="after")
    def _demonstrated(self) -> Self:
        if self.demonstrations is None:
            return self
        if self.prompt.task != "similar_users" and self.prompt.file is None:
            raise ValueError(
                "demonstrations are shown by prompt.task similar_users, or by a "
                "prompt.file of your own"
            )
        if self.rows.shape != "single":
            raise ValueError(
                "demonstrations are those of one target, chosen by what came before it, so they "
                "need rows.shape single"
            )
        if self.soft is not None:
            raise ValueError("demonstrations and soft cannot be combined; drop one of them")
        return self

    @model_validator(mode="after")
    def _chosen_among(self) -> Self:
        if self.data.candidates is None:
            return self
        if self.soft is not None:
            raise ValueError("soft knows no candidates; drop data.candidates or soft")
        if self.validation.metric != "nll" and self.validation.answer == "grounding":
            raise ValueError(
                "validation.answer grounding ranks the whole catalog; drop it or data.candidates"
            )
        shown = self.prompt.task == "similar_users" or self.prompt.file is not None
        if self.rows.shape != "single" and shown:
            raise ValueError(
                "candidates are those of one target; show them with rows.shape single, or take "
                "prompt.task next_item, which does not show them"
            )
        other = [s.name for s in parsed(self.systems) if s.wants_catalog]
        if other:
            raise ValueError(
                f"system {other[0]} answers from the whole catalog; drop it or data.candidates"
            )
        return self

    @model_validator(mode="after")
    def _systems_have_what_they_need(self) -> Self:
        for system in parsed(self.systems):
            for path, why in system.needs.items():
                if attrgetter(path)(self) is None:
                    what = path if "." in path else f"section {path}"
                    raise ValueError(f"system {system.name} {why}; it needs {what}")
        return self
