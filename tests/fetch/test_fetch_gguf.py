"""A tiny GGUF file becomes an ordinary model folder with the same weights and a true tokenizer."""

import numpy as np
import pytest

from llmrec.errors import LlmrecError
from llmrec.fetch.gguf import convert

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WIDTH, VOCABULARY = 32, 260


def byte_letters():
    """The printable stand-in of each byte, in GPT-2's order."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def written(path, chat=CHAT, splitter="smollm", eos=2):
    """A one-layer llama of random weights."""
    import gguf

    tokens = [*CONTROL, *byte_letters(), "ĠĠ"]
    assert len(tokens) == VOCABULARY
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_name("another title")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL)))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(eos)
    writer.add_chat_template(chat)
    random = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (VOCABULARY, WIDTH),
        "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.ffn_norm.weight": (WIDTH,),
        "blk.0.attn_q.weight": (WIDTH, WIDTH),
        "blk.0.attn_k.weight": (WIDTH // 2, WIDTH),
        "blk.0.attn_v.weight": (WIDTH // 2, WIDTH),
        "blk.0.attn_output.weight": (WIDTH, WIDTH),
        "blk.0.ffn_gate.weight": (64, WIDTH),
        "blk.0.ffn_up.weight": (64, WIDTH),
        "blk.0.ffn_down.weight": (WIDTH, 64),
    }
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, weight in weights.items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_weights_and_tokenizer_come_out_as_they_went_in(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "in").mkdir()
    weights = written(tmp_path / "in" / "tiny.gguf")
    convert(tmp_path / "in" / "tiny.gguf", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not list((tmp_path / "out").glob("*.bin"))
    assert "another title" not in (tmp_path / "out" / "config.json").read_text()

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32
    assert np.array_equal(
        model.model.embed_tokens.weight.detach().numpy(), weights["token_embd.weight"]
    )
    assert np.array_equal(
        model.model.layers[0].mlp.up_proj.weight.detach().numpy(), weights["blk.0.ffn_up.weight"]
    )

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token_id == 2
    assert tokenizer.convert_tokens_to_ids(CONTROL) == [0, 1, 2]
    assert tokenizer.encode("<|im_end|>") == [2]
    assert 2 not in tokenizer.encode("<|im_end|>", split_special_tokens=True)
    assert tokenizer.chat_template == CHAT
    assert tokenizer.model_max_length == 64
    # Digits stand apart, so both spaces before one are a token; without that rule they are two.
    assert tokenizer.tokenize("a  1") == ["a", "ĠĠ", "1"]


def test_a_splitter_that_cannot_be_rebuilt_is_refused(tmp_path):
    written(tmp_path / "tiny.gguf", splitter="qwen2")
    with pytest.raises(LlmrecError, match="text splitter 'qwen2'"):
        convert(tmp_path / "tiny.gguf", tmp_path / "out")


def test_a_chat_turn_that_does_not_end_with_eos_is_refused(tmp_path):
    written(tmp_path / "tiny.gguf", eos=0)
    with pytest.raises(LlmrecError, match="does not end with EOS"):
        convert(tmp_path / "tiny.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.real_model
def test_the_cached_base_model_is_what_it_should_be():
    from transformers import AutoTokenizer

    from llmrec.fetch.cache import model_path

    tokenizer = AutoTokenizer.from_pretrained(model_path("smollm2-135m-instruct", offline=True))
    assert len(tokenizer) == 49152
    assert tokenizer.convert_tokens_to_ids(CONTROL) == [0, 1, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == 8192
    assert set(range(17)) <= {
        i for i, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    expected = ["a", "ĠĠ", "1", "9", "9", "5", "ĊĊ", "1", ".", "ĠThe", "ĠMatrix"]
    assert tokenizer.tokenize("a  1995\n\n1. The Matrix") == expected
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")
