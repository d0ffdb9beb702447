"""The trainer on its own: what a step learns, when it asks whom, and what it leaves behind.

Rows, losses and whoever is asked are made here; no recipe, no run and no method.
"""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from llmrec.data import sealed
from llmrec.errors import LlmrecError
from llmrec.model.curriculum import Mixture
from llmrec.model.kept_weights import BEST, CHECKPOINT, read_log
from llmrec.model.loading import Lora, with_new_lora
from llmrec.model.losses import ListwiseLoss, Loss
from llmrec.model.softmax import FullSoftmax, MaskedSoftmax
from llmrec.model.trainer import TreeTrainer, Validated
from llmrec.text.tree import Segment, TokenTree
from llmrec.text.trie import TitleTrie

RNG = np.random.default_rng(0)
TITLES = [RNG.integers(3, 300, 2 + i % 4).astype(np.int32) for i in range(20)]
MSL = MaskedSoftmax(TitleTrie.from_sequences(TITLES), TITLES)
STEP = 4  # rows of an optimiser step


def rows(count=12, branches=2):
    """Prompts of several lengths, each with a target and other titles (kind 1) behind it."""
    made = []
    for number in range(count):
        prompt = Segment(np.arange(3, 12 + number % 5, dtype=np.int32) * (number + 1) % 300)
        items = [(number + 3 * i) % len(TITLES) for i in range(branches)]
        some = [Segment(TITLES[item], 0, item, kind=min(i, 1)) for i, item in enumerate(items)]
        made.append(TokenTree((prompt, *some)))
    return made


def good(_):
    return Validated((0.0,), {})


@pytest.fixture
def trainer_of(fresh_llama, tmp_path):
    """A function that makes a trainer over a fresh copy of the same tiny model."""

    def make(name="run", loss=None, trained_on=None, size=STEP, validate=good, asked=(), **given):
        arguments = {
            "num_train_epochs": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "eval_strategy": "no",
            "save_strategy": "no",
            "gradient_accumulation_steps": STEP // size,
            **given,
        }
        (tmp_path / name).mkdir(exist_ok=True)
        return TreeTrainer(
            with_new_lora(copy.deepcopy(fresh_llama), Lora(r=4), seed=0),
            TrainingArguments(
                output_dir=str(tmp_path / name / "checkpoints"),
                per_device_train_batch_size=size,
                seed=0,
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                **arguments,
            ),
            rows() if trained_on is None else trained_on,
            Loss(MSL) if loss is None else loss,
            validate,
            tmp_path / name / "log.jsonl",
            **dict(asked),
        )

    return make


def logged(trainer, *keys):
    """The log's lines that have all of these keys, and of them these keys alone."""
    return [
        {k: line[k] for k in keys}
        for line in read_log(trainer.log_path)
        if all(k in line for k in keys)
    ]


def untimed(trainer):
    return [{k: v for k, v in x.items() if k != "seconds"} for x in read_log(trainer.log_path)]


def best(trainer):
    (folder,) = trainer.root.glob(f"{BEST}*")
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "loss",
    [Loss(MSL), Loss(FullSoftmax()), ListwiseLoss(MSL, tau=2.0)],
    ids=["msl", "sft", "listwise"],
)
def test_a_step_learns_the_same_however_it_is_cut(trainer_of, loss):
    """Also where the loss compares all rows of the step, and so is read twice."""
    found = []
    for size in (4, 2, 1):
        trainer = trainer_of(f"cut-{size}", loss, size=size)
        assert trainer.go(None) == 6
        found.append(([line["loss"] for line in logged(trainer, "loss")], best(trainer)))
    for losses, weights in found[1:]:
        np.testing.assert_allclose(losses, found[0][0], rtol=1e-4)
        for name, value in weights.items():
            torch.testing.assert_close(value, found[0][1][name], rtol=0, atol=2e-4)
    assert found[0][0][-1] < found[0][0][0]


def test_a_loss_over_the_step_is_the_mean_of_its_definition(trainer_of):
    """The first logged loss, against a loop over the rows of the whole step."""
    made = rows(STEP, branches=3)
    trainer = trainer_of(loss=ListwiseLoss(MSL, tau=2.0), trained_on=made, num_train_epochs=1)
    expected = []
    with torch.no_grad():
        for row in made:
            batch = MSL.prepare([row.flatten()])
            scores = MSL.branch_log_probabilities(trainer.model.eval(), batch) / 2.0
            expected.append(float(scores.logsumexp(0) - scores[0]))
    trainer.go(None)
    [line] = logged(trainer, "loss", "targets")
    assert line == {"loss": pytest.approx(np.mean(expected), rel=1e-3), "targets": STEP}


def test_the_weights_that_did_best_are_kept_and_patience_ends_it(trainer_of):
    scores = iter([3.0, 1.0, 2.0, 2.5, 0.0])
    trainer = trainer_of(
        validate=lambda _: Validated((next(scores),), {"figure": 7.0}),
        asked={"patience": 2},
        eval_strategy="steps",
        eval_steps=1,
    )
    assert trainer.go(None) == 4  # two in a row without a better one
    (folder,) = trainer.root.glob(f"{BEST}*")
    facts = sealed.facts(folder)
    assert (facts["step"], facts["score"], facts["figures"]) == (2, [1.0], {"figure": 7.0})
    assert sealed.problem(folder) is None
    assert not list(trainer.root.rglob("*.bin"))


def test_a_curriculum_weighs_the_kinds_and_what_weighs_nothing_is_not_read(trainer_of, monkeypatch):
    weights = [(0.0, 1.0), (0.25, 0.75)]
    asked, read = [], []
    flat = type(trainer_of().train_dataset).flat

    def watched(self, number, given):
        read.append(set(flat(self, number, given).kinds.tolist()))
        return flat(self, number, given)

    def curriculum(model, epoch, epochs):
        asked.append((model.training, epoch, epochs))
        return Mixture(weights[epoch], {"why": epoch})

    trainer = trainer_of(asked={"curriculum": curriculum})
    monkeypatch.setattr(type(trainer.train_dataset), "flat", watched)
    trainer.go(None)
    assert asked == [(False, 0, 2), (False, 1, 2)]
    assert read == [{1}] * 12 + [{0, 1}] * 12
    assert logged(trainer, "weights", "why") == [
        {"weights": list(w), "why": i} for i, w in enumerate(weights)
    ]
    first, second = (line["losses"] for line in logged(trainer, "losses"))
    assert first["real"] is None
    assert first["self"] > second["self"] > 0
    assert second["real"] > 0


def test_rows_are_asked_for_before_each_step_and_those_are_read(trainer_of):
    asked, replaced = [], rows(12, branches=1)
    targets = {number: row.segments[1].target for number, row in enumerate(replaced)}

    def refresh(model, step, coming):
        asked.append((model.training, step, coming(2)))
        return (replaced, {"told": step}) if step == 3 else None

    trainer = trainer_of(asked={"refresh": refresh})
    trainer.go(None)
    assert [(training, step) for training, step, _ in asked] == [(False, s) for s in range(6)]
    read = [set(coming) for _, _, coming in asked]  # of the next two steps, the last one's alone
    assert [len(read[i]) for i in (0, 1, 3, 4, 5)] == [8, 8, 8, 8, 4]
    assert read[0] | read[1] == read[3] | read[4] == set(range(12))
    counted = [line["targets"] for line in logged(trainer, "targets", "loss")]
    assert np.diff([0, *counted]).tolist() == [8, 8, 8, 4, 4, 4]  # from then on one target a row
    assert logged(trainer, "told") == [{"told": 3}]
    assert {r.segments[1].target for r in trainer.train_dataset.rows} == set(targets.values())


@pytest.mark.parametrize("moment", [1, 3, 4, 5])
def test_killed_at_a_step_it_goes_on_to_the_very_same_bytes(trainer_of, killed_at, moment):
    scores = {2: 3.0, 4: 1.0, 6: 2.0}
    given = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}

    def made(name):
        trainer = trainer_of(
            name, validate=lambda _: Validated((scores[trainer.state.global_step],), {}), **given
        )
        return trainer

    straight = made("straight")
    straight.go(None)
    killed = made("killed")
    with killed_at(moment):
        killed.go(None)
    newest, _ = sealed.newest(killed.root, CHECKPOINT)
    again = made("killed")
    assert again.go(newest) == 6
    wanted = untimed(straight)
    # Steps after the last checkpoint are logged a second time; whoever resumes cuts the log.
    assert [x for i, x in enumerate(untimed(again)) if x not in untimed(again)[:i]] == wanted
    for name, value in best(again).items():
        assert torch.equal(value, best(straight)[name])


def test_what_is_not_finite_stops_before_the_weights_and_names_the_rows(trainer_of):
    made = trainer_of(learning_rate=1e30, max_grad_norm=0.0)
    with pytest.raises(LlmrecError, match=r"(loss|gradient).*(training rows|were not updated)"):
        made.go(None)
