"""Turn a llama-shaped GGUF file into an ordinary Hugging Face folder, once.

The weights of such a file are quantised; they are unpacked to float32 as they stand, so the model
is the quantised one, not the original. Knows no cache and no network.
"""

from pathlib import Path

from llmrec.errors import LlmrecError

# What a GGUF file calls its text splitter -> whether every digit is a token of its own.
DIGITS_APART = {"smollm": True}


def convert(file: Path, into: Path) -> None:
    """Write `config.json`, `model.safetensors` (float32) and the tokenizer of `file` to `into`.

    Raises LlmrecError if the `gguf` package is missing or the tokenizer is not as it should be.
    """
    try:
        import gguf
    except ImportError as error:
        raise LlmrecError(
            f"{file.name} is a GGUF file and reading it needs the package gguf, which is not "
            "installed; run: pip install 'llmrec[gguf]'"
        ) from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    fields = gguf.GGUFReader(file).fields
    splitter = fields["tokenizer.ggml.pre"].contents()
    if splitter not in DIGITS_APART:
        raise LlmrecError(
            f"{file.name}: text splitter {splitter!r} is not one that can be rebuilt "
            f"({', '.join(DIGITS_APART)}); use the model's safetensors files instead"
        )
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    # The file's own title of the model; it would pass for a path to load from.
    vars(model.config).pop("_model_name_or_path", None)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    _restore_splitter(tokenizer)
    tokenizer.model_max_length = model.config.max_position_embeddings
    _check(tokenizer, model.config.vocab_size, fields["tokenizer.chat_template"].contents())
    model.save_pretrained(into)
    tokenizer.save_pretrained(into)
    for path in into.iterdir():
        path.chmod(0o644)


def _restore_splitter(tokenizer) -> None:
    """Put back the digit splitter, which the conversion of transformers leaves out.

    Without it two spaces or line breaks before a digit become other tokens than the model learnt.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _check(tokenizer, vocabulary: int, chat_template: str) -> None:
    """Stop unless control tokens are control tokens and the chat form closes with EOS."""
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    control = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    problems = [
        message
        for wrong, message in (
            (len(tokenizer) != vocabulary, f"{len(tokenizer)} tokens for {vocabulary} embeddings"),
            (tokenizer.chat_template != chat_template, "the chat template changed"),
            (tokenizer.eos_token not in control, f"EOS {tokenizer.eos_token!r} is not one"),
            (not chat.rstrip().endswith(tokenizer.eos_token), "a chat turn does not end with EOS"),
            (
                tokenizer.decode(tokenizer.encode("  1995\n\n1. é")) != "  1995\n\n1. é",
                "text does not come back from its tokens",
            ),
        )
        if wrong
    ]
    if problems:
        raise LlmrecError(f"the tokenizer in the GGUF file came out wrong: {'; '.join(problems)}")
