"""The files of a run: where each stage puts what it made, and what a number came from.

Knows paths and versions; reads no data and imports neither torch nor transformers.
"""

import hashlib
import importlib.metadata
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrec.data.files import replacing, sha256_of
from llmrec.errors import RecipeError
from llmrec.fetch import cache as fetch
from llmrec.recipe import Recipe, shipped
from llmrec.recipe import loading as recipe_loading

PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "numpy", "scipy")


@dataclass(frozen=True)
class RunFolder:
    """runs/<name>/. The properties are paths; nothing is made until a stage writes.

    `part`: a folder inside that holds what is trained, where a run trains more than once.
    """

    root: Path
    part: str = ""

    @staticmethod
    def of(recipe: Recipe) -> "RunFolder":
        """The folder of a recipe: <output_dir>/<name>."""
        return RunFolder(Path(recipe.output_dir).expanduser() / recipe.name)

    @property
    def recipe(self) -> Path:
        """The resolved recipe of the latest stage."""
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
    def similar(self) -> Path:
        """Similar users: vectors of items, an index of users, and the users found for prompts."""
        return self.root / "similar"

    def pools(self, split: str) -> Path:
        """The similar users found for each prompt of `train`, `valid` or `test`."""
        return self.similar / f"{split}.parquet"

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
    def sft(self) -> "RunFolder":
        """The same run's fine-tuned adapter, whose answers SOFT distils."""
        return RunFolder(self.root, "sft")

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

    def keep(self, recipe: Recipe) -> None:
        """Write the resolved recipe beside the results."""
        with replacing(self.recipe) as temporary:
            temporary.write_text(recipe_loading.dump(recipe), "utf-8")

    def provenance(self, recipe: Recipe) -> dict[str, Any]:
        """What numbers made from `recipe` in this folder rest on; None where it is not known."""
        manifest = self.data / "manifest.json"
        return {
            "llmrec": _version("llmrec"),
            "recipe": recipe_hash(recipe),
            "data": sha256_of(manifest) if manifest.is_file() else None,
            "model": model_provenance(recipe),
            "seed": recipe.seed,
            "dtype": recipe.model.dtype,
            "batch_size": recipe.decode.batch_size,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "packages": {name: _version(name) for name in PACKAGES},
        }


def open_run(reference: str, overrides: list[str]) -> tuple[Recipe, RunFolder]:
    """The recipe and folder of a recipe's file or name, or of a run folder that holds one."""
    folder = RunFolder(Path(reference))
    if folder.recipe.is_file():
        return recipe_loading.load(folder.recipe, overrides), folder
    if folder.root.is_dir() and shipped.recipe_file(reference) is None:
        raise RecipeError(
            f"{reference}: no run folder, it holds no recipe.yaml; name a recipe, or the folder "
            "that `llmrec prepare` made"
        )
    recipe = recipe_loading.load(reference, overrides)
    return recipe, RunFolder.of(recipe)


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
        known["revision"] = _hub_commit(base, known["revision"] or "main")
    return known


def _hub_commit(repository: str, revision: str) -> str:
    """The commit a branch stood for when it was last fetched; the revision itself if unknown."""
    from huggingface_hub.constants import HF_HUB_CACHE

    reference = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "refs" / revision
    return reference.read_text("utf-8").strip() if reference.is_file() else revision


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
