"""The files of a run: where each stage puts what it made, and what a number came from.

Knows paths and versions; reads no data and imports neither torch nor transformers.
"""

import hashlib
import importlib.metadata
import json
import logging
import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llmrec.data import sealed
from llmrec.data.files import replacing, sha256_of
from llmrec.errors import DataError, RecipeError
from llmrec.fetch import cache as fetch
from llmrec.recipe import Recipe, shipped
from llmrec.recipe import loading as recipe_loading
from llmrec.recipe.reading import Setting, given_on_the_command_line

log = logging.getLogger("llmrec")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "numpy", "scipy")


@dataclass(frozen=True)
class RunFolder:
    """runs/<name>/. The properties are paths; nothing is made until a stage writes.

    `part`: a folder inside that holds what is trained, where a run trains more than once.
    `of_study`: a study runs here, which may compare with what is of no use by itself.
    `origin`: the recipe file and the settings of the command line that it was opened with.
    """

    root: Path
    part: str = ""
    of_study: bool = field(default=False, compare=False)
    origin: "Origin | None" = field(default=None, compare=False)

    @staticmethod
    def of(recipe: Recipe, of_study: bool = False) -> "RunFolder":
        """The folder of a recipe: <output_dir>/<name>."""
        return RunFolder(Path(recipe.output_dir).expanduser() / recipe.name, of_study=of_study)

    @property
    def recipe(self) -> Path:
        """The resolved recipe that the run was made by."""
        return self.root / "recipe.yaml"

    @property
    def data(self) -> Path:
        """The folder that `prepare` fills."""
        return self.root / "data"

    @property
    def trie(self) -> Path:
        """The TitleTrie of a large catalog."""
        return self.root / "trie"

    @property
    def items(self) -> Path:
        """The Catalog."""
        return self.data / "items.parquet"

    @property
    def interactions(self) -> Path:
        """The training Interactions, and no others."""
        return self.data / "interactions.parquet"

    def examples(self, split: str) -> Path:
        """The Examples of `train`, `valid` or `test`."""
        if split not in ("train", "valid", "test"):
            raise ValueError(f"split {split!r} is none of train, valid, test")
        return self.data / f"{split}.parquet"

    def candidates(self, split: str) -> Path:
        """The items among which each target of `valid` or `test` is to be found."""
        return self.data / f"candidates-{split}.parquet"

    @property
    def retriever(self) -> Path:
        """Which baseline proposes the candidates, and how it was chosen."""
        return self.data / "retriever.json"

    @property
    def similar(self) -> Path:
        """Similar users: vectors of items, an index of users, and the users found for prompts."""
        return self.root / "similar"

    def pools(self, split: str) -> Path:
        """The similar users found for each prompt of `train`, `valid` or `test`."""
        return self.similar / f"{split}.parquet"

    def voters(self, split: str) -> Path:
        """The similar users whose votes are counted for each prompt of a split."""
        return self.similar / f"voters-{split}.parquet"

    def shown(self, system: str) -> Path:
        """Which of the similar users found for it each test prompt of a system showed."""
        return self.similar / f"shown-{system}.json"

    @property
    def adapter(self) -> Path:
        """The adapter that did best in validation."""
        return self.root / self.part / "adapter"

    @property
    def checkpoints(self) -> Path:
        """States that training can go on from."""
        return self.root / self.part / "checkpoints"

    @property
    def selected(self) -> Path:
        """Which similar users the live model selected for the training prompts, by step."""
        return self.root / self.part / "selected"

    @property
    def train_log(self) -> Path:
        """One JSON line for each logged step and each validation."""
        return self.root / self.part / "train_log.jsonl"

    @property
    def tracking(self) -> Path:
        """What trackers of experiments keep here."""
        return self.root / self.part / "tracking"

    @property
    def sft(self) -> "RunFolder":
        """The same run's fine-tuned adapter, whose answers SOFT distils."""
        return RunFolder(self.root, "sft")

    def alpha(self, value: float) -> "RunFolder":
        """The same run's training with one of the alphas that SOFT tries."""
        return RunFolder(self.root, f"alpha/{value:g}")

    @property
    def answers(self) -> Path:
        """What the fine-tuned model answered to the training prompts."""
        return self.root / "distilled"

    def network(self, step: str) -> Path:
        """The network as the step `base`, `ce` or `cpft` left it."""
        return self.root / "network" / step

    @property
    def candidate_sets(self) -> Path:
        """The candidates that the live model gave for the training rows, by step."""
        return self.root / self.part / "candidate_sets"

    def lists(self, system: str, split: str) -> Path:
        """The likeliest items of a system for each example of `valid` or `test`, to calibrate."""
        return self.root / "calibration" / f"{system}-{split}.parquet"

    @property
    def set_scores(self) -> Path:
        """What the thresholds of prediction sets are found from, for each system."""
        return self.root / "calibration" / "scores.parquet"

    @property
    def calibration(self) -> Path:
        """Reliability, coverage and set sizes of each system."""
        return self.root / "calibration.json"

    def predictions(self, system: str) -> Path:
        """What one system recommends for each test example."""
        return self.root / "predictions" / f"{system}.parquet"

    def routed(self, system: str) -> Path:
        """For which test examples a system that routes users asked its language model."""
        return self.root / "routed" / f"{system}.json"

    def other_history(self, system: str) -> Path:
        """The targets' NLL under a system that was shown another user's history."""
        return self.root / "gates" / f"{system}.parquet"

    @property
    def metrics(self) -> Path:
        """Means, intervals and tests."""
        return self.root / "metrics.json"

    @property
    def per_user(self) -> Path:
        """One row of metrics for each system and test example."""
        return self.root / "per_user.parquet"

    @property
    def report(self) -> Path:
        """The one-page report."""
        return self.root / "report.html"

    @property
    def origin_file(self) -> Path:
        """Where the recipe came from, and which trained weights it describes."""
        return self.root / "origin.json"

    def trained(self) -> dict[str, Any]:
        """The seals of all trained weights of the run, by place."""
        places = [self.root / "adapter", self.sft.adapter, *self.root.glob("alpha/*/adapter")]
        places += self.root.glob("network/[!.]*")
        return {
            place.relative_to(self.root).as_posix(): sealed.facts(place).get("seal")
            for place in places
            if sealed.manifest_of(place).is_file()
        }

    def keep(self, recipe: Recipe) -> None:
        """Write the recipe that what stands was made by, if that is not written yet.

        A run that a command opened stays what it was: once something is trained, or else
        recommended, only what trains anew, or a changed recipe file, changes it. What a later
        command was given otherwise stands with what that command made.
        """
        trained = self.trained()
        if self.origin is not None and self.recipe.is_file():
            known = self._kept()
            answered = any(self.predictions("any").parent.glob("*.parquet"))
            same_file = self.origin.file == known.get("file")
            if (trained and trained == known.get("trained")) or (
                not trained and answered and same_file
            ):
                self._tell_of_changes(recipe)
                return
        with replacing(self.recipe) as temporary:
            temporary.write_text(recipe_loading.dump(recipe), "utf-8")
        origin = self.origin or Origin(None, ())
        trust = ".".join(recipe_loading.TRUST)  # holds for one command, and is not kept
        held = tuple(text for text in origin.overrides if text.partition("=")[0] != trust)
        origin = replace(origin, overrides=held)
        said = {**asdict(origin), "trained": trained, "recipe": sha256_of(self.recipe)}
        sealed.write_facts(self.origin_file, said)

    def _kept(self) -> dict[str, Any]:
        """What `keep` wrote of where the recipe came from. Raises DataError for a damaged file."""
        again = "remove it, and give the settings of the run once more on the command line"
        try:
            kept = sealed.read_facts(self.origin_file, again)
        except FileNotFoundError:
            return {}
        given = kept.setdefault("overrides", [])
        if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
            raise DataError(f"{self.origin_file}: overrides is no list of texts; {again}")
        return kept

    def _tell_if_edited(self, kept: dict[str, Any]) -> None:
        if kept.get("recipe") not in (None, sha256_of(self.recipe)):
            log.warning("%s was changed since it was written there", self.recipe)

    def _tell_of_changes(self, recipe: Recipe) -> None:
        now, then = flattened(recipe), flattened(recipe_loading.load(self.recipe))
        keys = {*now, *then} - {".".join(recipe_loading.TRUST)}
        changed = sorted(key for key in keys if now.get(key) != then.get(key))
        if changed:
            log.info(
                "%s stays what this run was made by; this command alone was given another %s",
                self.recipe,
                ", ".join(changed),
            )

    def data_hash(self) -> str | None:
        """SHA-256 over the prepared files, wherever they were read from; None without any."""
        try:
            outputs = json.loads((self.data / "manifest.json").read_text("utf-8"))["outputs"]
            told = sorted(f"{name} {said['sha256']}" for name, said in outputs.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return hashlib.sha256("\n".join(told).encode()).hexdigest()

    def provenance(self, recipe: Recipe) -> dict[str, Any]:
        """What numbers made from `recipe` in this folder rest on; None where it is not known."""
        return {
            "llmrec": _version("llmrec"),
            "recipe": recipe_hash(recipe),
            "data": self.data_hash(),
            "model": model_provenance(recipe),
            "seed": recipe.seed,
            "dtype": recipe.model.dtype,
            "batch_size": recipe.decode.batch_size,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "packages": {name: _version(name) for name in PACKAGES},
        }


@dataclass(frozen=True)
class Origin:
    """The SHA-256 of a recipe file and the `section.key=value` it was opened with."""

    file: str | None
    overrides: tuple[str, ...]


def open_run(reference: str, overrides: list[str]) -> tuple[Recipe, RunFolder]:
    """The recipe and folder of a recipe's file or name, or of a run folder that holds one.

    A run that was trained with overrides goes on with them where the same recipe file is given
    again, unless these `overrides` say otherwise.
    """
    folder = RunFolder(Path(reference))
    if folder.recipe.is_file():
        kept = folder._kept()
        folder._tell_if_edited(kept)
        recipe = recipe_loading.load(folder.recipe, overrides)
        given = (*kept.get("overrides", ()), *(_absolute(recipe, text) for text in overrides))
        return recipe, replace(folder, origin=Origin(kept.get("file"), given))
    if folder.root.is_dir() and shipped.recipe_file(reference) is None:
        raise RecipeError(
            f"{reference}: no run folder, it holds no recipe.yaml; name a recipe, or the folder "
            "that `llmrec prepare` made"
        )
    recipe = recipe_loading.load(reference, overrides)
    root = RunFolder.of(recipe).root
    file = sha256_of(recipe_loading.locate(reference))
    given = tuple(_absolute(recipe, override) for override in overrides)
    kept = RunFolder(root)._kept()
    if kept.get("file") == file and kept.get("trained"):
        said = {override.partition("=")[0] for override in given}
        held = [text for text in kept["overrides"] if text.partition("=")[0] not in said]
        if held:
            log.info(
                "%s was trained with %s, which holds; say otherwise on the command line",
                root,
                " ".join(held),
            )
            recipe = recipe_loading.load(reference, overrides, _settings(root, held))
            given = (*held, *given)
    return recipe, RunFolder(root, origin=Origin(file, given))


def _settings(root: Path, held: Iterable[str]) -> list[Setting]:
    """Overrides that a run folder says it was given, as what a file says."""
    found = [given_on_the_command_line(text)[0] for text in held]
    return [replace(one, place=f"{root}, origin.json") for one in found if one is not None]


def _absolute(recipe: Recipe, override: str) -> str:
    """An override as it holds in any folder: a path is absolute."""
    key, _, text = override.partition("=")
    if tuple(key.split(".")) not in recipe_loading.PATHS:
        return override
    return f"{key}={flattened(recipe).get(key, text)}"


def flattened(recipe: Recipe) -> dict[str, Any]:
    """The values of a recipe by dotted key; a list is one value, a section without keys too."""
    return dict(leaves("", recipe.model_dump(mode="json")))


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The dotted keys below `name` with their values."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(f"{name}.{key}" if name else key, inner)
    else:
        yield name, value


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of what the recipe says, apart from where the run is put and what it is called."""
    said = recipe.model_dump(mode="json", exclude={"name", "output_dir"})
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def model_provenance(recipe: Recipe) -> dict[str, Any]:
    """Name, revision and, where it can be told without loading, source and hash of the weights."""
    base = recipe.model.base
    known: dict[str, Any] = {"base": base, "revision": recipe.model.revision}
    source = fetch.source_of(fetch.cache_root() / "models" / base)
    if source is not None:
        where = source["source"]
        name = where.get("repository") or f"{where.get('package')}=={where.get('version')}"
        known["revision"] = where.get("revision", known["revision"])
        known["source"] = f"{where['kind']}: {name}"
        known["weights"] = source["files"].get("model.safetensors", {}).get("sha256")
    elif (Path(base) / "config.json").is_file():
        known["config"] = sha256_of(Path(base) / "config.json")
    elif "/" in base:
        known["revision"] = hub_commit(base, known["revision"] or "main")
    return known


def hub_commit(repository: str, revision: str) -> str:
    """The commit a branch stood for when it was last fetched; the revision itself if unknown."""
    from huggingface_hub.constants import HF_HUB_CACHE

    reference = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "refs" / revision
    return reference.read_text("utf-8").strip() if reference.is_file() else revision


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
