"""What is counted against what happens: kept activations, operations, and shares of processes."""

import pytest
import torch
import transformers as tf

from llmrec.model.arithmetic import Answering, Shape, Training
from llmrec.model.attention import with_tree_attention
from llmrec.model.loading import Lora, with_new_lora
from llmrec.model.softmax import FullSoftmax
from llmrec.text.tree import Segment, TokenTree

SHAPES = [
    {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "layers": 3},
    {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "layers": 2},
]


def made(shape, dtype=torch.float32, modules="all-linear"):
    config = tf.LlamaConfig(
        vocab_size=300,
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["num_attention_heads"],
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = with_tree_attention(tf.AutoModelForCausalLM.from_config(config).to(dtype))
    weights = sum(p.numel() for p in model.parameters())
    tuned = with_new_lora(model, Lora(r=2, target_modules=modules), 0)
    trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    return Shape.of(config, weights), tuned.train(), trained


def batch_of(rows, tokens):
    ids = torch.arange(tokens).remainder(290).to(torch.int32).numpy()
    tree = TokenTree((Segment(ids[:-4]), Segment(ids[-4:], 0, 0)))
    return FullSoftmax().prepare([tree.flatten()] * rows)


def kept_by(model, batch):
    """Tensors that autograd keeps for the way back, weights apart, one of each storage."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        FullSoftmax().branch_log_probabilities(model, batch).sum()
    return [tensor for _, tensor in held.values()]


def kept_bytes(model, batch):
    """Their bytes."""
    return sum(tensor.untyped_storage().nbytes() for tensor in kept_by(model, batch))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rows", "tokens"), [(2, 48), (4, 96)])
@pytest.mark.parametrize("form", ["float32", "bfloat16", "autocast", "bfloat16 autocast"])
@pytest.mark.parametrize("modules", ["all-linear", ["q_proj", "v_proj"]])
def test_activations_are_those_that_autograd_keeps(shape, rows, tokens, form, modules):
    weights_in = "bfloat16" if form.startswith("bfloat16") else "float32"
    autocast = form.endswith("autocast")
    counted, model, trained = made(shape, getattr(torch, weights_in), modules)
    dtype = "float32" if form == "float32" else "bfloat16"
    plan = Training(
        counted,
        rows,
        tokens,
        rows * 4,
        trained,
        dtype,
        weights_in,
        modules=modules,
        autocast=autocast,
    ).memory
    parts = ("activations", "mask", "logits", "weights cast")
    expected = sum(plan[name] for name in parts)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = kept_bytes(model, batch_of(rows, tokens))
    assert found == pytest.approx(expected, rel=0.05), {name: plan[name] for name in parts}


@pytest.mark.parametrize("weights_in", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_all_layers_share_one_mask(weights_in, autocast):
    _, model, _ = made(SHAPES[0], weights_in)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        kept = kept_by(model, batch_of(2, 48))
    groups = SHAPES[0]["num_attention_heads"] // 2
    assert sum(tensor.shape == (2, 1, groups * 48, 48) for tensor in kept) == 1


def test_operations_are_those_that_are_counted_while_they_run():
    from torch.utils.flop_counter import FlopCounterMode

    counted, model, trained = made(SHAPES[0])
    rows, tokens = 3, 64
    batch = batch_of(rows, tokens)
    with FlopCounterMode(display=False) as counter:
        FullSoftmax().branch_log_probabilities(model, batch).sum().backward()
    plan = Training(counted, rows, tokens, rows * 4, trained)
    # The counter knows no attention of CPUs.
    expected = plan.operations - plan.attention
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)


def test_strategies_cut_what_they_say():
    shape = Shape(32, 4096, 4, 1024, 14336, 128256, 8_030_261_248, 2 * 128256 * 4096)
    full = {"shape": shape, "rows": 1, "tokens": 512, "predicted": 16, "weights_in": "bfloat16"}
    whole = Training(**full, trained=shape.weights, dtype="bfloat16").memory
    assert whole["frozen weights"] == 0
    assert whole["moments"] == 8 * shape.weights
    for strategy, weights, moments in (("ddp", 1, 1), ("zero2", 1, 8), ("fsdp2", 8, 8)):
        lora = Training(
            **full, trained=8_000_000, dtype="bfloat16", strategy=strategy, processes=8
        ).memory
        assert lora["frozen weights"] == 2 * shape.weights / weights
        assert lora["moments"] == 8 * 8_000_000 / moments
    four = Training(**{**full, "weights_in": "4bit"}, trained=8_000_000).memory
    assert four["frozen weights"] == pytest.approx(0.52 * shape.weights)


def test_less_is_kept_where_layers_are_computed_again():
    shape, _, trained = made(SHAPES[0])
    plain = Training(shape, 4, 96, 16, trained)
    again = Training(shape, 4, 96, 16, trained, checkpointed=True)
    assert again.memory["activations"] < plain.memory["activations"] / 2
    assert again.operations > plain.operations


def test_a_prompt_is_read_once_whatever_the_beams():
    shape, _, _ = made(SHAPES[0])
    one, ten = (Answering(shape, 1, 300, beams, 5).operations for beams in (1, 10))
    assert ten < 2 * one
