"""What several processes make is what one makes: every method, under DDP and under FSDP2, on gloo.

Losses and adapters to 1e-5, lists and answers equal. What asks the live model while it trains is
refused under FSDP2, in every process alike.
"""

import numpy as np
import pytest
from safetensors.numpy import load_file

from llmrec.evaluation.predictions import Predictions
from llmrec.methods.soft.answer_file import FILE
from llmrec.model.kept_weights import read_log
from llmrec.recipe.loading import dump

WORLDS = [(2, "ddp"), (2, "fsdp2")]
MORE = [(4, "ddp"), (4, "fsdp2")]
SHORT = (
    "rows.count=16",
    "train.num_train_epochs=1",
    "train.learning_rate=0.001",
    "train.eval_steps=2",
    "systems=[tuned]",
)
METHODS = {
    "sft": (),
    "soft": ("rows.shape=all_targets", "objective.name=msl", "soft.probe=8"),
    "adaptrec": (
        "prompt.task=similar_users",
        "demonstrations.count=1",
        "demonstrations.history=2",
        "demonstrations.selection.pool=2",
        "demonstrations.selection.refresh=2",
        "prompt.max_history=3",
        "data.subset.valid=7",
    ),
    "cpft": (
        "conformal.candidates.beams=2",
        "conformal.candidates.sampled=2",
        "conformal.candidates.refresh=2",
        "conformal.smooth=true",
        "prompt.max_history=3",
    ),
}
ASKING = ("soft", "adaptrec", "cpft")


@pytest.fixture
def launched(group, recipe_of, tmp_path):
    """A function that runs a verb on a recipe in some processes, which share a batch of 4 rows."""

    def run(verb, name, world, strategy, *overrides):
        size = f"train.per_device_train_batch_size={4 // world}"
        recipe, folder = recipe_of(f"name={name}", size, *SHORT, *overrides)
        path = tmp_path / f"{name}.yaml"
        path.write_text(dump(recipe), "utf-8")
        return (*group.launch(world, strategy, [verb, path]), folder)

    return run


@pytest.fixture
def succeeded(launched):
    """The same for what must end well; the run folder."""

    def run(*asked):
        codes, said, folder = launched(*asked)
        assert set(codes) == {0}, "\n".join(said)
        return folder

    return run


def losses_of(folder):
    """All figures of the log that are no times."""
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "low", "high")}
        for line in read_log(folder.train_log)
    ]


def assert_same_training(folder, alone):
    ours, theirs = losses_of(folder), losses_of(alone)
    assert [sorted(line) for line in ours] == [sorted(line) for line in theirs]
    for mine, its in zip(ours, theirs, strict=True):
        for name in mine:
            np.testing.assert_allclose(
                np.array(mine[name] if not isinstance(mine[name], dict) else 0, float),
                np.array(its[name] if not isinstance(its[name], dict) else 0, float),
                rtol=1e-4 if name == "grad_norm" else 1e-5,
                atol=1e-5,
                err_msg=name,
            )
    mine, its = (load_file(f.adapter / "adapter_model.safetensors") for f in (folder, alone))
    assert sorted(mine) == sorted(its)
    for name, weights in mine.items():
        assert weights.dtype == its[name].dtype
        np.testing.assert_allclose(weights, its[name], rtol=0, atol=1e-5, err_msg=name)


def trains_alike(succeeded, method, worlds):
    settings = METHODS[method]
    alone = succeeded("train", "alone", 1, "ddp", *settings)
    for world, strategy in worlds:
        if strategy == "ddp" or method not in ASKING:
            folder = succeeded("train", f"{strategy}{world}", world, strategy, *settings)
            assert_same_training(folder, alone)


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_what_one_does(succeeded, method):
    trains_alike(succeeded, method, WORLDS)


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_four_processes_train_what_one_does(succeeded, method):
    trains_alike(succeeded, method, MORE)


def test_an_adapter_in_shards_is_saved_alone_and_goes_on_from_a_checkpoint(succeeded):
    """bfloat16 weights; validation of 7 users by 2 processes, which read equally often."""
    shards = ("model.dtype=bfloat16", "data.subset.valid=7", "train.save_strategy=epoch")
    straight = succeeded("train", "straight", 2, "fsdp2", *shards, "train.num_train_epochs=2")
    for epochs in (1, 2):
        cut = succeeded("train", "cut", 2, "fsdp2", *shards, f"train.num_train_epochs={epochs}")
    assert_same_training(cut, straight)
    alone = succeeded("train", "alone", 1, "ddp", *shards, "train.num_train_epochs=2")
    mine, its = (load_file(f.adapter / "adapter_model.safetensors") for f in (cut, alone))
    assert sorted(mine) == sorted(its), "an ordinary adapter, of its own weights alone"
    saved = cut.checkpoints / "checkpoint-8" / "adapter_model.safetensors"
    assert sorted(load_file(saved)) == sorted(its)


@pytest.mark.parametrize("method", ASKING)
def test_what_asks_the_live_model_is_refused_by_every_process(launched, method):
    settings = (*METHODS[method], *(("soft.schedule=fixed",) if method == "soft" else ()))
    codes, said, _ = launched("train", "refused", 2, "fsdp2", *settings)
    assert any("launch with ddp or zero2" in text for text in said)
    assert 2 in codes
    assert 0 not in codes, "the launcher ends what another's end left waiting"


RANKED = "systems=[popularity,untuned,tuned,tuned_guided]"


def assert_same_lists(folder, alone, systems=("untuned", "tuned", "tuned_guided")):
    for system in systems:
        ours, theirs = (Predictions.read(f.predictions(system)) for f in (folder, alone))
        assert ours.items.tolist() == theirs.items.tolist()
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=1e-5)
        np.testing.assert_allclose(ours.nll, theirs.nll, rtol=1e-5)


def answers_alike(succeeded, worlds):
    """Distilling and recommending with one adapter, for 7 users."""
    tuned = succeeded("train", "tuned", 1, "ddp").adapter
    few = ("data.subset.test=7", RANKED, f"model.adapter={tuned}")
    asked = ("soft.probe=4", f"soft.sft_adapter={tuned}")
    alone = succeeded("recommend", "alone", 1, "ddp", *few)
    taught = succeeded("distill", "taught", 1, "ddp", *asked)
    for world, strategy in worlds:
        folder = succeeded("recommend", f"{strategy}{world}", world, strategy, *few)
        assert_same_lists(folder, alone)
        folder = succeeded("distill", f"d{strategy}{world}", world, strategy, *asked)
        assert (folder.answers / FILE).read_bytes() == (taught.answers / FILE).read_bytes()


def test_two_processes_answer_what_one_does(succeeded):
    answers_alike(succeeded, WORLDS)


@pytest.mark.long
def test_more_processes_answer_what_one_does(succeeded):
    answers_alike(succeeded, MORE)


def runs_alike(succeeded, worlds):
    """A whole run; its table is that of one process."""
    alone = succeeded("run", "alone", 1, "ddp", RANKED)
    for world, strategy in worlds:
        folder = succeeded("run", f"{strategy}{world}", world, strategy, RANKED)
        assert_same_training(folder, alone)
        assert_same_lists(folder, alone)
        assert (folder.root / "report.html").is_file()


def test_a_run_under_two_processes_is_that_of_one(succeeded):
    runs_alike(succeeded, WORLDS)


@pytest.mark.long
def test_a_run_under_four_processes_is_that_of_one(succeeded):
    runs_alike(succeeded, MORE)


def test_more_processes_than_users_validate_and_recommend(succeeded):
    """Two users to validate with, and as many to answer, by four processes."""
    few = (
        "data.subset.valid=2",
        "data.subset.test=2",
        "validation.metric=hr",
        "validation.k=5",
        RANKED,
    )
    alone = succeeded("run", "alone", 1, "ddp", *few, RANKED)
    folder = succeeded("run", "four", 4, "ddp", *few, RANKED)
    assert_same_training(folder, alone)
    assert_same_lists(folder, alone)


def test_a_network_is_trained_by_one_process(succeeded):
    """Under `run` and under `train` alike, while the other waits."""
    network = (
        "systems=[popularity,network]",
        "network.hidden=8",
        "network.trials=1",
        "network.max_epochs=2",
    )
    alone = succeeded("run", "alone", 1, "ddp", *network)
    for verb in ("run", "train"):
        folder = succeeded(verb, f"{verb}-two", 2, "ddp", *network)
        mine, its = (load_file(f.network("base") / "model.safetensors") for f in (folder, alone))
        for name, weights in mine.items():
            np.testing.assert_array_equal(weights, its[name])


@pytest.mark.long
@pytest.mark.parametrize("world", [2, 4])
def test_a_late_main_process_changes_nothing(group, recipe_of, succeeded, tmp_path, world):
    """Ten runs in each number of processes, rank 0 late at other moments each time."""
    alone = succeeded("run", "alone", 1, "ddp", RANKED)
    for seed in range(10):
        size = f"train.per_device_train_batch_size={4 // world}"
        recipe, folder = recipe_of(f"name=late{seed}", size, *SHORT, RANKED)
        path = tmp_path / "late.yaml"
        path.write_text(dump(recipe), "utf-8")
        group.done(world, "ddp", ["do", "runs_with_a_late_main_process", seed, path])
        assert_same_training(folder, alone)
        assert_same_lists(folder, alone)
