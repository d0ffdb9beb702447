"""SOFT as a user runs it: three steps, what each leaves, how they go on and what they refuse."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmrec.data import sealed as checkpoints
from llmrec.data.catalog import Catalog
from llmrec.data.records import Examples
from llmrec.errors import DataError, LlmrecError, RecipeError
from llmrec.evaluation.predictions import Predictions
from llmrec.inference.from_recipe import encoder_of
from llmrec.methods import plain
from llmrec.methods.soft.answer_file import FILE, Answers
from llmrec.methods.soft.pairs import questions_of, with_answers
from llmrec.methods.windows import training_rows, training_windows
from llmrec.model.curriculum import adaptive
from llmrec.model.kept_weights import read_log
from llmrec.model.row_order import RowOrder
from llmrec.model.trainer import TreeTrainer
from llmrec.stages import distill, pipeline, train

ALL = ("rows.shape=all_targets", "objective.name=msl", "soft.probe=8")


def untimed(path):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(path)]


def epochs_of(folder):
    """One dict an epoch of all its log lines that name it."""
    lines = [line for line in read_log(folder.train_log) if "epoch" in line]
    return [
        {k: v for line in lines if line["epoch"] == epoch for k, v in line.items()}
        for epoch in sorted({line["epoch"] for line in lines})
    ]


@pytest.fixture
def distilled(recipe_of):
    """A recipe whose fine-tuned adapter and answers stand."""
    recipe, folder = recipe_of(*ALL)
    for step in ("sft", "distill"):
        pipeline.train(recipe, folder, step)
    return recipe, folder


@pytest.mark.parametrize("shape", ["single", "all_targets", "inline"])
def test_three_steps_leave_their_folders_and_are_skipped_once_they_stand(recipe_of, shape):
    recipe, folder = recipe_of(*ALL, "train.num_train_epochs=3", f"rows.shape={shape}")
    result = pipeline.train(recipe, folder)
    for adapter in (folder.adapter, folder.sft.adapter):
        assert checkpoints.problem(adapter) is None
    assert result["distill"]["count"] == len(Answers.read(folder.answers)) > 25
    again = pipeline.train(recipe, folder)
    assert again["skipped"]
    assert again["sft"]["skipped"]
    assert again["distill"]["skipped"]

    epochs = epochs_of(folder)
    assert len(epochs) == 3
    assert epochs[0]["lambda"] == 1.0
    assert epochs[0]["losses"]["real"] is None  # its branch weighed nothing, so it was not read
    assert epochs[0]["distance"] == epochs[0]["distance_untuned"]
    for epoch in epochs:
        share = adaptive(epoch["distance"], epoch["distance_untuned"], recipe.soft.alpha)
        assert epoch["lambda"] == pytest.approx(share)
        assert epoch["weights"] == pytest.approx([1 - share, share])
    assert epochs[-1]["lambda"] < 1.0
    assert epochs[-1]["losses"]["real"] > epochs[-1]["losses"]["self"]


def test_the_logged_losses_are_those_that_were_trained_on(distilled):
    recipe, folder = distilled
    fixed = recipe.model_copy(
        update={
            "soft": recipe.soft.model_copy(update={"schedule": "fixed", "weight": 0.25, "probe": 0})
        }
    )
    train.run(fixed, folder)
    lines, epochs = read_log(folder.train_log), epochs_of(folder)
    steps = [x for x in lines if "loss" in x and x["step"] <= epochs[0]["step"]]
    targets = np.diff([0, *(x["targets"] for x in steps)])
    mean = np.average([x["loss"] for x in steps], weights=targets)
    losses = epochs[0]["losses"]
    assert mean == pytest.approx(0.75 * losses["real"] + 0.25 * losses["self"], rel=1e-4)


def test_the_first_epoch_is_training_on_the_own_answers_alone(distilled, monkeypatch):
    """The same rows with the answers as their only target, in the order that SOFT reads them."""
    recipe, folder = distilled
    steady = {**recipe.train, "lr_scheduler_type": "constant"}  # whatever is to come
    orders = []
    read = RowOrder.__iter__

    def watched(self):
        orders.append(list(read(self)))
        yield from orders[-1]

    monkeypatch.setattr(RowOrder, "__iter__", watched)
    train.run(recipe.model_copy(update={"train": steady}), folder)
    first = epochs_of(folder)[0]["step"]
    soft = [x for x in read_log(folder.train_log) if "loss" in x and x["step"] <= first]

    encoder = encoder_of(recipe, Catalog.read(folder.items))
    windows = training_windows(recipe, Examples.read(folder.examples("train")))
    rows, _ = with_answers(
        training_rows(recipe, encoder, windows), Answers.read(folder.answers), encoder
    )
    monkeypatch.setattr(plain, "training_rows", lambda *_: [row.only([1]) for row in rows])
    monkeypatch.setattr(
        RowOrder, "__iter__", lambda _: ((number, (1.0, 1.0)) for number, _ in orders[0])
    )
    other = type(folder)(folder.root.with_name("alone"))
    train.run(
        recipe.model_copy(update={"soft": None, "train": {**steady, "num_train_epochs": 1}}), other
    )
    alone = [x for x in read_log(other.train_log) if "loss" in x]
    assert len(alone) == len(soft) == first
    for mine, theirs in zip(alone, soft, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)


def test_the_probe_changes_nothing_in_the_training(distilled):
    recipe, folder = distilled
    losses, adapters = [], []
    for name, probe in (("with", 16), ("without", 0)):
        soft = recipe.soft.model_copy(
            update={
                "schedule": "fixed",
                "probe": probe,
                "answers": str(folder.answers),
                "keep_teacher": False,
            }
        )
        lora = recipe.model.lora.model_copy(update={"dropout": 0.1})  # draws random numbers
        own = recipe.model_copy(
            update={"soft": soft, "model": recipe.model.model_copy(update={"lora": lora})}
        )
        other = type(folder)(folder.root.with_name(name))
        train.run(own, other)
        lines = read_log(other.train_log)
        assert any("distance" in line for line in lines) == (probe > 0)
        losses.append([line["loss"] for line in lines if "loss" in line])
        adapters.append((other.adapter / "adapter_model.safetensors").read_bytes())
    assert losses[0] == losses[1]
    assert adapters[0] == adapters[1]


def test_distilling_goes_on_by_batch_to_the_same_bytes(distilled, written_parts):
    recipe, folder = distilled
    whole = (folder.answers / FILE).read_bytes()
    (folder.answers / FILE).unlink()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            distill.run(recipe, folder)
    before = len(written_parts)
    distill.run(recipe, folder)
    batches = len(Answers.read(folder.answers)) / recipe.decode.batch_size
    assert len(written_parts) - before < batches - 3
    assert (folder.answers / FILE).read_bytes() == whole
    assert sorted(p.name for p in folder.answers.iterdir()) == ["answers.json", FILE]


def test_killed_training_goes_on_to_the_very_same_bytes(recipe_of, train_killed):
    """SIGKILL in each of the three steps, then the same command again, until it is done."""
    straight, folder_a = recipe_of("name=straight", *ALL)
    pipeline.train(straight, folder_a)
    killed, folder_b = recipe_of("name=killed", *ALL)
    moments = [
        lambda: len(read_log(folder_b.sft.train_log)) > 5,
        lambda: _lines_in(folder_b.answers.glob(".parts*/*.jsonl")) > 3,
        lambda: len(read_log(folder_b.train_log)) > 2,
        lambda: len(read_log(folder_b.train_log)) > 12,
    ]
    assert train_killed(killed, moments) >= 3
    assert untimed(folder_b.train_log) == untimed(folder_a.train_log)
    assert (folder_b.answers / FILE).read_bytes() == (folder_a.answers / FILE).read_bytes()
    assert (folder_b.adapter / "adapter_model.safetensors").read_bytes() == (
        folder_a.adapter / "adapter_model.safetensors"
    ).read_bytes()


def test_two_processes_distil_and_train_what_one_does(recipe_of, in_two_processes):
    one, folder_a = recipe_of("name=one", *ALL)
    pipeline.train(one, folder_a)
    # The same answering adapter, so that the answers can be compared byte by byte.
    two, folder_b = recipe_of(
        "name=two",
        *ALL,
        f"soft.sft_adapter={folder_a.sft.adapter}",
        "train.per_device_train_batch_size=2",
    )
    in_two_processes("train", two)
    assert (folder_b.answers / FILE).read_bytes() == (folder_a.answers / FILE).read_bytes()
    for name in ("lambda", "distance"):
        np.testing.assert_allclose(
            [e[name] for e in epochs_of(folder_b)],
            [e[name] for e in epochs_of(folder_a)],
            rtol=1e-4,
        )
    for a, b in zip(epochs_of(folder_a), epochs_of(folder_b), strict=True):
        for kind, loss in a["losses"].items():
            assert b["losses"][kind] == (loss and pytest.approx(loss, rel=1e-4))
    losses = [
        [x["loss"] for x in read_log(f.train_log) if "loss" in x] for f in (folder_a, folder_b)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_answers_hold_every_beam_and_the_chosen_one(distilled):
    recipe, folder = distilled
    table = pq.read_table(folder.answers / FILE).to_pylist()
    catalog = Catalog.read(folder.items)
    encoder = encoder_of(recipe, catalog)
    windows = training_windows(recipe, Examples.read(folder.examples("train")))
    asked = questions_of(recipe, encoder, windows)
    assert [row["example"] for row in table] == list(range(len(asked)))
    for row, question in zip(table, asked, strict=True):
        assert (row["history"], row["truth"]) == (question.history.tolist(), question.truth)
        assert len(row["beams"]) == 4
        scores = [beam["score"] for beam in row["beams"]]
        assert scores == sorted(scores, reverse=True)
        assert row["answer"] == row["beams"][0]["text"] == catalog.titles[row["position"]]
        for beam in row["beams"]:
            assert (beam["distance"] == 0) == (beam["position"] == row["truth"])


def test_min_distance_takes_the_nearest_beam(recipe_of, distilled):
    _, folder = distilled
    recipe, _ = recipe_of(
        *ALL,
        "soft.distill.select=min_distance",
        "name=near",
        f"soft.sft_adapter={folder.sft.adapter}",
    )
    other = type(folder)(folder.root.with_name("near"))
    distill.run(recipe, other)
    tables = [pq.read_table(f.answers / FILE).to_pylist() for f in (other, folder)]
    for near, first in zip(*tables, strict=True):
        assert near["beams"] == first["beams"]
        assert near["distance"] == min(beam["distance"] for beam in first["beams"])


def test_free_answers_are_text_and_those_outside_the_catalog_are_learned_too(recipe_of):
    recipe, folder = recipe_of(
        "soft.distill.decode=free",
        "soft.distill.max_new_tokens=6",
        "soft.probe=4",
        "train.num_train_epochs=1",
    )
    result = pipeline.train(recipe, folder)
    answers = Answers.read(folder.answers)
    outside = [text for text, p in zip(answers.texts, answers.positions, strict=True) if p < 0]
    assert result["distill"]["share_no_catalog_item"] == len(outside) / len(answers)
    catalog = Catalog.read(folder.items)
    encoder = encoder_of(recipe, catalog)
    assert outside, "a model this small writes something that is no title"
    windows = training_windows(recipe, Examples.read(folder.examples("train")))
    rows, completions = with_answers(training_rows(recipe, encoder, windows), answers, encoder)
    own = [s for row in rows for s in row.segments if s.kind == 1]
    for segment, text in zip(own, answers.texts, strict=True):
        assert segment.ids.tolist() == completions[segment.target].tolist()
        assert segment.ids.tolist() == encoder.completion_of(text).tolist()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.lora=null", "needs model.lora"),
        ("soft.distill.decode=free", "objective msl"),
        ("soft.probe=0", "needs a probe"),
        ("soft.alpha=0", "soft.alpha"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_read(recipe_of, override, said):
    with pytest.raises(RecipeError, match=said):
        recipe_of(*ALL, override)


def test_a_missing_adapter_or_missing_answers_say_what_to_run(recipe_of):
    recipe, folder = recipe_of(*ALL)
    with pytest.raises(LlmrecError, match="llmrec train"):
        distill.run(recipe, folder)
    with pytest.raises(DataError, match="llmrec distill"):
        train.run(recipe, folder)
    with pytest.raises(RecipeError, match="no section `soft`"):
        distill.run(recipe.model_copy(update={"soft": None}), folder)
    with pytest.raises(RecipeError, match="sft, distill, soft"):
        pipeline.train(recipe, folder, "sftt")


def test_answers_to_other_prompts_and_damaged_answers_are_refused(recipe_of, distilled):
    _, folder = distilled
    other, elsewhere = recipe_of(*ALL, "name=other", "seed=1", f"soft.answers={folder.answers}")
    with pytest.raises(DataError, match="other prompts"):
        pipeline.train(other, elsewhere)
    assert not elsewhere.adapter.exists()
    (folder.answers / FILE).write_bytes(b"PAR1 no PAR1")
    recipe, _ = recipe_of(*ALL)
    with pytest.raises(DataError, match="no readable answers"):
        train.run(recipe, folder)
    assert not pipeline.train(recipe, folder)["distill"]["skipped"]  # makes them again


def test_answers_of_another_adapter_are_not_taken_for_these(recipe_of, distilled):
    recipe, folder = distilled
    changed = recipe.model_copy(
        update={
            "soft": recipe.soft.model_copy(
                update={"distill": recipe.soft.distill.model_copy(update={"beams": 2})}
            )
        }
    )
    with pytest.raises(LlmrecError, match="other settings"):
        distill.run(changed, folder)


def test_the_kept_adapter_is_best_by_the_recipes_metric_and_patience_stops(recipe_of):
    recipe, folder = recipe_of(
        "validation.metric=hr",
        "validation.k=2",
        "validation.patience=2",
        "train.num_train_epochs=30",
        "train.eval_strategy=epoch",
        "train.learning_rate=0.03",
    )
    result = train.run(recipe, folder)
    found = [line for line in read_log(folder.train_log) if "score" in line]
    best = min(found, key=lambda line: line["score"])
    assert result["step"] == best["step"]
    assert best["valid_hr@2"] == max(line["valid_hr@2"] for line in found)
    assert best["score"] == [-best["valid_hr@2"], best["valid_nll"]]
    assert found.index(best) == len(found) - 3  # two without a better one, then the end
    assert len(found) < 30


def test_a_run_that_patience_stopped_stays_stopped(recipe_of, monkeypatch):
    """Killed between the last checkpoint and the adapter, it publishes and trains no further."""
    overrides = (
        "validation.patience=1",
        "train.num_train_epochs=20",
        "train.learning_rate=0.05",
        "train.eval_strategy=epoch",
        "train.save_strategy=epoch",
    )
    recipe, folder = recipe_of(*overrides)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_publish", killed)
    with pytest.raises(KeyboardInterrupt):
        train.run(recipe, folder)
    monkeypatch.undo()
    before = folder.train_log.read_bytes()
    monkeypatch.setattr(TreeTrainer, "train", killed)
    result = train.run(recipe, folder)
    assert folder.train_log.read_bytes() == before
    scores = [line["score"] for line in read_log(folder.train_log) if "score" in line]
    assert json.dumps([result["valid_nll"]]) == json.dumps(min(scores))


def test_the_table_holds_what_soft_began_with(recipe_of):
    systems = "systems=[popularity, untuned, tuned_sft, tuned]"
    recipe, folder = recipe_of(*ALL, systems)
    pipeline.run(recipe, folder)
    metrics = json.loads(folder.metrics.read_text("utf-8"))
    assert list(metrics["systems"]) == ["popularity", "untuned", "tuned_sft", "tuned"]
    pairs = {(c["system"], c["reference"]) for c in metrics["comparisons"]}
    assert {("tuned", "tuned_sft"), ("tuned", "untuned")} <= pairs
    plain, other = recipe_of(
        "rows.shape=all_targets", "objective.name=msl", "name=plain", "systems=[tuned]"
    )
    pipeline.run(plain, other)  # the first step of SOFT is plain fine-tuning and nothing else
    first = Predictions.read(folder.predictions("tuned_sft"))
    same = Predictions.read(other.predictions("tuned"))
    np.testing.assert_array_equal(first.nll, same.nll)
    assert first.items.tolist() == same.items.tolist()
    with pytest.raises(RecipeError, match="tuned_sft"):
        recipe_of("systems=[tuned_sft]")


def _lines_in(paths):
    return sum(path.read_bytes().count(b"\n") for path in paths)
