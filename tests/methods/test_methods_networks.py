"""Networks through all stages: three steps, each made once, and what is refused."""

import json

import numpy as np
import pytest

from llmrec.baselines import network_tuning
from llmrec.baselines.fine_tuning import FineTuning
from llmrec.baselines.gru4rec import RecurrentNetwork
from llmrec.baselines.sasrec import AttentionNetwork
from llmrec.baselines.sequential import Sequential
from llmrec.data.records import Examples, Interactions
from llmrec.errors import LlmrecError, RecipeError
from llmrec.evaluation.predictions import Predictions
from llmrec.methods import networks
from llmrec.runs import made
from llmrec.stages import evaluate, pipeline, prepare, recommend

SYSTEMS = "systems=[popularity, network, network_ce, network_cpft]"
SIZES = (
    "network.hidden=8",
    "network.layers=1",
    "network.max_epochs=3",
    "network.batch_size=8",
    "network.trials=1",
)
TUNED = (
    "conformal.learning_rate=1.0e-4",
    "conformal.max_epochs=6",
    "conformal.patience=2",
    "conformal.batch_size=40",
)
STEP_OF = {"network": "base", "network_ce": "ce", "network_cpft": "cpft"}
ALL = (SYSTEMS, *SIZES, *TUNED)


def weights(folder):
    return {
        step: (folder.network(step) / networks.WEIGHTS).read_bytes()
        for step in ("base", "cpft", "ce")
        if folder.network(step).is_dir()
    }


@pytest.fixture
def calls(monkeypatch):
    """The plan, the loss and the items that follow, of each fine-tuning."""
    real, seen = FineTuning.fit, []

    def recording(self, base, train, valid, filter_seen, seed, loss=None, following=None):
        seen.append((self, loss, following))
        return real(self, base, train, valid, filter_seen, seed, loss, following)

    monkeypatch.setattr(FineTuning, "fit", recording)
    return seen


@pytest.mark.parametrize("kind", ["sasrec", "gru4rec"])
def test_three_steps_recommended_and_evaluated(recipe_of, calls, kind):
    recipe, folder = recipe_of(*ALL, f"network.kind={kind}", "conformal.beta=2")
    done = pipeline.train(recipe, folder)
    assert list(done) == ["base", "cpft", "ce"]
    assert not any(step["skipped"] for step in done.values())
    (cpft, loss, following), (ce, no_loss, none) = calls
    assert (cpft.patience, cpft.max_epochs, cpft.batch_size) == (2, 6, 40)
    assert loss is not None
    assert no_loss is None
    assert following is none is None
    assert (ce.max_epochs, ce.patience) == (done["cpft"]["epochs"], None)
    assert done["ce"]["epochs"] == done["cpft"]["epochs"]
    made = weights(folder)
    assert len(set(made.values())) == 3

    again = pipeline.train(recipe, folder)
    assert len(calls) == 2
    for step, known in again.items():
        assert known == {**done[step], "skipped": True}
    assert weights(folder) == made

    said = recommend.run(recipe, folder)
    assert said["written"] == recipe.systems
    test = Examples.read(folder.examples("test"))
    for system, step in STEP_OF.items():
        network = networks.fitted(recipe, folder, step)
        expected = {"sasrec": AttentionNetwork, "gru4rec": RecurrentNetwork}[kind]
        assert isinstance(network.network, expected)
        answers = Predictions.read(folder.predictions(system))
        assert (answers.info.kind, answers.info.distribution) == ("network", True)
        known = answers.info.hyperparameters
        assert known["step"] == step
        assert known["epoch"] == done[known["step"]]["epoch"] == network.epoch
        assert known["valid_ndcg@10"] == done[known["step"]]["valid_ndcg@10"]
        assert known["sizes"]["hidden"] == 8
        p = network.probabilities(test.histories())
        np.testing.assert_allclose(
            np.exp(-answers.nll), p[np.arange(len(test)), test.targets], rtol=1e-6
        )
        for i, ranking in enumerate(answers.rankings()):
            assert ranking.tolist() == np.argsort(-p[i], kind="stable")[: len(ranking)].tolist()
            assert not set(ranking.tolist()) & set(test.history(i).tolist())
    assert recommend.run(recipe, folder)["standing"] == recipe.systems

    evaluate.run(recipe, folder)
    metrics = json.loads(folder.metrics.read_text("utf-8"))
    assert list(metrics["systems"]) == recipe.systems
    for system in recipe.systems:
        assert 0 < metrics["table"]["systems"][system]["NLL"]["all"]["mean"] < 20


def test_validation_ndcg_of_a_step_is_that_of_what_was_kept(recipe_of):
    recipe, folder = recipe_of(*ALL)
    done = pipeline.train(recipe, folder)
    valid = Examples.read(folder.examples("valid"))
    for step in STEP_OF.values():
        network = networks.fitted(recipe, folder, step)
        assert network.ndcg(valid, True) == pytest.approx(done[step]["valid_ndcg@10"], abs=1e-9)


def test_cross_entropy_alone_goes_on_as_long_as_cpft_that_stopped_early(recipe_of):
    # Nothing changes at this rate, so the second epoch is no better than the first.
    recipe, folder = recipe_of(*ALL, "conformal.learning_rate=1.0e-12", "conformal.patience=1")
    done = pipeline.train(recipe, folder)
    assert [done[step]["epochs"] for step in ("cpft", "ce")] == [2, 2]


def test_the_extended_view_alone_reads_validation_items(recipe_of, calls):
    recipe, folder = recipe_of(*ALL, "conformal.view=valid", "conformal.max_epochs=1")
    pipeline.train(recipe, folder, "base")
    pipeline.train(recipe, folder, "cpft")
    [(_, _, following)] = calls
    valid = Examples.read(folder.examples("valid"))
    assert following
    assert sorted(following.values()) == sorted(valid.targets.tolist())
    assert not folder.network("ce").exists()


def test_the_learning_rate_is_the_best_of_the_grid_in_validation(recipe_of, calls):
    recipe, folder = recipe_of(
        *ALL, "conformal.learning_rate=auto", "conformal.grid=[1.0e-4, 0.03]"
    )
    done = pipeline.train(recipe, folder)
    assert [plan.learning_rate for plan, _, _ in calls] == [1e-4, 0.03, 1e-4, 0.03]
    for step in ("cpft", "ce"):
        trials = done[step]["trials"]
        assert set(trials) == {"0.0001", "0.03"}
        assert done[step]["valid_ndcg@10"] == max(trials.values())
        assert trials[f"{done[step]['learning_rate']:g}"] == max(trials.values())


def test_the_base_is_the_best_of_the_settings_tried_and_its_width_is_known(recipe_of, monkeypatch):
    monkeypatch.setattr(network_tuning, "CHANGES", ({"width": 2}, {"dropout": 0.9}))
    recipe, folder = recipe_of(*ALL, "network.trials=3")
    done = pipeline.train(recipe, folder)
    trained = done["base"]["trained"]
    assert [(t["hidden"], t["dropout"]) for t in trained] == [(8, 0.3), (16, 0.3), (8, 0.9)]
    best = max(trained, key=lambda t: t["valid_ndcg@10"])
    for step in ("base", "cpft", "ce"):
        assert done[step]["sizes"]["hidden"] == best["hidden"]
        fitted = networks.fitted(recipe, folder, step)
        assert fitted.network.items.weight.shape[1] == best["hidden"]


def test_a_recipe_may_name_the_settings_that_are_tried(recipe_of):
    told = "network.settings=[{dropout: 0.5, heads: 1}, {hidden: 4, batch_size: 3}]"
    recipe, folder = recipe_of(*ALL, "network.trials=3", told)
    trained = pipeline.train(recipe, folder, "base")["base"]["trained"]
    names = ("hidden", "dropout", "heads", "batch_size")
    start = (8, 0.3, 2, recipe.network.batch_size)
    expected = [start, (8, 0.5, 1, start[3]), (4, 0.3, 2, 3)]
    assert [tuple(t[name] for name in names) for t in trained] == expected
    for wrong in ("network.trials=4", "network.settings=[{hidden: 7}, {}]"):
        with pytest.raises(RecipeError, match=r"trials = 4, but|multiple of heads"):
            recipe_of(*ALL, "network.trials=3", told, wrong)


def test_a_network_trained_before_is_taken_by_any_run_of_the_same_data(recipe_of, monkeypatch):
    recipe, folder = recipe_of(*ALL)
    pipeline.train(recipe, folder, "base")
    made = weights(folder)

    def training(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(Sequential, "fit", training)
    other, elsewhere = recipe_of(*ALL, "name=other")
    assert folder.root != elsewhere.root
    pipeline.train(other, elsewhere, "base")
    assert weights(elsewhere) == made
    third, place = recipe_of(*ALL, "name=third", "seed=5")
    with pytest.raises(AssertionError, match="trained again"):
        pipeline.train(third, place, "base")


def test_a_damaged_network_is_trained_again_to_the_same_bytes(recipe_of, caplog):
    recipe, folder = recipe_of(*ALL)
    pipeline.train(recipe, folder)
    made = weights(folder)
    for step in ("base", "ce"):
        (folder.network(step) / networks.WEIGHTS).write_bytes(made[step][:-3])
    with pytest.raises(LlmrecError, match="there is none of this recipe"):
        networks.fitted(recipe, folder, "base")
    done = pipeline.train(recipe, folder)
    assert {step: known["skipped"] for step, known in done.items()} == {
        "base": False,
        "cpft": True,
        "ce": False,
    }
    assert "is damaged (model.safetensors differs from its hash)" in caplog.text
    assert weights(folder) == made
    assert sorted(p.name for p in folder.network("base").parent.iterdir()) == ["base", "ce", "cpft"]


def test_an_interrupted_step_leaves_nothing_that_stands(recipe_of, monkeypatch):
    recipe, folder = recipe_of(*ALL)

    def failing(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(networks.checkpoints, "seal", failing)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(recipe, folder, "base")
    assert not folder.network("base").exists()
    assert not pipeline.train(recipe, folder, "base")["base"]["skipped"]


def test_other_settings_are_refused_and_those_that_make_no_difference_are_not(recipe_of):
    recipe, folder = recipe_of(*ALL)
    pipeline.train(recipe, folder)
    for change in (
        "network.hidden=16",
        "seed=1",
        "network.max_epochs=4",
        "decode.filter_seen=false",
    ):
        with pytest.raises(LlmrecError, match=r"base was made with other settings or data"):
            pipeline.train(recipe_of(*ALL, change)[0], folder)
    other, _ = recipe_of(*ALL, "conformal.alpha=0.2")
    assert pipeline.train(other, folder, "base")["base"]["skipped"]
    for step in ("cpft", "ce"):
        with pytest.raises(LlmrecError, match=f"{step} was made with other settings"):
            pipeline.train(other, folder, step)
    same, _ = recipe_of(
        *ALL, "decode.top_k=3", "conformal.candidates.beams=2", "evaluate.samples=200"
    )
    assert all(known["skipped"] for known in pipeline.train(same, folder).values())


def test_steps_out_of_order_and_unknown_ones_say_what_to_run(recipe_of):
    recipe, folder = recipe_of(*ALL)
    with pytest.raises(LlmrecError, match="there is none of this recipe; run `llmrec train`"):
        pipeline.train(recipe, folder, "cpft")
    pipeline.train(recipe, folder, "base")
    with pytest.raises(LlmrecError, match="as many epochs as cpft; run that first"):
        pipeline.train(recipe, folder, "ce")
    with pytest.raises(RecipeError, match="--only soft: the steps are base, cpft, ce"):
        pipeline.train(recipe, folder, "soft")
    for step in ("ce", "cpft"):
        with pytest.raises(LlmrecError, match="run `llmrec train` first"):
            networks.fitted(recipe, folder, step)
        with pytest.raises(LlmrecError, match="run `llmrec train` first"):
            made.network(recipe, folder, step).content()


def test_only_the_steps_that_the_systems_need(recipe_of):
    plain, _ = recipe_of("systems=[network]", *SIZES)
    assert networks.steps_of(plain) == ["base"]
    with pytest.raises(RecipeError, match="--only cpft: the steps are base"):
        pipeline.train(plain, recipe_of("systems=[network]", *SIZES)[1], "cpft")
    tuned, _ = recipe_of("systems=[network, network_cpft]", *SIZES, *TUNED)
    assert networks.steps_of(tuned) == ["base", "cpft"]


def test_recommending_an_untrained_network_is_refused(recipe_of):
    recipe, folder = recipe_of("systems=[network]", *SIZES)
    with pytest.raises(LlmrecError, match="run `llmrec train` first"):
        recommend.run(recipe, folder)


def test_preview_counts_without_training(recipe_of):
    recipe, folder = recipe_of(*ALL)
    prepare.run(recipe, folder)
    said = networks.preview(recipe, folder)
    data = Interactions.read(folder.interactions)
    assert said["sequences"] == len(set(data.user.tolist()))
    assert said["windows_of_an_epoch"] >= said["sequences"]
    steps = said["optimiser_steps_about"]
    assert steps["base"] == 3 * -(-said["windows_of_an_epoch"] // 8)
    places = len(data) - said["sequences"]
    assert steps["cpft"] == steps["ce"] == 6 * -(-places // 40)
    assert not folder.network("base").parent.exists()
    pipeline.train(recipe, folder, "base")
    network = networks.fitted(recipe, folder, "base").network
    assert said["parameters"] == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["systems=[popularity, network]"], "needs section network"),
        (["systems=[network, tuned]", *SIZES], "trains no language model"),
        (["systems=[network, network_ce]", *SIZES, *TUNED], "which is not among the systems"),
        (["systems=[network, network_cpft]", *SIZES], "needs section conformal"),
        (["systems=[network]", *SIZES, "data.candidates=4"], "drop data.candidates or network"),
        (["systems=[network]", "network.hidden=7"], "multiple of heads"),
        ([*ALL, "conformal.beta=0", "conformal.gamma=0"], "both 0"),
        (["conformal.alpha=0.3", "soft.probe=8"], "cannot be combined with soft"),
        (["conformal.alpha=0.3", "rows.shape=all_targets"], "needs rows.shape single"),
        (["conformal.alpha=1"], "conformal.alpha"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_read(recipe_of, overrides, said):
    with pytest.raises(RecipeError, match=said):
        recipe_of(*overrides)
