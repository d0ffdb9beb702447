"""`model.attn_implementation`: where it cannot be, that is said before anything is loaded."""

import pytest
import torch

from llmrec.errors import RecipeError
from llmrec.model.attention import reads_blocks
from llmrec.stages import prepare, train

FLEX = "model.attn_implementation=flex_attention"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can")
def test_flex_attention_asks_for_a_gpu(recipe_of, monkeypatch):
    recipe, folder = recipe_of(FLEX)
    prepare.run(recipe, folder)
    monkeypatch.setattr(train, "load_model", lambda _: pytest.fail("loaded"))
    with pytest.raises(RecipeError, match="flex_attention needs a CUDA GPU"):
        train.run(recipe, folder)


@pytest.mark.parametrize("other", ["model.cuda_graphs", "train.torch_compile"])
def test_it_goes_with_nothing_that_fixes_passes(recipe_of, other):
    with pytest.raises(RecipeError, match=rf"flex_attention.*{other}"):
        recipe_of(FLEX, f"{other}=true")


def test_batches_are_padded_for_it(recipe_of, monkeypatch):
    """On a CPU by hand, as far as a forward pass goes: FlexAttention has no gradients there."""
    recipe, folder = recipe_of(FLEX)
    prepare.run(recipe, folder)
    monkeypatch.setattr(train, "default_device", lambda: "cuda")
    assert reads_blocks(train.model_of(recipe))
    widths = []

    def first(trainer, *_):
        fetched = trainer._collate([(0, (1.0,)), (1, (1.0,))])
        widths.append(trainer.piece_of(fetched)["input_ids"].shape)
        raise KeyboardInterrupt

    monkeypatch.setattr(train.TreeTrainer, "go", first)
    with pytest.raises(KeyboardInterrupt):
        train.run(recipe, folder)
    assert widths[0][0] == 2
    assert widths[0][1] % 64 == 0
