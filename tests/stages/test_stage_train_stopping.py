"""A training that is told to stop saves at the end of the step, publishes nothing and goes on alike
afterwards."""

import json
import shutil

import pytest

from llmrec import stopping
from llmrec.data import sealed
from llmrec.errors import LlmrecError, RecipeError
from llmrec.model.callbacks import Finite
from llmrec.stages import train


@pytest.fixture(autouse=True)
def without_a_wish():
    yield
    stopping.withdraw()


def adapter_bytes(folder):
    return (folder.adapter / "adapter_model.safetensors").read_bytes()


def logged(folder):
    lines = map(json.loads, folder.train_log.read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("at", ["middle", "end of an epoch", "end", "second"])
def test_training_saves_at_the_step_and_goes_on_alike(at, recipe_of, trained, monkeypatch):
    _, folder = trained
    whole, lines = adapter_bytes(folder), logged(folder)
    shutil.rmtree(folder.root)
    last = max(line["step"] for line in lines)
    step = {"middle": last // 2 + 1, "end of an epoch": last // 2, "end": last, "second": 2}[at]
    real = Finite.on_pre_optimizer_step

    def wishing(self, args, state, control, **context):
        if state.global_step + 1 == step:
            stopping.request(75)
        real(self, args, state, control, **context)

    recipe, folder = recipe_of("train.save_steps=100")
    with monkeypatch.context() as patch:
        patch.setattr(Finite, "on_pre_optimizer_step", wishing)
        if at == "end":  # it reached its end, so it is published
            train.run(recipe, folder)
        else:
            with pytest.raises(stopping.Stopped) as end:
                train.run(recipe, folder)
            assert end.value.code == 75
            assert not folder.adapter.exists()
    newest, _ = sealed.newest(folder.checkpoints, "checkpoint-")
    assert sealed.facts(newest)["step"] == step
    stopping.withdraw()
    train.run(recipe, folder)
    assert adapter_bytes(folder) == whole
    assert logged(folder) == lines


def test_a_training_that_another_stopped_is_not_published(recipe_of, monkeypatch):
    def stops(self, args, state, control, **_):
        control.should_training_stop = state.global_step == 3

    monkeypatch.setattr(Finite, "on_step_end", stops, raising=False)
    recipe, folder = recipe_of()
    with pytest.raises(LlmrecError, match=r"stopped at step 3 of \d+, before its end"):
        train.run(recipe, folder)
    assert not folder.adapter.exists()


def test_no_other_listens_for_signals(recipe_of):
    with pytest.raises(RecipeError, match="saves at the end of the step"):
        recipe_of("train.enable_jit_checkpoint=true")
