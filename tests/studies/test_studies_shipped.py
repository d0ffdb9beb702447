"""Every study that comes with llmrec: its whole plan is read, and a small version of it runs."""

import re
import shlex

import pytest
import yaml

from llmrec.recipe import shipped
from llmrec.studies import study
from llmrec.studies.cells import planned

# What makes a study small, whatever it studies; and lines that stand for all of its kinds.
SMALL = {
    "data.year_in_title": True,
    "data.subset": {"train": 12, "valid": 6, "test": 6},
    "prompt.max_tokens": 300,
    "train.num_train_epochs": 1,
    "train.per_device_train_batch_size": 4,
    "train.dataloader_pin_memory": False,
    "decode": {"beams": None, "top_k": 12, "batch_size": 6},
    "evaluate.samples": 100,
    "model.lora.r": 2,
}
OF_LANGUAGE = {"rows.count": 6}
CASES = {
    "soft": (OF_LANGUAGE, ["sft", "none", "soft"]),
    "adaptrec": (
        OF_LANGUAGE
        | {"prompt.max_tokens": 500}
        | {"data.candidates": 4, "data.ratios": [0.5, 0.25, 0.25]},
        ["nobody", "retrieved-count-3", "selected-ask-listwise", "votes", "leaky"],
    ),
    "adaptrec_untuned": ({}, ["nobody", "users", "votes", "random_titles", "alone"]),
    "cold": (OF_LANGUAGE | {"baselines.trials": 1, "train.num_train_epochs": 1}, ["all"]),
    "cpft": (
        {
            "network": {"hidden": 8, "max_epochs": 2, "max_length": 8, "trials": 1},
            "conformal": {"max_epochs": 1, "learning_rate": 1.0e-3},
        },
        ["both-kind-sasrec", "size-kind-gru4rec-beta-1"],
    ),
    "cpft_settings": (
        {
            "network": {"hidden": 8, "max_epochs": 2, "max_length": 8, "trials": 1},
            "conformal": {"max_epochs": 1, "learning_rate": 1.0e-3},
        },
        ["published", "euclidean-linkage-max"],
    ),
    "cpft_language": (OF_LANGUAGE, ["ce", "hard"]),
    "small_shop": (
        {
            "data.items": None,
            "data.format": "auto",
            "data.columns": {},
            "data.train_users": None,
            "model.dtype": "float32",
            "baselines.trials": 1,
            "systems": ["popularity", "markov", "text_knn", "sasrec", "tuned"],
            **OF_LANGUAGE,
        },
        ["model", "long"],
    ),
    "rerank": (
        OF_LANGUAGE
        | {
            "data.candidates": {"from": "popularity", "count": 3, "folds": 2, "keep_missed": True},
            "baselines.trials": 1,
            "train.max_steps": 2,
        },
        ["start", "sft", "listwise", "residual", "sdpo", "grpo"],
    ),
}


def test_every_shipped_study_is_tried():
    assert set(CASES) == set(shipped.study_names())


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_recipe_of_a_shipped_study_can_be_read(name):
    plan = planned(name)
    assert plan.study.title
    assert len(plan.cells) == len(plan.lines) * len(plan.study.seeds)
    assert plan.pairs
    assert plan == planned(f"studies/{name}.yaml")


def commands_of(name):
    """The commands in the head of a study's file, each as its words after `llmrec study`."""
    text = re.sub(r"\\\n#\s*", "", shipped.located_study(name).read_text("utf-8"))
    heads = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    told = [line.partition("   ")[0] for line in heads if line.startswith("llmrec study ")]
    return [shlex.split(line)[2:] for line in told]


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_commands_in_the_head_of_a_study_can_be_planned(name):
    commands = commands_of(name)
    assert any(words[0] == name for words in commands)
    for words in commands:
        options = words.index("--only") if "--only" in words else len(words)
        plan = planned(words[0], words[1:options])
        assert plan.cells


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_small_version_runs_to_its_page(name, tmp_path, tiny_base, small_log, caplog):
    own, only = CASES[name]
    tree = yaml.safe_load(shipped.located_study(name).read_text("utf-8"))
    given = {"data.source": str(small_log), "model.base": str(tiny_base)}
    tree["set"] = tree.get("set", {}) | SMALL | own | given
    for arm in tree["arms"].values():
        if "text_knn_sentences" in arm.get("set", {}).get("systems", []):
            arm["set"]["systems"].remove("text_knn_sentences")  # its encoder is not at hand
        if arm.get("set", {}).get("conformal") and name == "cpft_language":
            arm["set"]["conformal"]["candidates"] = {"beams": 2, "sampled": 2}
        for key, fewer in (("objective.sdpo", "negatives"), ("objective.grpo", "group")):
            if key in arm.get("set", {}):
                arm["set"][key][fewer] = 2
    tree |= {"name": name, "seeds": [0], "output_dir": str(tmp_path / "runs")}
    tree["compare"] = [pair for pair in tree.get("compare", []) if "sentences" not in str(pair)]
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), "utf-8")
    caplog.set_level("INFO", "llmrec")
    result = study.run(path, only=only)
    assert not result["failed"], result["cells"]
    assert result["standing"] == [f"{line}-s0" for line in only]
    tests = result["groups"][0]["tests"]
    assert {test["metric"] for test in tests} <= set(
        tree.get("metrics", ["NLL", "HR@10", "NDCG@10"])
    )
    assert bool(result["gates"]) == (name not in ("cpft", "cpft_settings"))
    assert {test["metric"] for test in tests} >= {"NLL", "HR@10"}
    told = [record.getMessage() for record in caplog.records]
    read = sum(text.startswith("prepare: reading") for text in told)
    assert read == (2 if name == "small_shop" else 1)  # once for each length of titles
    page = (tmp_path / f"runs/{name}/study.md").read_text("utf-8")
    assert page.startswith(f"# {tree['title']}\n")
    assert "## Paired differences" in page
    assert ("soft.alpha, chosen in validation: soft-s0" in page) == (name == "soft")
    assert ("## Confidence" in page) == (name in ("cpft", "cpft_language"))
