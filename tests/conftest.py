"""Tiny real models and tokenizers, made on the spot, a small log to run whole stages on in seconds;
and SmolLM2 where it has been fetched."""

import os
import random
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches a network
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase

# What hypothesis found is kept with the tests, and tried first from then on.
_EXAMPLES = Path(__file__).parent / "regressions" / "examples"
settings.register_profile("llmrec", database=DirectoryBasedExampleDatabase(_EXAMPLES))
settings.load_profile("llmrec")

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
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    config = {
        "llama": lambda: tf.LlamaConfig(**shape),
        "qwen2": lambda: tf.Qwen2Config(**shape),
        "gpt2": lambda: tf.GPT2Config(
            vocab_size=vocabulary,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=512,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        ),
    }[family]()
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
    from llmrec.fetch.cache import model_path
    from llmrec.model.loading import BaseModel, load_model, load_tokenizer

    try:
        base = BaseModel(str(model_path("smollm2-135m-instruct", offline=True)))
    except LlmrecError as error:
        pytest.fail(f"run `llmrec fetch model smollm2-135m-instruct` first: {error}")
    return load_model(base, "cpu"), load_tokenizer(base)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory, tiny_llama, tokenizer):
    """Folder of a tiny Llama and its tokenizer, as `from_pretrained` takes it."""
    folder = tmp_path_factory.mktemp("base")
    tiny_llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_log(tmp_path_factory):
    """A CSV of 24 users who walk along 12 movies, with titles."""
    folder = tmp_path_factory.mktemp("log")
    titles = [
        "The Man",
        "The Man II",
        "Dark City",
        "Dark Star",
        "A Star",
        "Last Summer",
        "Last Dance",
        "Love",
        "River: the End",
        "Blue",
        "Red",
        "The World",
    ]
    rng = random.Random(0)
    lines = ["user_id,item_id,timestamp,title"]
    for user in range(24):
        start, length = rng.randrange(12), rng.randint(5, 9)
        for step in range(length):
            item = (start + step) % 12
            lines.append(f"u{user},i{item},{1000 * user + step},{titles[item]}")
    (folder / "log.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder / "log.csv"


def _small(folder, base, log):
    """A function from overrides to the Recipe and RunFolder of a small experiment in `folder`."""
    from llmrec.recipe.loading import load
    from llmrec.runs.folder import RunFolder

    def make(*overrides):
        path = folder / "small.yaml"
        path.write_text(
            f"name: small\noutput_dir: {folder / 'runs'}\n"
            f"data: {{source: {log}}}\n"
            f"model: {{base: {base}, lora: {{r: 4}}}}\n"
            "prompt: {max_history: 4, max_tokens: 300}\n"
            "decode: {beams: 6, top_k: 6, batch_size: 5}\n"
            "evaluate: {k: [1, 5], samples: 100}\n"
            "systems: [popularity, markov, untuned, tuned, tuned_guided]\n"
            "train: {learning_rate: 0.01, per_device_train_batch_size: 4, num_train_epochs: 2, "
            "warmup_steps: 0, logging_steps: 1, save_strategy: steps, save_steps: 2, "
            "eval_strategy: steps, eval_steps: 4, dataloader_pin_memory: false}\n",
            "utf-8",
        )
        recipe = load(path, list(overrides))
        return recipe, RunFolder.of(recipe)

    return make


@pytest.fixture
def recipe_of(tmp_path, tiny_base, small_log):
    """A function from overrides to the Recipe and RunFolder of a small experiment."""
    return _small(tmp_path, tiny_base, small_log)


@pytest.fixture(scope="session")
def _trained_once(tmp_path_factory, tiny_base, small_log):
    from llmrec.stages import train

    recipe, folder = _small(tmp_path_factory.mktemp("trained"), tiny_base, small_log)()
    train.run(recipe, folder)
    folder.keep(recipe)
    return folder.root


@pytest.fixture
def trained(recipe_of, _trained_once):
    """The recipe and folder of a trained run, a copy that the test may change."""
    import shutil

    recipe, folder = recipe_of()
    shutil.copytree(_trained_once, folder.root)
    folder.keep(recipe)
    return recipe, folder


@pytest.fixture
def written_parts(monkeypatch):
    """The batches whose answers stages keep, as they come; the third and the eighth interrupt."""
    from llmrec.runs import batch_files as parts

    real, written = parts.append, []

    def failing(path, descriptor, content):
        written.append(path)
        if len(written) in (3, 8):
            raise KeyboardInterrupt
        real(path, descriptor, content)

    monkeypatch.setattr(parts, "append", failing)
    return written


@pytest.fixture(autouse=True)
def networks_of_this_test(monkeypatch, tmp_path_factory):
    """Trained networks are kept in a folder of each test's own, so that none comes from another."""
    from llmrec.fetch import cache

    root = tmp_path_factory.mktemp("networks")
    monkeypatch.setattr(cache, "networks_root", lambda: root)


@pytest.fixture
def killed_at(monkeypatch):
    """A context in which training is interrupted while it learns a step, counted from 0."""
    from contextlib import contextmanager

    from llmrec.model.trainer import TreeTrainer

    @contextmanager
    def interrupted(step):
        learn = TreeTrainer.compute_loss

        def learning(self, *arguments, **named):
            if self.state.global_step == step:
                raise KeyboardInterrupt
            return learn(self, *arguments, **named)

        with monkeypatch.context() as patched:
            patched.setattr(TreeTrainer, "compute_loss", learning)
            with pytest.raises(KeyboardInterrupt):
                yield

    return interrupted


@pytest.fixture
def in_two_processes(tmp_path):
    """A function that runs a verb on a recipe in two processes over gloo; what it printed."""
    import subprocess
    import sys

    from llmrec.recipe.loading import dump

    def run(verb, recipe, *options):
        path = tmp_path / "two.yaml"
        path.write_text(dump(recipe), "utf-8")
        launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
        done = subprocess.run(
            [sys.executable, *launch, "-m", "llmrec", "-q", verb, str(path), *options],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """What runs the command in forks of a server that has imported everything (see `forking`)."""
    from tests.forking import Forks

    server = Forks(tmp_path_factory.mktemp("forks"))
    yield server
    server.close()


@pytest.fixture
def train_killed(tmp_path, forks):
    """A function that runs `llmrec train`, kills it at each of some moments, and lets it end.

    `moments`: conditions to wait for, one a start. Returns how many starts were killed.
    """
    import signal
    import time

    from llmrec.recipe.loading import dump

    def run(recipe, moments):
        path = tmp_path / "killed.yaml"
        path.write_text(dump(recipe), "utf-8")
        landed = 0
        for moment in [*moments, lambda: False]:
            process = forks.start("-q", "train", path)
            while process.poll() is None:
                if moment():
                    process.send(signal.SIGKILL)
                    break
                time.sleep(0.002)
            code, _, errors = process.ended()
            assert code in (0, -signal.SIGKILL), errors
            landed += code == -signal.SIGKILL
        return landed

    return run
