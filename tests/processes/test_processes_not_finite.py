"""A number that is not finite ends every process of a training, before a checkpoint has it."""

import pytest
from safetensors.numpy import load_file
from test_processes_matrix import SHORT

from llmrec.data import sealed
from llmrec.model.kept_weights import CHECKPOINT
from llmrec.recipe.loading import dump


@pytest.mark.parametrize("where", ["value", "gradient"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2"])
def test_a_number_that_is_not_finite_reaches_no_checkpoint(
    group, recipe_of, tmp_path, strategy, where
):
    if strategy == "zero2":
        pytest.importorskip("deepspeed")
    size = (
        "train.per_device_train_batch_size=2",
        "train.save_strategy=steps",
        "train.save_steps=1",
    )
    recipe, folder = recipe_of("name=wrong", "objective.name=msl", *size, *SHORT)
    path = tmp_path / "wrong.yaml"
    path.write_text(dump(recipe), "utf-8")
    codes, said = group.launch(
        2, strategy, ["do", "trains_with_a_number_that_is_none", where, path]
    )
    assert 1 in codes
    told = {"value": "the loss is nan at step 2", "gradient": "not finite at step 2"}[where]
    assert any(told in one for one in said), said
    newest, _ = sealed.newest(folder.checkpoints, CHECKPOINT)
    assert sealed.facts(newest)["step"] == 1
    for name, values in load_file(newest / "adapter_model.safetensors").items():
        assert abs(values).max() < float("inf"), name
