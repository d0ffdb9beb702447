"""A tiny model on disk and a small log, for running whole stages in seconds."""

import random

import pytest


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
    titles = ["The Man", "The Man II", "Dark City", "Dark Star", "A Star", "Last Summer",
              "Last Dance", "Love", "River: the End", "Blue", "Red", "The World"]  # fmt: skip
    rng = random.Random(0)
    lines = ["user_id,item_id,timestamp,title"]
    for user in range(24):
        start, length = rng.randrange(12), rng.randint(5, 9)
        for step in range(length):
            item = (start + step) % 12
            lines.append(f"u{user},i{item},{1000 * user + step},{titles[item]}")
    (folder / "log.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder / "log.csv"


@pytest.fixture
def recipe_of(tmp_path, tiny_base, small_log):
    """A function from overrides to the Recipe and RunFolder of a small experiment."""
    from llmrec.recipe_loading import load
    from llmrec.stages.folder import RunFolder

    def make(*overrides):
        path = tmp_path / "small.yaml"
        path.write_text(
            f"name: small\noutput_dir: {tmp_path / 'runs'}\n"
            f"data: {{source: {small_log}}}\n"
            f"model: {{base: {tiny_base}, lora: {{r: 4}}}}\n"
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
def written_parts(monkeypatch):
    """The batches whose files stages write, as they come; the third and the eighth interrupt."""
    from llmrec.stages import parts

    real, written = parts.write_json, []

    def failing(path, value):
        written.append(path)
        if len(written) in (3, 8):
            raise KeyboardInterrupt
        real(path, value)

    monkeypatch.setattr(parts, "write_json", failing)
    return written
