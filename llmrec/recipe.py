"""What an experiment can say: the recipe's sections, their keys, defaults and bounds.

Strict: no key beyond these, no value of another kind. Knows nothing of YAML, files or line numbers
(`llmrec.recipe_loading` does) and imports neither torch nor transformers.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from llmrec import training_arguments
from llmrec.recipe_decoding import Decode
from llmrec.recipe_demonstrations import Demonstrations
from llmrec.recipe_evaluation import Evaluate
from llmrec.recipe_networks import Conformal, Network
from llmrec.recipe_section import Count, Name, Section, Share, Word
from llmrec.recipe_training import Lora, Objective, Rows, Soft, Validation

COMMIT = re.compile(r"[0-9a-f]{40}")
Baseline = Literal["popularity", "recent_popularity", "markov", "item_knn", "tgh", "sasrec"]
NetworkSystem = Literal["network", "network_ce", "network_cpft"]
System = Literal[
    Baseline, NetworkSystem, "untuned", "tuned", "tuned_sft", "untuned_guided", "tuned_guided",
    "untuned_grounded", "tuned_grounded", "untuned_free", "tuned_free",
]  # fmt: skip
# What a recipe that names none gets. Free text to ground is written far more slowly, tuned_sft is
# what SOFT began with, and the network* are of a section `network`.
SYSTEMS: tuple[System, ...] = (
    "popularity", "recent_popularity", "markov", "item_knn", "tgh", "sasrec",
    "untuned", "tuned", "untuned_guided", "tuned_guided",
)  # fmt: skip


class Columns(Section):
    """What the columns of a CSV, TSV, JSONL or Parquet source are called."""

    user_id: Word = "user_id"
    """Column of the user."""
    item_id: Word = "item_id"
    """Column of the item's id."""
    timestamp: Word = "timestamp"
    """Column of the time of the interaction."""
    rating: Word | None = "rating"
    """Column of the rating; null: there is none."""
    title: Word | None = "title"
    """Column of the item's title; null: none."""


class Subset(Section):
    """How many examples of each split are kept, drawn with the recipe's seed; null: all."""

    train: Count | None = None
    """Training examples kept."""
    valid: Count | None = None
    """Validation examples kept."""
    test: Count | None = None
    """Test examples kept."""


class Data(Section):
    """Which interactions, how they are filtered, and how they are split."""

    source: Word
    """A name that `llmrec fetch data` knows (ml-100k, ml-1m), or a file or folder."""
    format: Literal[
        "auto", "movielens", "recbole", "amazon2023", "amazon2018", "csv", "tsv", "jsonl", "parquet"
    ] = "auto"
    """How the source is written; auto: seen from its files."""
    items: Word | None = None
    """File of items and titles, where it is not found with the source."""
    columns: Columns = Columns()
    """Column names of the source."""
    min_rating: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Interactions with a lower rating are dropped; null: none are."""
    k_core: Annotated[int, Field(ge=0)] = 0
    """Users and items with fewer interactions are dropped until none is left."""
    split: Literal["leave_one_out", "global_time", "sliding_window", "by_user"] = "leave_one_out"
    """How examples become train, valid and test."""
    ratios: Annotated[list[Share], Field(min_length=3, max_length=3)] = Field(
        default=[0.8, 0.1, 0.1]
    )
    """Shares of train, valid and test, for the splits that cut by share."""
    window: Annotated[int, Field(ge=2)] = 11
    """Interactions in a sliding window, the target included."""
    ties: Literal["source_row", "item_id", "shuffle"] = "source_row"
    """Order of a user's interactions with one and the same time."""
    year_in_title: bool = True
    """Titles keep their year: The Matrix (1999)."""
    max_title_chars: Annotated[int, Field(ge=8)] = 200
    """Longer titles are cut to this many characters."""
    out_of_core: bool = False
    """Filter with DuckDB, on disk where memory is short; needs the extra `data`."""
    memory_limit: Word = "4GB"
    """Memory that DuckDB may take while it filters."""
    max_bad_rows: Annotated[int, Field(ge=0)] = 0
    """Unreadable rows that are skipped and reported before it is an error."""
    subset: Subset = Subset()
    """Examples kept of each split."""
    train_users: Count | None = None
    """Users whose interactions are used for training; null: all."""
    candidates: Annotated[int, Field(ge=2)] | None = None
    """Each target is to be found among so many items, itself and random ones that the user has not
    seen, drawn once with the recipe's seed; null: among the whole catalog."""

    @field_validator("ratios")
    @classmethod
    def _sum_to_one(cls, ratios: list[float]) -> list[float]:
        if abs(sum(ratios) - 1) > 1e-9 or ratios[0] == 0:
            raise ValueError("three shares that sum to 1, the first above 0")
        return ratios


class Model(Section):
    """The language model and what of it is trained."""

    base: Word = "smollm2-135m-instruct"
    """A name that `llmrec fetch model` knows, a Hub id, or a folder."""
    revision: Word | None = None
    """Commit, tag or branch of a Hub id."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Number format of the weights; auto: as they were saved."""
    quantization: Literal["none", "4bit"] = "none"
    """4bit: the frozen weights in 4 bits under LoRA (QLoRA), on a GPU."""
    trust_remote_code: bool = False
    """Run code from the model's repository; needs a 40-hex revision."""
    lora: Lora | None = Lora()
    """The adapter; null: every weight is trained."""
    adapter: Word | None = None
    """Folder of an adapter to recommend with, instead of training one."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.trust_remote_code and not (self.revision and COMMIT.fullmatch(self.revision)):
            raise ValueError(
                "trust_remote_code runs code from the model's repository; it needs `revision` to "
                "be a full commit (40 hex digits), so that the code cannot change"
            )
        if self.quantization == "4bit" and self.lora is None:
            raise ValueError("4bit weights cannot be trained; give `lora` or set quantization none")
        return self


class Prompt(Section):
    """How a history becomes text."""

    task: Literal["next_item", "similar_users"] = "next_item"
    """Which shipped template. next_item: the history alone; similar_users: also demonstrations and
    candidates, where there are any."""
    domain: Literal["movie", "book", "game", "music", "product"] = "movie"
    """Which shipped template: its words for items."""
    file: Word | None = None
    """A template file of your own, instead of those."""
    form: Literal["plain", "chat"] = "plain"
    """Plain text, or turns of the model's chat template."""
    max_history: Count = 10
    """Latest titles shown."""
    max_tokens: Annotated[int, Field(ge=16)] = 700
    """Longest prompt; the oldest titles are left out to keep to it."""


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
    systems: Annotated[list[System], Field(min_length=1)] = Field(default=list(SYSTEMS))
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
    def _each_once(cls, systems: list[System]) -> list[System]:
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
        asked = [system for system in self.systems if system.startswith("network")]
        if self.network is None:
            if asked:
                raise ValueError(f"system {asked[0]} is of a network; it needs section network")
            return self
        if "network_cpft" in asked and self.conformal is None:
            raise ValueError("system network_cpft is fine-tuned with conformal prediction; it "
                             "needs section conformal")  # fmt: skip
        if "network_ce" in asked and "network_cpft" not in asked:
            raise ValueError("system network_ce is trained for as many steps as network_cpft, "
                             "which is not among the systems")  # fmt: skip
        other = [system for system in self.systems if system.startswith("tuned")]
        if other:
            raise ValueError(f"a recipe with section network trains no language model; drop "
                             f"system {other[0]} or the section")  # fmt: skip
        if self.data.candidates is not None:
            raise ValueError("a network ranks the whole catalog; drop data.candidates or network")
        return self

    @model_validator(mode="after")
    def _conformal_language_model(self) -> Self:
        if self.conformal is None or self.network is not None:
            return self
        if self.rows.shape != "single":
            raise ValueError("conformal compares the candidates of one target; it needs "
                             "rows.shape single")  # fmt: skip
        if self.soft is not None or self.demonstrations is not None:
            raise ValueError("conformal cannot be combined with soft or demonstrations")
        if self.data.candidates is not None:
            raise ValueError("conformal draws its own candidates; drop data.candidates")
        return self

    @model_validator(mode="after")
    def _calibrated(self) -> Self:
        if self.evaluate.calibration is not None and self.data.candidates is not None:
            raise ValueError("calibration is of answers from the whole catalog; drop "
                             "evaluate.calibration or data.candidates")  # fmt: skip
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
            raise ValueError("demonstrations are shown by prompt.task similar_users, or by a "
                             "prompt.file of your own")  # fmt: skip
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
        free = [system for system in self.systems if system.endswith("_free")]
        if self.data.candidates is None:
            if free:
                raise ValueError(f"system {free[0]} answers by one of some candidates; it needs "
                                 "data.candidates")  # fmt: skip
            return self
        if self.soft is not None:
            raise ValueError("soft knows no candidates; drop data.candidates or soft")
        if self.validation.metric != "nll" and self.validation.answer == "grounding":
            raise ValueError("validation.answer grounding ranks the whole catalog; drop it or "
                             "data.candidates")  # fmt: skip
        shown = self.prompt.task == "similar_users" or self.prompt.file is not None
        if self.rows.shape != "single" and shown:
            raise ValueError(
                "candidates are those of one target; show them with rows.shape single, or take "
                "prompt.task next_item, which does not show them"
            )
        other = [s for s in self.systems if s.endswith(("_guided", "_grounded"))]
        if other:
            raise ValueError(f"system {other[0]} answers from the whole catalog; drop it or "
                             "data.candidates")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _guided(self) -> Self:
        guided = [system for system in self.systems if system.endswith("_guided")]
        if guided and self.decode.guidance.baseline is None:
            raise ValueError(f"system {guided[0]} needs decode.guidance.baseline")
        if "tuned_sft" in self.systems and self.soft is None:
            raise ValueError("system tuned_sft is the first step of SOFT; it needs section soft")
        return self
