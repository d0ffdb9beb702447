"""Training as a user runs it: what it leaves, how it goes on, and what it refuses."""

import json
import logging
import random
import shutil
import time
import types

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llmrec.data import sealed as checkpoints
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples, Interactions
from llmrec.errors import LlmrecError, RecipeError
from llmrec.inference.from_recipe import base_of, encoder_of
from llmrec.methods.plain import softmax_of
from llmrec.methods.windows import training_rows, training_windows
from llmrec.model.kept_weights import read_log
from llmrec.model.loading import load_model
from llmrec.stages import prepare, preview, timing, train


def log_lines(folder):
    return read_log(folder.train_log)


def numbers(folder):
    """The logged lines without the clock."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in log_lines(folder)]


@pytest.mark.parametrize("shape", ["single", "all_targets", "inline"])
@pytest.mark.parametrize("objective", ["sft", "msl"])
def test_training_learns_and_leaves_a_plain_peft_adapter(recipe_of, shape, objective):
    from peft import AutoPeftModelForCausalLM

    recipe, folder = recipe_of(f"rows.shape={shape}", f"objective.name={objective}")
    result = train.run(recipe, folder)
    losses = [line["loss"] for line in log_lines(folder) if "loss" in line]
    assert np.mean(losses[-2:]) < np.mean(losses[:2])
    best = min(line["valid_nll"] for line in log_lines(folder) if "valid_nll" in line)
    assert result["valid_nll"] == pytest.approx(best)
    assert checkpoints.problem(folder.adapter) is None
    assert not list(folder.root.rglob("training_args.bin"))
    model = AutoPeftModelForCausalLM.from_pretrained(str(folder.adapter))
    assert any("lora_B" in n and p.abs().sum() > 0 for n, p in model.named_parameters())


def test_a_second_run_does_nothing_and_other_settings_are_refused(recipe_of):
    recipe, folder = recipe_of()
    train.run(recipe, folder)
    before = (folder.adapter / "adapter_model.safetensors").stat().st_mtime_ns
    assert train.run(recipe, folder)["skipped"]
    assert (folder.adapter / "adapter_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(LlmrecError, match="other settings"):
        train.run(*recipe_of("train.learning_rate=0.02"))
    (folder.adapter / "adapter_model.safetensors").write_bytes(b"damaged")
    assert not train.run(recipe, folder)["skipped"]


def test_the_loss_does_not_depend_on_how_a_step_is_cut(recipe_of):
    recipe, folder = recipe_of("rows.shape=all_targets", "objective.name=msl")
    prepare.run(recipe, folder)
    encoder = encoder_of(recipe, Catalog.read(folder.items))
    windows = training_windows(recipe, Examples.read(folder.examples("train")))
    rows = training_rows(recipe, encoder, windows)[:6]
    flats = [row.flatten() for row in rows]
    softmax, model = softmax_of(recipe, encoder), load_model(base_of(recipe), "cpu")
    targets = sum(flat.branch_count for flat in flats)
    gradients = []
    for size in (6, 4, 1):
        model.zero_grad()
        total = 0.0
        for start in range(0, 6, size):
            batch = softmax.prepare(flats[start : start + size])
            loss = -softmax.branch_log_probabilities(model, batch).sum() / targets
            loss.backward()
            total += float(loss.detach())
        gradients.append((total, torch.cat([p.grad.flatten() for p in model.parameters()])))
    for total, gradient in gradients[1:]:
        assert total == pytest.approx(gradients[0][0], abs=1e-5)
        scale = float(gradients[0][1].abs().max())
        torch.testing.assert_close(gradient / scale, gradients[0][1] / scale, rtol=0, atol=1e-5)


def test_accumulation_gives_the_trajectory_of_the_whole_batch(recipe_of):
    whole, folder_a = recipe_of("name=whole", "rows.shape=inline")
    cut, folder_b = recipe_of(
        "name=cut",
        "rows.shape=inline",
        "train.per_device_train_batch_size=2",
        "train.gradient_accumulation_steps=2",
    )
    train.run(whole, folder_a)
    train.run(cut, folder_b)
    losses = [[x["loss"] for x in log_lines(f) if "loss" in x] for f in (folder_a, folder_b)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_killed_runs_go_on_to_the_very_same_bytes(recipe_of, train_killed):
    """SIGKILL at random moments, then the same command again, until it is done."""
    straight, folder_a = recipe_of("name=straight")
    train.run(straight, folder_a)
    killed, folder_b = recipe_of("name=killed")
    rng, whole = random.Random(1), (folder_a.adapter / "adapter_model.safetensors").read_bytes()
    landed = 0
    while landed < 25:
        moments = [after_seconds(rng.random() * 0.9) for _ in range(5)]
        landed += train_killed(killed, moments)
        assert numbers(folder_b) == numbers(folder_a)
        assert (folder_b.adapter / "adapter_model.safetensors").read_bytes() == whole
        shutil.rmtree(folder_b.root)


def after_seconds(seconds):
    """A condition that holds after so many seconds from when it is first asked."""
    begun = []

    def reached():
        begun.append(time.monotonic())
        return begun[-1] - begun[0] > seconds

    return reached


def test_a_loss_that_is_not_finite_stops_before_the_weights_and_names_the_rows(recipe_of):
    recipe, folder = recipe_of("train.learning_rate=1e9", "train.max_grad_norm=0")
    with pytest.raises(LlmrecError, match=r"(loss|gradient).*(rows|weights)"):
        train.run(recipe, folder)
    for saved in folder.checkpoints.glob("checkpoint-*/adapter_model.safetensors"):
        assert all(torch.isfinite(t).all() for t in load_file(saved).values())


def test_full_fine_tuning_trains_every_weight(recipe_of):
    recipe, folder = recipe_of("model.lora=null", "train.learning_rate=0.001")
    train.run(recipe, folder)
    assert (folder.adapter / "model.safetensors").is_file()


def test_a_dry_run_tells_and_trains_nothing(recipe_of):
    recipe, folder = recipe_of("rows.shape=all_targets")
    told = preview.run(recipe, folder)
    assert told["rows"] == 48 or told["rows"] > 10
    assert told["targets"] > told["rows"]
    assert told["trainable_parameters"] < told["parameters"]
    assert told["optimiser_steps"] >= 2 * told["rows"] // 4
    assert not folder.adapter.exists()
    assert not folder.checkpoints.exists()
    assert not folder.train_log.exists()


def test_a_dry_run_tells_the_hours_of_every_stage(recipe_of, monkeypatch, caplog):
    """With a clock on which each step and each question takes a second."""
    settings = "systems=[popularity, sasrec, untuned, tuned, tuned_guided, tuned_grounded]"
    recipe, folder = recipe_of(settings, "baselines.trials=3", "evaluate.gates=true")
    ticks = iter(range(10**6))
    clock = types.SimpleNamespace(monotonic=lambda: 3600.0 * next(ticks))
    monkeypatch.setattr(timing, "time", clock)
    with caplog.at_level(logging.WARNING, "llmrec"):
        told = preview.run(recipe, folder)
    hours = told["hours"]
    valid, test = (len(Examples.read(folder.examples(part))) for part in ("valid", "test"))
    data = Interactions.read(folder.interactions)
    assert len(data.user_ids) < timing.NETWORK_USERS  # so that the epoch is a whole one
    assert hours["recommend"] == {
        "popularity": 0.0,
        "sasrec": 3 * 100.0,
        "untuned": pytest.approx(test * (0.5 + 0.5)),  # and once more, with other histories
        "tuned": pytest.approx(test * (0.5 + 0.5)),
        "tuned_guided": pytest.approx(test * 0.5 + valid * 0.5),
        "tuned_grounded": pytest.approx(test * 0.5),
    }
    steps = told["optimiser_steps"]
    assert hours["train"]["validation"] == pytest.approx(steps // 4 * valid / 2)
    assert hours["train"]["steps"] == pytest.approx(steps, 0.35)  # by the tokens of these rows
    assert hours["evaluate"] == pytest.approx(1 / 4 * 7 * 6 * 3)
    assert hours["prepare"] < 0.01
    assert "in all: prepare" in told["in_words"]
    assert "a run of this takes about" in caplog.text
    assert "less: rows.count" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.lora.target_modules=[no_such_layer]", "no_such_layer"),
        ("model.quantization=4bit", "CUDA GPU"),
        ("prompt.max_tokens=2000", "at most 512"),
        ("prompt.max_tokens=20", "max_tokens = 20"),
    ],
)
def test_a_recipe_this_model_or_machine_cannot_run_is_refused(recipe_of, override, message):
    with pytest.raises(RecipeError, match=message):
        train.run(*recipe_of(override))


def test_two_processes_give_the_trajectory_of_one(recipe_of, in_two_processes):
    """Two processes over gloo, with half the batch each."""
    one, folder_a = recipe_of("name=one")
    train.run(one, folder_a)
    two, folder_b = recipe_of("name=two", "train.per_device_train_batch_size=2")
    told = json.loads(in_two_processes("train", two, "--json"))
    assert told["steps"] == log_lines(folder_a)[-1]["step"]
    ours, theirs = (
        [(x["step"], x["loss"], x["targets"]) for x in log_lines(f) if "loss" in x]
        for f in (folder_b, folder_a)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    valid = [
        [x["valid_nll"] for x in log_lines(f) if "valid_nll" in x] for f in (folder_b, folder_a)
    ]
    np.testing.assert_allclose(valid[0], valid[1], rtol=1e-4)
