"""The recipe's models and the static table of training arguments."""

import dataclasses
import json
import subprocess
import sys
import types
import typing

import pytest
from pydantic import ValidationError

from llmrec.recipe import Recipe, device
from llmrec.recipe import trainer_arguments as training_arguments
from llmrec.recipe.decoding import Decode
from llmrec.recipe.keys import all_keys, allowed, schema
from llmrec.recipe.loading import dump, load
from llmrec.recipe.model import Model
from llmrec.recipe.section import Section
from llmrec.recipe.shipped import recipe_names
from llmrec.recipe.systems import SYSTEMS

DATA = {"source": "ml-100k"}


def sections(model=Section):
    for child in model.__subclasses__():
        yield child
        yield from sections(child)


def test_every_field_says_what_it_is_for():
    for section in sections():
        assert section.__doc__
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"


def test_every_key_says_what_it_takes():
    for path in all_keys():
        assert "another value" not in allowed(path), path


def test_the_schema_is_json():
    assert json.loads(json.dumps(schema()))["additionalProperties"] is False


def test_defaults_are_valid_and_frozen():
    recipe = Recipe.model_validate({"name": "x", "data": DATA})
    assert Recipe.model_validate(recipe.model_dump()) == recipe
    assert recipe.train == training_arguments.DEFAULTS
    assert tuple(recipe.systems) == SYSTEMS
    with pytest.raises(ValidationError):
        recipe.seed = 3


def test_defaults_are_not_shared_between_recipes():
    one, two = (Recipe.model_validate({"name": "x", "data": DATA}) for _ in range(2))
    one.evaluate.k.append(99)
    one.train["learning_rate"] = 5
    assert 99 not in two.evaluate.k
    assert two.train["learning_rate"] == 1e-3
    assert training_arguments.DEFAULTS["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    "change",
    [
        {"data": {**DATA, "ratios": [0.5, 0.5, 0.5]}},
        {"data": {**DATA, "ratios": [0.0, 0.5, 0.5]}},
        {"data": {**DATA, "ratios": [1.0]}},
        {"data": {**DATA, "k_core": -1}},
        {"data": {**DATA, "k_core": 2.5}},
        {"data": {**DATA, "k_core": "5"}},
        {"data": {**DATA, "k_core": True}},
        {"model": {"trust_remote_code": True, "revision": "main"}},
        {"model": {"quantization": "4bit", "lora": None}},
        {"model": {"lora": {"target_modules": []}}},
        {"model": {"lora": {"dropout": 1.0}}},
        {"decode": {"beams": 5, "top_k": 10}},
        {"decode": {"guidance": {"weight": 1.5}}},
        {"decode": {"guidance": {"weight": "best"}}},
        {"decode": {"guidance": {"weight": True}}},
        {"decode": {"guidance": {"baseline": "tgh"}}},
        {"decode": {"guidance": {"baseline": None}}, "systems": ["tuned_guided"]},
        {"systems": ["markov", "markov"]},
        {"systems": []},
        {"seed": -1},
        {"objective": {"tau": 0}},
        {"train": {"seed": 3}},
        {"train": {"learning_rate": "fast"}},
        {"train": {"nothing": 1}},
    ],
)
def test_what_cannot_be_is_refused(change):
    with pytest.raises(ValidationError):
        Recipe.model_validate({"name": "x", "data": DATA} | change)


@pytest.mark.parametrize(
    ("decode", "kind", "width"),
    [
        ({}, "best_first", 10),
        ({"top_k": 30}, "best_first", 30),
        ({"renormalise": False}, "beam", 10),
        ({"renormalise": False, "top_k": 30}, "beam", 30),
        ({"beams": 20}, "beam", 20),
        ({"search": "beam"}, "beam", 10),
        ({"search": "best_first", "beams": 2}, "best_first", 2),
        ({"search": "certified", "beams": 12}, "certified", 12),
    ],
)
def test_which_search_a_recipe_comes_to(decode, kind, width):
    found = Decode(**decode)
    assert (found.kind, found.width) == (kind, width)


def test_remote_code_needs_a_whole_commit():
    model = {"trust_remote_code": True, "revision": "0123456789abcdef" * 2 + "01234567"}
    recipe = Recipe.model_validate({"name": "x", "data": DATA, "model": model})
    assert recipe.model.trust_remote_code


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_survives_being_written(name, tmp_path):
    recipe = load(name)
    assert recipe.name == name
    copy = tmp_path / "recipe.yaml"
    copy.write_text(dump(recipe))
    assert load(copy) == recipe


def _kinds(annotation):
    plain = {
        int: "int",
        float: "float",
        bool: "bool",
        str: "str",
        type(None): "null",
        list: "list",
        dict: "mapping",
    }
    if annotation in plain:
        return {plain[annotation]}
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(_kinds, typing.get_args(annotation)))
    if origin in plain:
        return {plain[origin]}
    if origin is typing.Literal:
        return {"bool"}
    return {"str"} if issubclass(annotation, str) else {"mapping"}


def test_the_table_of_training_arguments_is_that_of_transformers():
    """The declared kinds contain the real ones, no name is missing and none is made up."""
    from transformers import TrainingArguments
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
    from transformers.training_args import OptimizerNames, trainer_log_levels

    real = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    assert set(training_arguments.KINDS) == set(real)
    for name, field in real.items():
        found = _kinds(field.type) if not isinstance(field.type, str) else set()
        assert found <= set(training_arguments.KINDS[name]), name
    assert {
        "lr_scheduler_type": tuple(m.value for m in SchedulerType),
        "logging_strategy": tuple(m.value for m in IntervalStrategy),
        "eval_strategy": tuple(m.value for m in IntervalStrategy),
        "save_strategy": tuple(m.value for m in SaveStrategy),
        "optim": tuple(m.value for m in OptimizerNames),
        "report_to": ("none", "all", *INTEGRATION_TO_CALLBACK),
        "log_level": tuple(trainer_log_levels),
        "log_level_replica": tuple(trainer_log_levels),
    } == training_arguments.CHOICES
    assert set(training_arguments.REFUSED) <= set(real)
    assert not set(training_arguments.DEFAULTS) & set(training_arguments.REFUSED)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("learning_rate", 1, True),
        ("learning_rate", 1e-4, True),
        ("learning_rate", -1e-4, False),
        ("learning_rate", True, False),
        ("learning_rate", "1e-4", False),
        ("learning_rate", float("nan"), False),
        ("learning_rate", None, False),
        ("max_steps", -1, True),
        ("max_steps", 1.5, False),
        ("max_steps", 2.0, False),
        ("per_device_train_batch_size", 0, False),
        ("gradient_accumulation_steps", 4, True),
        ("bf16", True, True),
        ("bf16", 1, False),
        ("bf16", "true", False),
        ("lr_scheduler_type", "cosine", True),
        ("lr_scheduler_type", "cosin", False),
        ("eval_strategy", "no", True),
        ("eval_strategy", False, False),
        ("gradient_checkpointing_kwargs", {"use_reentrant": False}, True),
        ("gradient_checkpointing_kwargs", [1], False),
        ("report_to", ["wandb"], True),
        ("report_to", "none", True),
        ("report_to", 3, False),
        ("report_to", "wandbb", False),
        ("report_to", ["wandb", "x"], False),
        ("num_train_epochs", 1e300, False),
        ("per_device_train_batch_size", 10**30, False),
        ("optim", "adamw_torch", True),
        ("optim", "adam", False),
        ("eval_steps", None, True),
    ],
)
def test_values_of_training_arguments_are_checked(name, value, expected):
    assert training_arguments.fits(name, value) is expected


def test_the_recipe_needs_neither_torch_nor_transformers():
    program = (
        "import sys, llmrec.recipe.loading as r; r.load('demo');"
        "assert not {'torch', 'transformers', 'numpy', 'typer'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


class Driver:
    """A CUDA driver with GPUs of these compute capabilities; none where the list is empty."""

    def __init__(self, capabilities):
        self.capabilities = capabilities

    def cuInit(self, flags):
        return 0 if self.capabilities else 100

    def cuDeviceGet(self, device, number):
        device._obj.value = number
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        assert attribute == 75
        value._obj.value = self.capabilities[device.value]
        return 0


@pytest.mark.parametrize(
    ("capabilities", "torch_version", "found"),
    [
        ([9], "2.13.0", "bfloat16"),
        ([8, 7], "2.13.0+cu130", "bfloat16"),
        ([7, 9], "2.13.0", "float32"),
        ([9], "2.13.0+cpu", "float32"),
        ([], "2.13.0", "float32"),
        (None, "2.13.0", "float32"),
    ],
)
def test_weights_are_of_what_the_gpu_computes_in(monkeypatch, capabilities, torch_version, found):
    def driver(name):
        if capabilities is None:
            raise OSError(name)
        return Driver(capabilities)

    device.computes_in_bfloat16.cache_clear()
    monkeypatch.setattr(device.ctypes, "CDLL", driver)
    monkeypatch.setattr(device.metadata, "version", lambda name: torch_version)
    try:
        assert Model().dtype == found
        assert Model(dtype=None).dtype == found
        assert Model(lora=None).dtype == "float32", "whole weights lose small updates in bfloat16"
        assert Model(dtype="float32").dtype == "float32"
        assert Model(dtype="bfloat16").dtype == "bfloat16"
        assert Model(dtype="auto").dtype == "auto"
    finally:
        device.computes_in_bfloat16.cache_clear()


def test_a_run_keeps_the_weights_it_was_made_with_on_another_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "computes_in_bfloat16", lambda: True)
    (tmp_path / "kept.yaml").write_text(dump(Recipe(name="x", data={"source": "ml-100k"})))
    monkeypatch.setattr(device, "computes_in_bfloat16", lambda: False)
    assert load(tmp_path / "kept.yaml").model.dtype == "bfloat16"
