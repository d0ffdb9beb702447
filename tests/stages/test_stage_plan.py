"""`llmrec plan`: figures of a recipe, and a refusal of what cannot fit."""

import pytest

from llmrec.errors import RecipeError
from llmrec.stages import plan, preview, train


def test_a_plan_counts_what_training_then_does(recipe_of):
    recipe, folder = recipe_of()
    told = plan.run(recipe, folder)
    seen = preview.run(recipe, folder)
    assert told["fits"]
    assert told["training"]["steps"] == seen["optimiser_steps"]
    assert told["training"]["rows"] == seen["rows"]
    assert told["training"]["tokens_of_a_row"]["max"] == seen["row_tokens"]["p100"]
    assert told["model"]["weights"] == seen["parameters"]
    assert told["model"]["trained"] == seen["trainable_parameters"]
    assert told["training"]["disk_gib"] == round(seen["disk_needed_bytes"] / 2**30, 3)
    assert told["recommending"]["users"] == 24
    done = train.run(recipe, folder)
    assert done["steps"] == told["training"]["steps"]


def test_more_gpus_take_less_time_and_fewer_steps(recipe_of):
    recipe, folder = recipe_of()
    one = plan.run(recipe, folder, tflops=1e-6)["training"]
    many = plan.run(recipe, folder, gpus=2, nodes=2, tflops=1e-6)["training"]
    assert many["hours"] == pytest.approx(one["hours"] / 4, rel=1e-2)
    assert many["steps"] == 2 * -(-29 // 16)
    assert many["operations"] == one["operations"]
    assert one["bound_by"] == "arithmetic"
    small = plan.run(recipe, folder)["training"]  # a GPU waits for the launches of so small a model
    assert small["bound_by"] == "launches"
    assert small["hours"] == round(16 * 2 * 6.3e-3 / 3600, 4)


def test_frozen_weights_are_counted_as_a_gpu_would_hold_them(recipe_of):
    def frozen(*overrides):
        return plan.run(*recipe_of(*overrides), tflops=1e-6)["training"]["memory_gib"][
            "frozen weights"
        ]

    assert (
        frozen()
        == frozen("model.dtype=bfloat16")
        == pytest.approx(frozen("model.dtype=float32") / 2, abs=1e-3)
    )
    assert frozen("model.lora=null") == frozen("model.lora=null", "model.dtype=float32")


def test_what_cannot_fit_is_refused_with_what_would_help(recipe_of):
    recipe, folder = recipe_of("train.per_device_train_batch_size=16")
    told = plan.run(recipe, folder, memory_gib=0.001)
    assert not told["fits"]
    with pytest.raises(RecipeError, match=r"GiB are needed of a GPU and .*would help"):
        plan.require_fits(told)
    with pytest.raises(RecipeError, match="one process"):
        plan.run(*recipe_of("network.trials=1", "systems=[network]"))


def test_training_refuses_what_its_weights_alone_do_not_leave_room_for(recipe_of, monkeypatch):
    recipe, folder = recipe_of()
    weights = plan.run(recipe, folder)["model"]["weights"]
    loaded = []
    monkeypatch.setattr(train, "model_of", lambda *_: loaded.append(1) or 1 / 0)
    monkeypatch.setattr(plan, "memory_of", lambda _: 4.0 * weights - 1)
    with pytest.raises(RecipeError, match=r"take \S+ GiB and this machine has .* would help"):
        train.run(recipe, folder)
    assert not loaded
    monkeypatch.setattr(plan, "memory_of", lambda _: 4.0 * weights)
    with pytest.raises(ZeroDivisionError):
        train.run(recipe, folder)
    assert loaded
