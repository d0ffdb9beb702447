"""How often the host waits for the model: never in a micro-batch, once in a search pass."""

import numpy as np
import pytest
import torch
from waits import waits_of

from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.inference.engine import Engine
from llmrec.inference.from_recipe import base_of, encoder_of
from llmrec.model.loading import load_model
from llmrec.model.trainer import TreeTrainer
from llmrec.stages import prepare, train


def test_the_counter_counts_what_brings_values_back():
    layer = torch.nn.Linear(2, 2)
    with waits_of(layer) as waits:
        found = layer(torch.ones(1, 2).to("cpu"))
        assert waits.count == 0
        found.sum().item()
        found.cpu()
        found.tolist()
        bool(found.sum() > 0)
        found[found > 0]
        float(found.mean())
        assert waits.count == 6
        torch.ones(2).tolist()
        found.cpu().tolist()
        assert waits.count == 7


@pytest.mark.parametrize("objective", ["sft", "msl"])
def test_training_waits_at_most_twice_a_step_and_never_in_a_micro_batch(
    recipe_of, monkeypatch, objective
):
    recipe, folder = recipe_of(
        f"objective.name={objective}",
        "train.gradient_accumulation_steps=3",
        "train.per_device_train_batch_size=2",
        "train.num_train_epochs=1",
        "train.logging_steps=1000",
        "train.save_strategy=epoch",
        "train.eval_strategy=epoch",
    )
    within, steps, held = [], [], {}
    real_step, real_samples = TreeTrainer.training_step, TreeTrainer.get_batch_samples
    inner = TreeTrainer._inner_training_loop

    def micro(self, *args, **named):
        before = held["waits"].count
        found = real_step(self, *args, **named)
        within.append(held["waits"].places[before:])
        return found

    def samples(self, *args, **named):
        steps.append(held["waits"].count)
        return real_samples(self, *args, **named)

    def loop(self, *args, **named):
        with waits_of(self.model) as held["waits"]:
            return inner(self, *args, **named)

    monkeypatch.setattr(TreeTrainer, "training_step", micro)
    monkeypatch.setattr(TreeTrainer, "get_batch_samples", samples)
    monkeypatch.setattr(TreeTrainer, "_inner_training_loop", loop)
    train.run(recipe, folder)
    assert len(within) > 10
    assert not [place for places in within for place in places]
    assert len(steps) > 3
    # The last step is followed by what ends the epoch.
    each = np.diff(steps)
    assert each.max() <= 2, held["waits"].places[: steps[2]]


@pytest.mark.parametrize("renormalise", [True, False])
def test_a_search_waits_once_a_pass(recipe_of, renormalise):
    recipe, folder = recipe_of(f"decode.renormalise={str(renormalise).lower()}")
    prepare.run(recipe, folder)
    encoder = encoder_of(recipe, Catalog.read(folder.items))
    histories = Examples.read(folder.examples("valid")).histories()[:6]
    prompts = [encoder.prompt(history).ids for history in histories]
    model = load_model(base_of(recipe), "cpu")
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    engine = Engine(model, encoder, recipe.decode)
    with waits_of(model) as waits:
        engine.rank(prompts, histories)
    assert len(passes) > 2
    assert waits.count <= len(passes), waits.places
