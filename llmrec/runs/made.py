"""What the made things of a run depend on: for each one the recipe paths and contents it reads.

A reviewed table in the tests holds what each recipe key makes to be done again. Knows no model.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmrec.data import sealed
from llmrec.errors import DataError, LlmrecError
from llmrec.fetch import cache as fetch
from llmrec.recipe import Recipe
from llmrec.recipe.demonstrations import Demonstrations
from llmrec.recipe.systems import GUIDES, System
from llmrec.runs.artifact import Artifact, content_of, differences, lines_of
from llmrec.runs.folder import RunFolder, leaves
from llmrec.runs.identity import (
    base_content,
    data_content,
    model_content,
    remembered_hash,
    template_content,
    weights_content,
)

# Of `train`: what is told, kept and how fast it goes, and no weight. The cut of a step into
# micro-batches is one of them; its product counts.
_CUT = ("per_device_train_batch_size", "gradient_accumulation_steps")
HARMLESS_TRAIN = (
    *_CUT,
    *("logging_steps", "logging_strategy", "logging_first_step", "log_level", "log_level_replica"),
    *("log_on_each_node", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id"),
    *("trackio_bucket_id", "trackio_static_space_id", "debug", "skip_memory_metrics"),
    *("save_strategy", "save_steps", "save_total_limit", "save_on_each_node"),
    *("per_device_eval_batch_size", "torch_empty_cache_steps"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "use_cache"),
    *("activation_checkpointing", "activation_checkpointing_kwargs"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
    *("ddp_timeout", "ddp_backend", "ddp_bucket_cap_mb", "ddp_find_unused_parameters"),
    *("ddp_broadcast_buffers", "ddp_static_graph", "local_rank", "use_cpu"),
)
_CONSTANT = ("constant", "constant_with_warmup")
_OF_NETWORKS = (
    "learning_rate",
    "grid",
    "batch_size",
    "max_epochs",
    "patience",
    "distance",
    "linkage",
)
TRAINING_DATA = ("train.parquet", "valid.parquet", "items.parquet", "interactions.parquet")
CANDIDATES = ("candidates-valid.parquet", "retriever.json")
ANSWERS = "answers.parquet"
TRAINING_TABLES = ("items.parquet", "interactions.parquet")
PROMPT = (
    "prompt.form",
    "prompt.letters",
    "prompt.max_history",
    "prompt.max_tokens",
    "prompt.today",
)
MODEL = ("model.dtype", "model.quantization", "model.trust_remote_code")


def adapter(recipe: Recipe, folder: RunFolder, to_use: bool = False) -> Artifact:
    """The trained weights of a language model. Raises DataError where what they read is not there.

    Which weights are kept is decided by validation, so they depend on what of `decode` it uses.
    `to_use`: to answer with them; then the files of training may be gone, and `decode` may differ.
    """
    soft, train, validation = recipe.soft, recipe.train, recipe.validation
    ranks = validation.metric != "nll"
    searches = ranks and validation.answer == "constrained" and recipe.data.candidates is None
    asks = soft is not None or recipe.conformal is not None or recipe.data.candidates is not None
    asks |= recipe.objective.grpo is not None
    reads = ["seed", "model.lora", *MODEL, *PROMPT, "data.candidates", "demonstrations"]
    reads += ["objective", "rows", "train", "validation", "soft", "conformal", "decode.filter_seen"]
    if searches or asks:
        reads.append("decode.renormalise")
    if recipe.data.candidates is not None:
        reads.append("decode.candidates_alone")
    if ranks and validation.answer == "grounding":
        reads += ["decode.grounding.beams", "decode.grounding.max_new_tokens"]
    without = [f"train.{name}" for name in HARMLESS_TRAIN]
    without += ["soft.sft_adapter", "soft.answers"]
    if soft is not None and soft.alpha != "auto":
        without.append("soft.grid")
    without += [f"conformal.{name}" for name in _OF_NETWORKS]
    if not ranks:
        without += ["validation.k", "validation.answer"]
    data = [*TRAINING_DATA, *CANDIDATES]
    if to_use:
        data = [name for name in data if (folder.data / name).is_file()]
        reads = [path for path in reads if not path.startswith("decode.")]
    contents: dict[str, Any] = {
        " x ".join(f"train.{name}" for name in _CUT): _product(train),
        **base_content(recipe),
        **template_content(recipe),
        **data_content(folder, *data),
    }
    if searches and not to_use:
        ranked = recipe.decode.model_copy(update={"top_k": validation.k})
        contents["decode.search"] = ranked.kind
        contents["decode.beams"] = None if ranked.kind == "best_first" else ranked.width
    start = start_of(recipe)
    if start is not None and not to_use:
        contents["model.start_from"] = weights_content(start)
    if soft is not None and not to_use:
        contents["answers"] = _answers_hash(recipe, folder)
    return Artifact(
        folder.adapter,
        recipe,
        reads,
        without,
        contents,
        verb="train",
        costly=True,
        grows=("train.num_train_epochs", "train.max_steps") if _is_constant(recipe) else (),
        beside=(folder.checkpoints,),
        to_use=to_use,
    )


def adapter_content(recipe: Recipe, folder: RunFolder, before_soft: bool = False) -> str:
    """SHA-256 over the adapter that answers: the recipe's, or else the run's own; verified.

    `before_soft`: the one that SOFT begins with. Raises LlmrecError where there is none, and for
    one of the run's that was trained with other settings.
    """
    given = recipe.soft.sft_adapter if before_soft and recipe.soft else recipe.model.adapter
    if given is None:
        own = sft(recipe, folder) if before_soft else adapter(recipe, folder, to_use=True)
        return own.content()
    place = Path(given)
    if not sealed.manifest_of(place).is_file():
        return weights_content(place)
    wrong = sealed.problem(place)
    if wrong is not None:
        raise LlmrecError(f"{place} is damaged ({wrong}); train it again or name another adapter")
    return content_of(sealed.facts(place))


def start_of(recipe: Recipe) -> Path | None:
    """The trained weights that training goes on from; None: none."""
    if recipe.model.start_from is None:
        return None
    place = Path(recipe.model.start_from)
    return place / "adapter" if (place / "adapter").is_dir() else place


def sft(recipe: Recipe, folder: RunFolder) -> Artifact:
    """The fine-tuned adapter that SOFT begins with, to answer with it."""
    return adapter(recipe.model_copy(update={"soft": None}), folder.sft, to_use=True)


def require_same_data(folder: RunFolder, manifest: Mapping[str, Any]) -> None:
    """Raise LlmrecError where trained weights of the run read other data than `manifest` is of."""
    outputs = manifest["outputs"]
    for name in folder.trained():
        read = sealed.facts(folder.root / name).get("settings") or {}
        differ = [
            file
            for file in (*TRAINING_DATA, *CANDIDATES)
            if f"data/{file}" in read
            and read[f"data/{file}"] != outputs.get(file, {}).get("sha256")
        ]
        if not differ:
            continue
        then = _manifest(folder)
        changed = differences(
            dict(leaves("", {key: then.get(key) for key in ("settings", "sources")})),
            dict(leaves("", {key: manifest[key] for key in ("settings", "sources")})),
        )
        raise LlmrecError(
            f"{folder.root / name} was trained on other data than this ({', '.join(differ)} "
            f"would differ; then -> now):\n{lines_of(changed)}\ngive the recipe another name, or "
            f"remove {folder.root / name} to train again"
        )


def _manifest(folder: RunFolder) -> dict[str, Any]:
    try:
        return dict(json.loads((folder.data / "manifest.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def network(recipe: Recipe, folder: RunFolder, step: str, to_use: bool = False) -> Artifact:
    """A sequential network as the step `base`, `cpft` or `ce` leaves it.

    `to_use`: to answer with it, as in `adapter`.
    """
    further = ("conformal",) if step != "base" else ()
    further += () if to_use else ("decode.filter_seen",)
    return Artifact(
        folder.network(step),
        recipe,
        ("seed", "network", *further),
        ("conformal.candidates", "network.at_once"),
        data_content(folder, *TRAINING_DATA),
        costly=True,
        to_use=to_use,
    )


def answers(recipe: Recipe, folder: RunFolder) -> Artifact:
    """The fine-tuned model's own answers to the training prompts."""
    reads = ["seed", "rows", "data.candidates", *MODEL, *PROMPT, "soft.distill"]
    if recipe.soft is not None and recipe.soft.distill.decode == "constrained":
        reads.append("decode.renormalise")
    return Artifact(
        folder.answers / ANSWERS,
        recipe,
        reads,
        contents={
            "adapter": adapter_content(recipe, folder, before_soft=True),
            **base_content(recipe),
            **template_content(recipe),
            **data_content(folder, *TRAINING_DATA),
        },
        verb="distill",
        costly=True,
    )


def vectors(recipe: Recipe, folder: RunFolder, kind: str) -> Artifact:
    """The vectors of the catalog's items of a kind that `Similarity.vectors` names."""
    contents: dict[str, Any] = {"kind": kind, **data_content(folder, *TRAINING_TABLES)}
    if kind == "states":
        contents |= base_content(recipe)
    if kind == "sentences":
        wanted = recipe.demonstrations or Demonstrations()
        contents |= model_content(wanted.similarity.encoder)
    return Artifact(
        folder.similar / f"items-{kind}.npy",
        recipe,
        MODEL if kind == "states" else (),
        contents=contents,
        verb="retrieve",
    ).named_by_key()


def histories(recipe: Recipe, folder: RunFolder) -> Artifact:
    """The vectors of the training users' states, each read as one text."""
    assert recipe.demonstrations is not None  # noqa: S101  callers ask first
    items = vectors(recipe, folder, recipe.demonstrations.similarity.vectors)
    return replace(
        items,
        place=folder.similar / "histories.npy",
        reads=(*items.reads, "demonstrations.history", "demonstrations.similarity.every"),
    )


def index(recipe: Recipe, folder: RunFolder) -> Artifact:
    """The index of the training users' states."""
    assert recipe.demonstrations is not None  # noqa: S101  callers ask first
    items = vectors(recipe, folder, recipe.demonstrations.similarity.vectors)
    return replace(
        items,
        place=folder.similar / "index",
        reads=(
            *items.reads,
            "demonstrations.history",
            "demonstrations.similarity.every",
            "demonstrations.similarity.embed",
        ),
    )


def pools(recipe: Recipe, folder: RunFolder, split: str, asked: str) -> Artifact:
    """The similar users of the examples of a split, whose SHA-256 is `asked`."""
    assert recipe.demonstrations is not None  # noqa: S101  callers ask first
    indexed = index(recipe, folder)
    return replace(
        indexed,
        place=folder.pools(split),
        reads=("seed", "demonstrations", *indexed.reads),
        without=(
            "demonstrations.selection",
            "demonstrations.count",
            "demonstrations.show",
            "demonstrations.votes",
            "demonstrations.similarity.encoder",
        ),
        contents={**indexed.contents, "examples": asked, "pool": recipe.demonstrations.pool},
    )


def voters(recipe: Recipe, folder: RunFolder, split: str, asked: str) -> Artifact:
    """The similar users whose votes are counted for the examples of a split."""
    assert recipe.demonstrations is not None  # noqa: S101  callers ask first
    shown = pools(recipe, folder, split, asked)
    users = recipe.demonstrations.votes.users
    return replace(shown, place=folder.voters(split), contents={**shown.contents, "pool": users})


def states(recipe: Recipe, titles: str) -> Artifact:
    """The states of titles, whose tokens' SHA-256 is `titles`, in the untuned model: in the cache,
    as they are of no run."""
    return Artifact(
        fetch.cache_root() / "states" / "titles.npy",
        recipe,
        MODEL,
        contents={**base_content(recipe), "titles": titles},
        verb="states",
    ).named_by_key()


def predictions(
    recipe: Recipe, folder: RunFolder, system: System, weights: str | None = None
) -> Artifact:
    """What a system recommends for the test split; `weights`: SHA-256 over what was trained."""
    language = system.kind == "language_model"
    reads = [path for path in system.depends if path not in ("prompt", "model")]
    contents: dict[str, Any] = {
        **data_content(folder, *TRAINING_DATA, "test.parquet", "candidates-test.parquet")
    }
    if language:
        reads += [*PROMPT, *MODEL]
        contents |= {**base_content(recipe), **template_content(recipe)}
    guides = _guides(recipe, system)
    if system.way == "guided":
        contents["guides"] = guides
    if {"sasrec", "gru4rec"} & set(guides):
        reads.append("baselines.trials")
    if weights is not None:
        contents["weights"] = weights
    if system.asks_similar_users and recipe.demonstrations is not None:
        of_items = vectors(recipe, folder, recipe.demonstrations.similarity.vectors)
        contents |= {f"vectors: {name}": value for name, value in of_items.contents.items()}
    return Artifact(
        folder.predictions(system.name), recipe, reads, contents=contents, verb="recommend"
    )


def lists(of: Artifact, place: Path, listed: int) -> Artifact:
    """The `listed` likeliest items of a system to calibrate with; `of`: what it recommends."""
    return replace(of, place=place, contents={**of.contents, "listed": listed})


def listed(recipe: Recipe, system: System, catalog_size: int) -> int:
    """How many items the lists of a system hold: its Rankings, or as many as are calibrated."""
    calibration = recipe.evaluate.calibration
    if system.kind == "language_model" or calibration is None:
        return recipe.decode.top_k
    return min(calibration.listed, catalog_size)


def _guides(recipe: Recipe, system: System) -> list[str]:
    """The baselines that a system's answers may rest on beside its own weights."""
    decode = recipe.decode
    if system.way == "grounded":
        return [] if decode.grounding.fusion is None else [decode.grounding.fusion]
    if system.way != "guided":
        return []
    if decode.guidance.baseline not in (None, "auto"):
        return [str(decode.guidance.baseline)]
    return [name for name in recipe.systems if name in GUIDES] or list(GUIDES[:1])


def answers_file(recipe: Recipe, folder: RunFolder) -> Path:
    """The model's own answers: the recipe's, or else the run's."""
    given = recipe.soft.answers if recipe.soft else None
    return (Path(given) if given else folder.answers) / ANSWERS


def _answers_hash(recipe: Recipe, folder: RunFolder) -> str:
    path = answers_file(recipe, folder)
    if not path.is_file():
        raise DataError(f"{path} is not there; make it with `llmrec distill`")
    return remembered_hash(path)


def _product(train: dict[str, Any]) -> int:
    """Rows of an optimiser step in one process."""
    rows, accumulated = (int(train.get(name) or 1) for name in _CUT)
    return rows * accumulated


def _is_constant(recipe: Recipe) -> bool:
    """Whether no step of a training depends on how many are still to come."""
    train, soft = recipe.train, recipe.soft
    warmup = train.get("warmup_steps", 0)
    return (
        train.get("lr_scheduler_type") in _CONSTANT
        and isinstance(warmup, int | float)
        and (warmup == 0 or warmup >= 1)
        and (soft is None or soft.schedule != "linear")
    )
