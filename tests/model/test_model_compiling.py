"""torch.compile: the same training under a tree mask, and a word where no compiler is."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from llmrec.errors import RecipeError
from llmrec.model.compiling import require_compiler, uncompiled
from llmrec.model.loading import Lora, with_new_lora
from llmrec.model.losses import Loss
from llmrec.model.softmax import MaskedSoftmax
from llmrec.model.trainer import TreeTrainer, Validated
from llmrec.text.tree import Segment, TokenTree
from llmrec.text.trie import TitleTrie


def pairs(count):
    """Rows of several lengths, each a prompt with a real and an own title behind it."""
    rng = np.random.default_rng(0)
    titles = [rng.integers(3, 300, 2 + i % 5).astype(np.int32) for i in range(30)]
    rows = [
        TokenTree(
            (
                Segment(rng.integers(3, 300, 20 + i % 3).astype(np.int32)),
                Segment(titles[i], 0, i),
                Segment(titles[i + 7], 0, i + 7, kind=1),
            )
        )
        for i in range(count)
    ]
    return rows, Loss(MaskedSoftmax(TitleTrie.from_sequences(titles), titles))


def trained(model, folder, seen, graphs=False, **settings):
    """The logged losses and the adapter of two short epochs."""
    rows, loss = pairs(12)
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        seed=0,
        use_cpu=True,
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        save_strategy="no",
        eval_strategy="epoch",
        **settings,
    )

    def validate(live):
        seen.append(type(live).__name__)
        return Validated((float(-len(seen)),), {})

    model = with_new_lora(model, Lora(r=4), seed=0)
    log = folder / "log.jsonl"
    TreeTrainer(model, arguments, rows, loss, validate, log, cuda_graphs=graphs).go(None)
    losses = [
        x["loss"] for x in map(json.loads, log.read_text("utf-8").splitlines()) if "loss" in x
    ]
    (best,) = (folder / "checkpoints").glob("best-*")
    return losses, load_file(best / "adapter_model.safetensors")


def test_compiled_training_is_the_same_training(fresh_llama, tmp_path):
    # Backend eager traces as the default one does, and needs no C++ compiler.
    compiling = {"torch_compile": True, "torch_compile_backend": "eager"}
    seen = []
    plain, weights = trained(copy.deepcopy(fresh_llama), tmp_path / "plain", seen)
    with torch._dynamo.config.patch(error_on_recompile=True):  # compiled once for all lengths
        losses, compiled = trained(fresh_llama, tmp_path / "compiled", seen, **compiling)
    assert len(plain) == 6
    np.testing.assert_allclose(losses, plain, rtol=1e-5)
    assert compiled.keys() == weights.keys()
    for name, value in compiled.items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-5)
    assert set(seen) == {"PeftModelForCausalLM"}  # what validates is not compiled for each shape


def test_a_machine_without_a_compiler_is_told_what_to_do():
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(RecipeError, match=r"torch cannot compile here .*Install a C\+\+ compiler"),
    ):
        require_compiler("cpu")


def test_a_compiled_model_gives_back_the_one_underneath(fresh_llama):
    assert uncompiled(torch.compile(fresh_llama)) is fresh_llama
    assert uncompiled(fresh_llama) is fresh_llama
