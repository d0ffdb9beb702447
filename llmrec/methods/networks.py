"""Networks: the sequential recommender of a recipe, trained, fine-tuned and kept.

Three steps, each a sealed folder that is not made twice: `base` trains with cross-entropy, the best
in validation of `network.trials` settings, kept by content in the cache for any other run; `cpft`
trains that on with the losses of conformal prediction (CPFT, arXiv 2402.08976), and `ce` trains it
on with cross-entropy alone for as many epochs as `cpft` took, which is what that must be compared
with. A step that was interrupted begins afresh.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llmrec.baselines.fine_tuning import FineTuning, following_items
from llmrec.baselines.network_tuning import KINDS, WEIGHTS, Store, Task, settings_to_try, tune
from llmrec.baselines.rows import spans
from llmrec.baselines.sequential import FittedNetwork, Sequential, default_device, sequences_of
from llmrec.data import sealed as checkpoints
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples, Interactions
from llmrec.errors import LlmrecError, RecipeError
from llmrec.fetch import cache
from llmrec.methods.method import Method, Step
from llmrec.methods.network_sets import places_loss
from llmrec.recipe import Recipe
from llmrec.recipe.conformal import Conformal
from llmrec.recipe.systems import parsed
from llmrec.runs import made
from llmrec.runs.folder import RunFolder

log = logging.getLogger("llmrec")
_OF_TRAINING = ("sizes", "learning_rate", "trials", "trained")


def preview(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """What training would go through and need."""
    sizes, data = _sizes(recipe), Interactions.read(folder.interactions)
    lengths = np.array([len(sequence) for sequence in sequences_of(data)], np.int64)
    rows = len(spans(lengths, sizes.max_length, np.random.default_rng(recipe.seed)))
    catalog = Catalog.read(folder.items)
    network = sizes.network(len(catalog), catalog.titles)
    steps = steps_of(recipe)
    at_most = {
        "base": sum(-(-rows // tried.batch_size) * tried.max_epochs for tried in _tries(recipe))
    }
    if recipe.conformal is not None:
        batches = -(-int((lengths - 1).sum()) // recipe.conformal.batch_size)
        epochs = recipe.conformal.max_epochs * len(_rates(recipe.conformal))
        at_most |= dict.fromkeys(steps[1:], batches * epochs)
    return {
        "sequences": len(lengths),
        "windows_of_an_epoch": rows,
        "parameters": sum(p.numel() for p in network.parameters()),
        "optimiser_steps_about": at_most,
    }


def steps_of(recipe: Recipe) -> list[str]:
    """The steps in their order."""
    if recipe.conformal is None:
        return ["base"]
    asked = {system.step for system in parsed(recipe.systems) if system.kind == "network"}
    return ["base", "cpft", *(["ce"] if "ce" in asked else [])]


def fitted(recipe: Recipe, folder: RunFolder, step: str, to_use: bool = False) -> FittedNetwork:
    """The network as a step left it. Raises LlmrecError where it was not trained.

    `to_use`: to answer with it, under whatever `decode` says now.
    """
    known = made.network(recipe, folder, step, to_use).require()
    catalog = Catalog.read(folder.items)
    network = _kind(recipe)(**known["sizes"]).network(len(catalog), catalog.titles)
    weights = folder.network(step) / WEIGHTS
    try:
        network.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise LlmrecError(
            f"{weights} holds no weights of this network ({str(error).splitlines()[0]}); remove "
            f"{weights.parent} and run `llmrec train` again"
        ) from None
    return FittedNetwork(network.to(default_device()).eval(), 1.0, known["epoch"])


def facts(recipe: Recipe, folder: RunFolder, step: str) -> dict[str, Any]:
    """What is known of a step's training, as `train` returns it; `sizes` are its settings."""
    known = made.network(recipe, folder, step, to_use=True).facts_or_none() or {}
    return {**_described(known), "step": step}


def _step(recipe: Recipe, folder: RunFolder, step: str) -> dict[str, Any]:
    artifact = made.network(recipe, folder, step)
    standing = artifact.facts_or_none()
    if standing is not None:
        log.info("train: %s stands already", artifact.place)
        return {**_described(standing), "skipped": True}
    data, valid = Interactions.read(folder.interactions), Examples.read(folder.examples("valid"))
    filter_seen = recipe.decode.filter_seen
    if step == "base":
        assert recipe.network is not None  # noqa: S101  _sizes asked
        catalog, store = Catalog.read(folder.items), Store(cache.networks_root())
        size, titles = len(catalog), catalog.titles
        task = Task(data, size, valid, filter_seen, recipe.seed, store, titles)
        found = tune(_tries(recipe), task, recipe.network.at_once)
        network, known = (
            found.fitted,
            {
                "epochs": None,
                "ndcg": found.ndcg,
                "seconds": round(sum(seconds for *_, seconds in found.trials), 2),
                "sizes": asdict(found.settings),
                "trained": [
                    {**asdict(tried), "valid_ndcg@10": ndcg, "epoch": epoch}
                    for tried, ndcg, epoch, _ in found.trials
                ],
            },
        )
    else:
        network, known = _tuned_on(recipe, folder, step, data, valid)
    state = network.network.state_dict()
    with artifact.staging() as staged:
        staged.mkdir()
        save_file({name: t.cpu().contiguous() for name, t in state.items()}, staged / WEIGHTS)
        artifact.seal(staged, epoch=network.epoch, **known)
    return {**_described(checkpoints.facts(artifact.place)), "skipped": False}


def _tuned_on(
    recipe: Recipe, folder: RunFolder, step: str, data: Interactions, valid: Examples
) -> tuple[FittedNetwork, dict[str, Any]]:
    """The base trained on, with the learning rate that does best in validation, and its facts."""
    conformal = recipe.conformal
    assert conformal is not None  # noqa: S101  steps_of asks
    base, filter_seen = fitted(recipe, folder, "base"), recipe.decode.filter_seen
    epochs, patience, loss, further = conformal.max_epochs, conformal.patience, None, None
    if step == "cpft":
        loss = places_loss(conformal)
        further = following_items(data, valid) if conformal.view == "valid" else None
    else:
        as_many = made.network(recipe, folder, "cpft").facts_or_none()
        if as_many is None:
            raise LlmrecError("step ce trains for as many epochs as cpft; run that first")
        epochs, patience = as_many["epochs"], None
    sizes = facts(recipe, folder, "base")["sizes"]
    decay, tries = sizes["weight_decay"], {}
    for rate in _rates(conformal):
        plan = FineTuning(rate, decay, conformal.batch_size, epochs, patience)
        tries[rate] = plan.fit(base, data, valid, filter_seen, recipe.seed, loss, further)
    best = max(tries, key=lambda rate: tries[rate].ndcg)
    return tries[best].fitted, {
        "epochs": tries[best].epochs,
        "ndcg": tries[best].ndcg,
        "seconds": round(sum(tried.seconds for tried in tries.values()), 2),
        "sizes": sizes,
        "learning_rate": best,
        "trials": {f"{rate:g}": tried.ndcg for rate, tried in tries.items()},
    }


def _rates(conformal: Conformal) -> list[float]:
    """The learning rates that are tried."""
    return conformal.grid if conformal.learning_rate == "auto" else [conformal.learning_rate]


def _described(known: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of training."""
    return {
        "epoch": known.get("epoch"),
        "epochs": known.get("epochs"),
        "valid_ndcg@10": known.get("ndcg"),
        "seconds": known.get("seconds"),
        **{key: known[key] for key in _OF_TRAINING if key in known},
    }


def _kind(recipe: Recipe) -> type[Sequential]:
    if recipe.network is None:
        raise RecipeError("the recipe has no section network")
    return KINDS[recipe.network.kind]


def _sizes(recipe: Recipe) -> Sequential:
    """The settings that the recipe names, which the search begins with."""
    kind, network = _kind(recipe), recipe.network
    given = network.model_dump(include={f.name for f in fields(kind)}) if network else {}
    return kind(**given)


def _tries(recipe: Recipe) -> list[Sequential]:
    """The settings of the search, the recipe's own first."""
    start, network = _sizes(recipe), recipe.network
    if network is None or network.settings is None:
        return settings_to_try(start, network.trials if network else 1)
    changes = (change.model_dump(exclude_none=True) for change in network.settings)
    changed = (
        replace(start, **{k: v for k, v in change.items() if hasattr(start, k)})
        for change in changes
    )
    return list(dict.fromkeys([start, *changed]))[: network.trials]


def _steps(recipe: Recipe) -> dict[str, Step]:
    def step(name: str) -> Step:
        return lambda recipe, folder, _: _step(recipe, folder, name)

    return {name: step(name) for name in steps_of(recipe)}


NETWORK = Method(_steps, main=None, preview=preview)
