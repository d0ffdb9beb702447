"""What a study can say: a YAML file of arms and seeds over one recipe.

    name: soft_alpha
    recipe: soft_ml100k            # a shipped recipe, or a file beside this one
    seeds: [0, 1, 2]
    set: {data: {subset: {test: 150}}}
    arms:
      sft: {title: SFT, set: {soft: null}}
      soft:
        set: {soft.sft_adapter: "run:sft/adapter"}
        sweep: {soft.alpha: [1, 10, 100]}
        against: [sft]
    start: [sft]

Knows the keys and their kinds, nothing of what recipes say (`llmrec.studies.cells` does).
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator

from llmrec.recipe.keys import allowed, purpose
from llmrec.recipe.reading import LAST, Reading, given_on_the_command_line
from llmrec.recipe.section import Name, Positive, Section, Word

Settings = dict[str, JsonValue]
Sweep = dict[str, Annotated[list[JsonValue], Field(min_length=1)]]
Group = Literal["all", "warm", "cold"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Row = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(:[a-z_0-9]+)?$")]
ON_THE_STUDY = "study."  # begins an override that changes the study and not its recipes


class Arm(Section):
    """What one line of the tables changes in the recipe."""

    title: Word | None = None
    """How the tables call it; null: its name."""
    set: Settings = Field(default={})
    """Settings of the recipe, as sections or as section.key; run:ARM/PATH is a path in that arm's
    run folder of the same seed, which is then made first."""
    sweep: Sweep = Field(default={})
    """Settings with several values each; the arm stands once for every combination."""
    system: Word | None = None
    """The system that is compared; null: the study's."""
    against: list[Row] = Field(default=[])
    """What it is compared with: arms, or arm:system."""


class Study(Section):
    """Arms and seeds over one recipe."""

    name: Name
    """Name of the study and of its folder below output_dir."""
    title: Word | None = None
    """Heading of the page; null: the name."""
    about: str = ""
    """What the page says first."""
    recipe: Word
    """The recipe that all arms begin with: a shipped one's name, or a file beside this one."""
    output_dir: Word = "runs"
    """Folder of all runs, relative to where llmrec is started."""
    ends_with: Literal["report", "train"] = "report"
    """The last stage of a cell; train: nothing is recommended, and validation is the table."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default=[0])
    """Seeds that every arm runs with; the paired tests are over users and seeds."""
    set: Settings = Field(default={})
    """Settings of all arms."""
    per_seed: dict[str, Settings] = Field(default={})
    """Settings of one seed, such as the users it draws, in all arms."""
    arms: Annotated[dict[Name, Arm], Field(min_length=1)]
    """The lines of the tables."""
    sweep: Sweep = Field(default={})
    """Settings with several values each, in every arm."""
    system: Word = "tuned"
    """The system that is compared."""
    compare: list[Annotated[list[Row], Field(min_length=2, max_length=2)]] = Field(default=[])
    """Further pairs, each [arm:system, arm:system]."""
    start: list[Row] | None = None
    """Arms whose model the methods start from: where one fails a gate the study is void. Needed
    where a language model is compared; []: no method is."""
    metrics: Annotated[list[Word], Field(min_length=1)] = Field(default=["NLL", "HR@10", "NDCG@10"])
    """Metrics of the tables and tests, as `evaluate` names them."""
    groups: Annotated[list[Group], Field(min_length=1)] = Field(default=["all"])
    """Test examples that have tables of their own."""
    budget: Positive | None = None
    """Hours that all cells together may take; null: any."""

    @field_validator("seeds", "metrics", "groups")
    @classmethod
    def _each_once(cls, values: list[Any]) -> list[Any]:
        if len(set(values)) != len(values):
            raise ValueError("every one once")
        return values


def read(path: Path, overrides: list[str]) -> tuple[Study, Reading, list[str]]:
    """The study in a file, how it was read, and the overrides that are for its recipes.

    Raises RecipeError that lists every error of the file; those of the recipes come later.
    """
    reading, is_yaml = Reading.of(path, "a study is keys such as recipe:, seeds: and arms:")
    if not is_yaml:
        reading.raise_problems()
    own = [text for text in overrides if text.startswith(ON_THE_STUDY)]
    for text in own:
        setting, problems = given_on_the_command_line(text.removeprefix(ON_THE_STUDY))
        reading.problems += [(LAST, problem) for problem in problems]
        if setting is not None:
            reading.give(setting)
    reading.tree.setdefault("name", path.stem)
    study = None
    try:
        study = Study.model_validate(reading.tree)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            at = tuple(part for part in detail["loc"] if part != "[key]")
            reading.report(at, _told(at, detail))
    reading.raise_problems()
    assert study is not None  # noqa: S101  otherwise there were problems
    return study, reading, [text for text in overrides if text not in own]


def _told(at: tuple[int | str, ...], detail: Any) -> str:
    dotted = ".".join(str(part) for part in at)
    if detail["type"] == "extra_forbidden":
        section = Arm if at[0] == "arms" else Study
        return _unknown(dotted, str(at[-1]), list(section.model_fields))
    if detail["type"] == "missing":
        return f"{dotted} is missing: {purpose(at, Study)}"
    rule = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] != "value_error":
        rule = allowed(at, Study)
    return f"{dotted} is {_short(detail['input'])}; allowed: {rule}"


def _unknown(dotted: str, key: str, known: list[str]) -> str:
    from rapidfuzz.process import extractOne

    nearest = extractOne(key, known, score_cutoff=60)
    if nearest is not None:
        return f"unknown key {dotted}; did you mean {nearest[0]}?"
    return f"unknown key {dotted}; there are: {', '.join(sorted(known))}"


def _short(value: Any) -> str:
    import json

    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
