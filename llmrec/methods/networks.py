"""Networks: the sequential recommender of a recipe, trained, fine-tuned and kept.

Three steps, each a sealed folder that is not made twice: `base` trains with cross-entropy, `cpft`
trains that on with the losses of conformal prediction (CPFT, arXiv 2402.08976), and `ce` trains it
on with cross-entropy alone for as many epochs as `cpft` took, which is what that must be compared
with. A step that was interrupted begins afresh.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmrec.baselines.fine_tuning import FineTuning, SetLoss, following_items
from llmrec.baselines.gru4rec import GRU4Rec
from llmrec.baselines.sasrec import SASRec
from llmrec.baselines.sequential import FittedNetwork, Sequential, sequences_of, spans
from llmrec.data import sealed as checkpoints
from llmrec.data.catalog import Catalog
from llmrec.data.files import sha256_of
from llmrec.data.records import Examples, Interactions
from llmrec.errors import LlmrecError, RecipeError
from llmrec.model.set_losses import log_threshold, set_distance, set_size
from llmrec.recipe import Recipe
from llmrec.recipe.conformal import Conformal
from llmrec.recipe.systems import parsed
from llmrec.runs.folder import RunFolder

log = logging.getLogger("llmrec")
WEIGHTS = "model.safetensors"


def train(recipe: Recipe, folder: RunFolder, only: str | None = None) -> dict[str, Any]:
    """Go through the steps that the recipe's systems need; `only`: that one, after those before.

    Returns for each step where it stands, its best epoch, validation NDCG@10 and seconds.
    """
    steps = steps_of(recipe)
    if only is not None and only not in steps:
        raise RecipeError(f"--only {only}: the steps are {', '.join(steps)}")
    wanted = steps if only is None else [only]
    return {step: _step(recipe, folder, step) for step in wanted}


def preview(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """What training would go through and need."""
    sizes, data = _sizes(recipe), Interactions.read(folder.interactions)
    lengths = [len(sequence) for sequence in sequences_of(data)]
    rows = len(list(spans(lengths, sizes.max_length, np.random.default_rng(recipe.seed))))
    network = sizes.network(len(Catalog.read(folder.items)))
    steps = steps_of(recipe)
    batch = {"base": sizes.batch_size}
    epochs = {"base": sizes.max_epochs}
    if recipe.conformal is not None:
        batch |= dict.fromkeys(steps[1:], recipe.conformal.batch_size)
        epochs |= dict.fromkeys(steps[1:], recipe.conformal.max_epochs)
    return {
        "sequences": len(lengths),
        "windows_of_an_epoch": rows,
        "parameters": sum(p.numel() for p in network.parameters()),
        "optimiser_steps_at_most": {s: -(-rows // batch[s]) * epochs[s] for s in steps},
    }


def steps_of(recipe: Recipe) -> list[str]:
    """The steps in their order."""
    if recipe.conformal is None:
        return ["base"]
    asked = {system.step for system in parsed(recipe.systems) if system.kind == "network"}
    return ["base", "cpft", *(["ce"] if "ce" in asked else [])]


def fitted(recipe: Recipe, folder: RunFolder, step: str) -> FittedNetwork:
    """The network as a step left it. Raises LlmrecError where it was not trained."""
    known = _standing(recipe, folder, step)
    if known is None:
        raise LlmrecError(
            f"{folder.network(step)}: no trained network of this recipe; run `llmrec train` first"
        )
    network = _sizes(recipe).network(len(Catalog.read(folder.items)))
    network.load_state_dict(load_file(folder.network(step) / WEIGHTS))
    return FittedNetwork(network.eval(), 1.0, known["epoch"])


def facts(recipe: Recipe, folder: RunFolder, step: str) -> dict[str, Any]:
    """What is known of a step's training, as `train` returns it, and what it was trained with."""
    known = _standing(recipe, folder, step) or {}
    said = {**_described(known), "step": step}
    return {**said, **asdict(_sizes(recipe))}


def weights_hash(folder: RunFolder, step: str) -> str:
    """SHA-256 of a step's weights. Raises LlmrecError where there are none."""
    path = folder.network(step) / WEIGHTS
    if not path.is_file():
        raise LlmrecError(f"{path} is not there; run `llmrec train` first")
    return sha256_of(path)


def set_loss(conformal: Conformal) -> SetLoss:
    """beta times the set size plus gamma times the distance, over the whole catalog."""
    temperature = conformal.temperature if conformal.smooth else None

    def loss(
        train: Tensor, sets: Tensor, labels: Tensor, items: Tensor
    ) -> tuple[Tensor, Mapping[str, float]]:
        eta = log_threshold(train.gather(1, labels[:, None])[:, 0], conformal.alpha, temperature)
        total = sets.new_zeros(())
        parts = {}
        if conformal.beta:
            size = set_size(sets, eta, temperature)
            total, parts["set_size"] = total + conformal.beta * size, size.item()
        if conformal.gamma:
            unit = torch.nn.functional.normalize(items, dim=-1)
            is_label = torch.nn.functional.one_hot(labels, len(items)).bool()
            distance = set_distance(
                sets, eta, unit[labels] @ unit.T, is_label, conformal.nearest, temperature
            )
            total = total + conformal.gamma * distance
            parts["set_distance"] = distance.item()
        return total, parts

    return loss


def _step(recipe: Recipe, folder: RunFolder, step: str) -> dict[str, Any]:
    known = _standing(recipe, folder, step)
    if known is not None:
        log.info("train: %s stands already", folder.network(step))
        return {**_described(known), "skipped": True}
    data, valid = Interactions.read(folder.interactions), Examples.read(folder.examples("valid"))
    filter_seen = recipe.decode.filter_seen
    if step == "base":
        begun, sizes = time.monotonic(), _sizes(recipe)
        size = len(Catalog.read(folder.items))
        network = sizes.fit(data, size, valid, filter_seen, recipe.seed)
        seconds, epochs = time.monotonic() - begun, None
        ndcg = network.ndcg(valid, filter_seen)
    else:
        conformal = recipe.conformal
        assert conformal is not None  # noqa: S101  steps_of asks
        plan = FineTuning(
            conformal.learning_rate,
            _sizes(recipe).weight_decay,
            conformal.batch_size,
            conformal.max_epochs,
            conformal.patience,
        )
        base = fitted(recipe, folder, "base")
        if step == "ce":
            as_many = _standing(recipe, folder, "cpft")
            if as_many is None:
                raise LlmrecError("step ce trains for as many epochs as cpft; run that first")
            plan = replace(plan, max_epochs=as_many["epochs"], patience=None)
            tuned = plan.fit(base, data, valid, filter_seen, recipe.seed)
        else:
            further = following_items(data, valid) if conformal.view == "valid" else {}
            tuned = plan.fit(
                base, data, valid, filter_seen, recipe.seed, set_loss(conformal), further
            )
        network, epochs = tuned.fitted, tuned.epochs
        ndcg, seconds = tuned.ndcg, tuned.seconds
    _keep(recipe, folder, step, network, epochs=epochs, ndcg=ndcg, seconds=round(seconds, 2))
    return {**_described(checkpoints.facts(folder.network(step))), "skipped": False}


def _keep(
    recipe: Recipe, folder: RunFolder, step: str, network: FittedNetwork, **known: Any
) -> None:
    final = folder.network(step)
    staged = final.with_name(f".{step}.{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    save_file(
        {k: v.contiguous() for k, v in network.network.state_dict().items()}, staged / WEIGHTS
    )
    checkpoints.seal(
        staged, final, settings=_settings(recipe, folder, step), epoch=network.epoch, **known
    )


def _standing(recipe: Recipe, folder: RunFolder, step: str) -> dict[str, Any] | None:
    """The facts of a verified network of these very settings, None where there is none."""
    place = folder.network(step)
    if not place.is_dir():
        return None
    wrong = checkpoints.problem(place)
    if wrong is not None:
        log.warning("train: %s is damaged (%s); training again", place, wrong)
        return None
    known = checkpoints.facts(place)
    if known["settings"] != json.loads(json.dumps(_settings(recipe, folder, step))):
        raise LlmrecError(
            f"{place} was trained with other settings or data; give the recipe "
            "another name, or remove that folder"
        )
    return known


def _settings(recipe: Recipe, folder: RunFolder, step: str) -> dict[str, Any]:
    """All that a step's weights depend on."""
    settings = recipe.model_dump(mode="json", include={"seed", "network"})
    settings |= {
        "filter_seen": recipe.decode.filter_seen,
        "data": sha256_of(folder.data / "manifest.json"),
    }
    if step != "base" and recipe.conformal is not None:
        settings["conformal"] = recipe.conformal.model_dump(mode="json", exclude={"candidates"})
    return settings


def _described(known: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of training."""
    return {
        "epoch": known.get("epoch"),
        "epochs": known.get("epochs"),
        "valid_ndcg@10": known.get("ndcg"),
        "seconds": known.get("seconds"),
    }


def _sizes(recipe: Recipe) -> Sequential:
    network = recipe.network
    if network is None:
        raise RecipeError("the recipe has no section network")
    shared = network.model_dump(exclude={"kind", "heads"})
    if network.kind == "gru4rec":
        return GRU4Rec(**shared)
    return SASRec(**shared, heads=network.heads)
