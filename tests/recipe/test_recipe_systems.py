"""Systems: every name is parsed into whose weights answer and how, and what follows from it."""

from typing import get_args

import pytest

from llmrec.errors import LlmrecError
from llmrec.recipe.decoding import Decode
from llmrec.recipe.demonstrations import Demonstrations
from llmrec.recipe.experiment import Recipe
from llmrec.recipe.networks import Baselines
from llmrec.recipe.systems import GUIDES, SYSTEMS, System, SystemName, parsed

NAMES = get_args(SystemName)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_parsed_and_said_again(name):
    assert System.parse(name).name == name
    assert System.is_name(name)


def test_what_the_parser_finds():
    found = {name: System.parse(name) for name in NAMES}
    assert found["recent_popularity"] == System("recent_popularity")
    assert found["network_ce"] == System("network_ce")
    assert found["tuned_sft"] == System("tuned_sft")
    assert found["untuned_guided"] == System("untuned", "guided")
    assert found["tuned_free"] == System("tuned", "free")
    assert {n for n, s in found.items() if s.kind == "network"} == {
        "network",
        "network_ce",
        "network_cpft",
    }
    assert {n for n, s in found.items() if s.kind == "baseline"} == {*GUIDES, "tgh", "votes"}
    assert {n for n, s in found.items() if s.has_adapter} == {
        n for n in NAMES if n.startswith("tuned")
    }
    assert {n for n, s in found.items() if s.is_trained} == {
        n for n in NAMES if n.startswith(("tuned", "network"))
    }
    assert {n for n, s in found.items() if not s.gives_probabilities} == {
        "tgh",
        "untuned_grounded",
        "tuned_grounded",
        "untuned_free",
        "tuned_free",
    }
    assert [s.name for s in parsed(SYSTEMS)] == list(SYSTEMS)


@pytest.mark.parametrize("name", ["", "tuned_", "_guided", "tuned_guided_free", "markov_guided"])
def test_what_is_no_system_is_refused_with_those_there_are(name):
    assert not System.is_name(name)
    with pytest.raises(LlmrecError, match=r"there are popularity.*tuned_guided"):
        System.parse(name)


def test_what_training_brought_is_compared_in_the_same_way():
    pairs = {(name, other) for name in NAMES for other in System.parse(name).compared_with}
    assert pairs == {
        ("tuned", "untuned"),
        ("tuned", "tuned_sft"),
        ("tuned_guided", "untuned_guided"),
        ("tuned_grounded", "untuned_grounded"),
        ("tuned_free", "untuned_free"),
        ("tuned_fused", "untuned_fused"),
        ("tuned_fused", "tuned"),
        ("untuned_fused", "untuned"),
        ("tuned_routed", "untuned_routed"),
        ("tuned_routed", "tuned"),
        ("untuned_routed", "untuned"),
        ("network_ce", "network"),
        ("network_cpft", "network"),
        ("network_cpft", "network_ce"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_what_a_system_depends_on_is_said_by_paths_of_a_recipe(name):
    for path in System.parse(name).depends:
        section, _, key = path.partition(".")
        assert section in Recipe.model_fields
        keys = {"decode": Decode, "baselines": Baselines, "demonstrations": Demonstrations}
        assert not key or key.partition(".")[0] in keys[section].model_fields


def test_every_key_of_decode_is_of_some_system_or_changes_speed_alone():
    asked = {path for name in NAMES for path in System.parse(name).depends}
    left = {key for key in Decode.model_fields if f"decode.{key}" not in asked}
    assert left == {"batch_size", "batch_tokens", "batches_in_flight", "cuda_graphs"}
