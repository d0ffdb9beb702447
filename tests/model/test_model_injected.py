"""Numbers that are not finite, put into a training at random places: it stops there, before any of
them reaches the weights, keeps the last good ones and names the rows or the parameter."""

import random

import pytest
import torch
from safetensors.torch import load_file

from llmrec.data import sealed
from llmrec.errors import LlmrecError
from llmrec.model.kept_weights import CHECKPOINT, read_log
from llmrec.model.softmax import MaskedSoftmax
from tests.model.test_model_trainer import trainer_of  # noqa: F401

WRONG = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(s, marks=pytest.mark.long) for s in range(4, 20))]
)
def test_a_number_that_is_not_finite(trainer_of, seed, monkeypatch):  # noqa: F811
    rng = random.Random(seed)
    at, wrong, where = rng.randrange(6), rng.choice(WRONG), rng.choice(["value", "gradient"])
    trainer = trainer_of(size=rng.choice([1, 2, 4]), save_strategy="steps", save_steps=1)
    real = MaskedSoftmax.branch_log_probabilities

    def reading(self, model, batch):
        values = real(self, model, batch)
        if trainer.state.global_step == at:
            row = rng.randrange(len(values))
            if where == "value":
                return values.index_fill(0, torch.tensor([row]), wrong)
            values.register_hook(lambda gradient: gradient * wrong)
        return values

    monkeypatch.setattr(MaskedSoftmax, "branch_log_probabilities", reading)
    with pytest.raises(
        LlmrecError,
        match=rf"(training rows|the gradient of \S+).*step {at + 1}|"
        rf"step {at + 1}.*training rows",
    ) as told:
        trainer.go(None)
    assert "learning_rate" in str(told.value)
    assert trainer.state.global_step == at
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    newest, _ = sealed.newest(trainer.root, CHECKPOINT)
    assert (sealed.facts(newest)["step"] if newest else 0) == at
    if newest:
        weights = load_file(newest / "adapter_model.safetensors").values()
        assert all(value.isfinite().all() for value in weights)
    assert all(
        torch.isfinite(torch.tensor(x["loss"])) for x in read_log(trainer.log_path) if "loss" in x
    )
