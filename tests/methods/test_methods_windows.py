"""What is trained on, and what training starts from: cuts of the sequences, layers, weights."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llmrec.data.records import Examples, Interactions
from llmrec.errors import LlmrecError, RecipeError
from llmrec.inference.from_recipe import base_of
from llmrec.methods.windows import training_windows
from llmrec.model.loading import Lora, load_model, with_new_lora
from llmrec.stages import prepare, train


def cut(recipe, folder):
    """User -> (history, target) of each window, by the place of its target; and the log."""
    prepare.run(recipe, folder)
    log = Interactions.read(folder.interactions)
    found = {}
    for window in training_windows(recipe, Examples.read(folder.examples("train"))):
        assert log.position[window.row] == window.target
        assert str(log.user_ids[log.user[window.row]]) == window.user_id
        mine = found.setdefault(window.user_id, {})
        assert window.end not in mine
        mine[window.end] = (window.history.tolist(), window.target)
    whole = {
        str(name): log.position[log.user == code].tolist() for code, name in enumerate(log.user_ids)
    }
    return found, whole


def test_windows_are_cut_from_the_end_and_do_not_overlap(recipe_of):
    found, whole = cut(*recipe_of("prompt.max_history=2"))
    for user, items in whole.items():
        ends = sorted(found[user])
        assert ends == list(range(len(items) - 1, 0, -3))[::-1]
        for end, (history, target) in found[user].items():
            assert (history, target) == (items[max(0, end - 2) : end], items[end])


def test_every_item_but_the_first_is_a_target_behind_what_came_before(recipe_of):
    found, whole = cut(*recipe_of("prompt.max_history=3", "rows.every=item"))
    for user, items in whole.items():
        assert sorted(found[user]) == list(range(1, len(items)))
        for end, (history, target) in found[user].items():
            assert (history, target) == (items[max(0, end - 3) : end], items[end])


@pytest.mark.parametrize(
    ("override", "said"),
    [("rows.shape=inline", "needs rows.shape single"), ("data.split=sliding_window", "drop rows")],
)
def test_every_item_is_refused_where_it_would_be_learned_twice(recipe_of, override, said):
    with pytest.raises(RecipeError, match=said):
        recipe_of("rows.every=item", override)


# All rows in each step, without an optimiser that remembers: then nothing but weights goes on.
FORGETFUL = (
    "train.per_device_train_batch_size=64",
    "train.optim=sgd",
    "train.lr_scheduler_type=constant",
    "train.learning_rate=0.05",
    "train.eval_strategy='no'",
    "train.save_strategy='no'",
)


def weights(folder):
    return load_file(folder.adapter / "adapter_model.safetensors")


def test_starting_from_an_adapter_is_training_on_without_a_break(recipe_of):
    """Equal where only weights go on: plain gradient descent, a constant rate, whole steps."""
    straight, folder_a = recipe_of("name=straight", *FORGETFUL, "train.num_train_epochs=4")
    train.run(straight, folder_a)
    first, folder_b = recipe_of("name=first", *FORGETFUL, "train.num_train_epochs=2")
    train.run(first, folder_b)
    for place in (folder_b.root, folder_b.adapter):  # a run, or the adapter itself
        then, folder = recipe_of(
            f"name=then-{place.name}",
            *FORGETFUL,
            "train.num_train_epochs=2",
            f"model.start_from={place}",
        )
        train.run(then, folder)
        for name, value in weights(folder).items():
            torch.testing.assert_close(value, weights(folder_a)[name], rtol=0, atol=1e-6)
            if "lora_B" in name:
                assert not torch.allclose(value, weights(folder_b)[name], rtol=0, atol=1e-5)
    assert train.run(then, folder)["skipped"]


def test_what_it_starts_from_is_known_by_content_and_must_fit(trained, recipe_of):
    _, folder = trained
    start = folder.root.with_name("start")
    folder.adapter.rename(start)
    recipe, own = recipe_of("name=own", f"model.start_from={start}", "train.max_steps=1")
    train.run(recipe, own)
    known = json.loads((own.adapter / "manifest.json").read_text("utf-8"))
    moved = start.rename(start.with_name("moved"))
    recipe, own = recipe_of("name=own", f"model.start_from={moved}", "train.max_steps=1")
    assert train.run(recipe, own)["skipped"], "another path, the same weights"
    assert str(start) not in json.dumps(known)
    path = moved / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(LlmrecError, match=r"model\.start_from"):
        train.run(recipe, own)
    for change, said in (("r=3", "r = 4"), ("alpha=3", "alpha = 16"), ("layers=1", "all layers")):
        other = recipe_of(
            f"name=other-{change[0]}", f"model.start_from={moved}", f"model.lora.{change}"
        )
        with pytest.raises(RecipeError, match=said):
            train.run(*other)
    with pytest.raises(RecipeError, match="no whole model"):
        train.run(*recipe_of("name=whole", f"model.start_from={moved}", "model.lora=null"))
    with pytest.raises(LlmrecError, match="no trained weights"):
        train.run(*recipe_of("name=gone", f"model.start_from={start}"))


@pytest.mark.parametrize("modules", ["all-linear", "[q_proj, v_proj]"])
def test_layers_below_the_adapted_ones_are_neither_kept_nor_differentiated(recipe_of, modules):
    recipe, folder = recipe_of("model.lora.layers=1", f"model.lora.target_modules={modules}")
    train.run(recipe, folder)
    kept = weights(folder)
    assert kept
    assert all(".layers.1." in name for name in kept)
    count = 7 if modules == "all-linear" else 2
    assert len(kept) == 2 * count

    lora = Lora(r=4, target_modules="all-linear", layers=1)
    model = with_new_lora(load_model(base_of(recipe), "cpu"), lora, seed=0).train()
    states = []
    for layer in model.get_base_model().model.layers:
        layer.register_forward_hook(lambda _, __, out: states.append(out))
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
    lower, upper = (s[0] if isinstance(s, tuple) else s for s in states)
    assert not lower.requires_grad, "nothing of the lower layer is stored for a gradient"
    assert upper.requires_grad
    assert np.all([p.grad is not None for p in model.parameters() if p.requires_grad])
    with pytest.raises(RecipeError, match="this model has 2"):
        train.run(*recipe_of("name=deep", "model.lora.layers=3"))
