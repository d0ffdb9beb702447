"""Trained weights know what they were made from: what is skipped, continued, and refused with what
differs."""

import shutil

import pytest

from llmrec.data import sealed
from llmrec.errors import LlmrecError
from llmrec.stages import train


def named(error):
    """The keys that a refusal names."""
    lines = str(error.value).splitlines()
    return {line.split(":")[0].strip() for line in lines if line.startswith("  ")}


def test_a_refusal_names_exactly_the_keys_that_differ_with_both_values(trained, recipe_of):
    with pytest.raises(LlmrecError, match="other settings") as error:
        train.run(*recipe_of("train.learning_rate=0.02", "prompt.max_history=3"))
    assert named(error) == {"train.learning_rate", "prompt.max_history"}
    assert "  train.learning_rate: 0.01 -> 0.02\n" in str(error.value)
    assert "add prompt.max_history=4 train.learning_rate=0.01 to go on" in str(error.value)


def test_what_validation_uses_of_decoding_counts(trained, recipe_of):
    with pytest.raises(LlmrecError) as error:
        train.run(*recipe_of("decode.filter_seen=false"))
    assert named(error) == {"decode.filter_seen"}
    ranking = ("name=ranking", "validation.metric=ndcg", "validation.k=5")
    train.run(*recipe_of(*ranking))
    for changed, names in (
        ("decode.renormalise=false", {"decode.renormalise"}),
        ("decode.search=certified", {"decode.search"}),
        ("decode.beams=7", {"decode.beams"}),
        ("validation.k=4", {"validation.k"}),
    ):
        with pytest.raises(LlmrecError) as error:
            train.run(*recipe_of(*ranking, changed))
        assert named(error) == names
    assert train.run(*recipe_of(*ranking, "decode.top_k=5"))["skipped"]


def test_what_changes_no_weight_is_no_reason_to_refuse(
    trained, recipe_of, tiny_base, small_log, tmp_path
):
    elsewhere = shutil.copytree(tiny_base, tmp_path / "elsewhere")
    moved = shutil.copy(small_log, tmp_path / "moved.csv")
    for changed in (
        ("train.logging_steps=7", "train.disable_tqdm=false", "train.dataloader_num_workers=1"),
        ("train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=2"),
        ("train.save_steps=3", "decode.top_k=5", "decode.batch_size=3", "validation.k=3"),
        (f"data.source={moved}", f"model.base={elsewhere}"),
        ("data.subset.test=5", "systems=[tuned]", "evaluate.k=[2]"),
    ):
        assert train.run(*recipe_of(*changed))["skipped"], changed


@pytest.mark.parametrize(
    ("key", "now"),
    [("train.bf16", "true"), ("train.torch_compile", "true"), ("model.dtype", "bfloat16")],
)
def test_precision_and_compiling_count(trained, recipe_of, key, now):
    with pytest.raises(LlmrecError) as error:
        train.run(*recipe_of(f"{key}={now}"))
    assert named(error) == {key}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.safetensors", "model weights"),
        ("config.json", "model configuration"),
        ("tokenizer.json", "tokenizer"),
    ],
)
def test_a_byte_of_the_base_model_counts(trained, recipe_of, tiny_base, tmp_path, name, says):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    assert train.run(*recipe_of(f"model.base={base}"))["skipped"]
    path = base / name
    content = bytearray(path.read_bytes())
    if name.endswith("json"):
        content += b"\n"
    else:
        content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(LlmrecError) as error:
        train.run(*recipe_of(f"model.base={base}"))
    assert named(error) == {says}


def test_a_byte_of_the_prompt_template_counts(trained, recipe_of, tmp_path):
    from llmrec.recipe import shipped

    path = tmp_path / "own.jinja"
    path.write_text(shipped.prompt_text("next_item/movie"), "utf-8")
    assert train.run(*recipe_of(f"prompt.file={path}"))["skipped"]  # the same text
    path.write_text(path.read_text("utf-8").replace("movie", "moviE", 1), "utf-8")
    with pytest.raises(LlmrecError) as error:
        train.run(*recipe_of(f"prompt.file={path}"))
    assert named(error) == {"prompt template"}


def test_a_byte_of_the_data_counts(trained, recipe_of, small_log, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text(small_log.read_text("utf-8").replace("The Man", "The Men", 1), "utf-8")
    with pytest.raises(LlmrecError, match=r"items\.parquet would differ") as error:
        train.run(*recipe_of(f"data.source={other}"))
    assert "sources.interactions.sha256" in named(error)


def test_damaged_data_is_made_again_and_the_weights_stand(trained):
    recipe, folder = trained
    path = folder.examples("train")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert train.run(recipe, folder)["skipped"]


def test_longer_training_goes_on_where_no_step_depends_on_the_end(recipe_of):
    recipe, short = recipe_of("name=short", "train.num_train_epochs=1")
    train.run(recipe, short)
    assert not train.run(*recipe_of("name=short", "train.num_train_epochs=2"))["skipped"]
    train.run(*recipe_of("name=straight", "train.num_train_epochs=2"))
    straight = short.root.parent / "straight"
    for run in (short.root, straight):
        assert sealed.problem(run / "adapter") is None
    assert (short.adapter / "adapter_model.safetensors").read_bytes() == (
        straight / "adapter" / "adapter_model.safetensors"
    ).read_bytes()
    with pytest.raises(LlmrecError) as error:
        train.run(*recipe_of("name=short", "train.num_train_epochs=1"))
    assert named(error) == {"train.num_train_epochs"}


@pytest.mark.parametrize("schedule", ["train.lr_scheduler_type=linear", "train.warmup_steps=0.5"])
def test_longer_training_is_refused_where_the_schedule_knew_the_end(recipe_of, schedule):
    train.run(*recipe_of(schedule, "train.num_train_epochs=1"))
    with pytest.raises(LlmrecError) as error:
        train.run(*recipe_of(schedule, "train.num_train_epochs=2"))
    assert named(error) == {"train.num_train_epochs"}


def test_a_first_attempt_that_failed_does_not_block_the_corrected_one(recipe_of):
    with pytest.raises(LlmrecError, match="step 2"):
        train.run(*recipe_of("train.learning_rate=1e9", "train.max_grad_norm=0"))
    assert not train.run(*recipe_of())["skipped"]


def test_checkpoints_of_other_settings_are_refused_by_the_keys_that_differ(trained, recipe_of):
    _, folder = trained
    shutil.rmtree(folder.adapter)
    with pytest.raises(LlmrecError, match="checkpoint-") as error:
        train.run(*recipe_of("seed=5"))
    assert "seed" in named(error)
    assert "remove" in str(error.value)
    assert not train.run(*recipe_of())["skipped"]  # the checkpoints of these very settings
