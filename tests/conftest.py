"""Tiny real models and tokenizers, made on the spot; and SmolLM2 where it has been fetched."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches a network
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

TEXT = (
    "the a of and in to man night day love last dark star city dead blue red time world girl boy "
    "house king return lost summer dance black white river big little first 1 2 3 II III : ! , . "
    "Someone watched these movies oldest first The movie they watched next"
)
WORDS = TEXT.split()


@pytest.fixture(autouse=True)
def logging_as_it_was(monkeypatch):
    """A verb called inside a test sets up no logging: that would outlast the test."""
    from llmrec import terminal

    monkeypatch.setattr(terminal, "set_up_logging", lambda quiet: None)


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE tokenizer trained on a few words, with chat-like control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|im_end|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator([TEXT, *WORDS, *(f" {w}" for w in WORDS)], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=inner)
    made.add_special_tokens(
        {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    )
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


def _tiny(family: str, vocabulary: int):
    import torch
    import transformers as tf

    from llmrec.model.attention import with_tree_attention

    torch.manual_seed(7)
    shape = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "tie_word_embeddings": False,
    }  # fmt: skip
    config = {
        "llama": lambda: tf.LlamaConfig(**shape),
        "qwen2": lambda: tf.Qwen2Config(**shape),
        "gpt2": lambda: tf.GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4,
                                      n_positions=512, resid_pdrop=0.0, embd_pdrop=0.0,
                                      attn_pdrop=0.0),
    }[family]()  # fmt: skip
    model = with_tree_attention(tf.AutoModelForCausalLM.from_config(config))
    # Fresh weights give almost equal logits; spread them so that rankings are not ties.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return model.eval()


@pytest.fixture(scope="session", params=["llama", "qwen2", "gpt2"])
def tiny_model(request, tokenizer):
    """A random model of each family, float32, evaluation mode."""
    return _tiny(request.param, len(tokenizer))


@pytest.fixture(scope="session")
def tiny_llama(tokenizer):
    """One of them, where the family does not matter."""
    return _tiny("llama", len(tokenizer))


@pytest.fixture
def fresh_llama(tokenizer):
    """A tiny Llama that the test may change."""
    return _tiny("llama", len(tokenizer))


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct and its tokenizer from the cache that `make test` fills."""
    from llmrec.errors import LlmrecError
    from llmrec.model.loading import BaseModel, load_model, load_tokenizer
    from llmrec.stages.fetch import model_path

    try:
        base = BaseModel(str(model_path("smollm2-135m-instruct", offline=True)))
    except LlmrecError as error:
        pytest.fail(f"run `llmrec fetch model smollm2-135m-instruct` first: {error}")
    return load_model(base, "cpu"), load_tokenizer(base)
