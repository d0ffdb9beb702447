"""What comes with llmrec: recipes, prompts and accelerate files, in a checkout and in a wheel."""

import importlib
import re
import shlex
import subprocess

import pytest

from llmrec import PromptTemplate, shipped_files
from llmrec.errors import RecipeError
from llmrec.recipe import shipped


def test_a_checkout_and_a_wheel_are_told_apart(tmp_path, monkeypatch):
    assert (shipped.recipes() / "demo.yaml").is_file()
    package = tmp_path / "llmrec"
    (package / "shipped" / "recipes").mkdir(parents=True)
    monkeypatch.setattr(shipped_files, "_PACKAGE", package)
    assert shipped.recipes() == package / "shipped" / "recipes"
    assert shipped.prompts() == tmp_path / "prompts"


@pytest.mark.parametrize("name", shipped.accelerate_names())
def test_accelerate_reads_every_file(name):
    config_args = importlib.import_module("accelerate.commands.config.config_args")
    config = config_args.load_config_from_file(str(shipped.found(f"accelerate/{name}")))
    expected = {
        "cpu": "NO",
        "one_gpu": "NO",
        "ddp": "MULTI_GPU",
        "ddp_2nodes": "MULTI_GPU",
        "fsdp2": "FSDP",
        "zero2": "DEEPSPEED",
        "zero3": "DEEPSPEED",
    }
    assert config.distributed_type == expected[name]
    assert config.mixed_precision == "no"
    assert config.use_cpu is (name == "cpu")
    processes = {"cpu": 1, "one_gpu": 1, "ddp_2nodes": 16}
    assert config.num_processes == processes.get(name, 8)
    assert config.num_machines == (2 if name == "ddp_2nodes" else 1)


@pytest.mark.parametrize("name", shipped.accelerate_names())
def test_what_a_head_says_is_what_accelerate_launches(name, monkeypatch):
    """The command of each file's head, through accelerate's own parser and its own checks."""
    launch = importlib.import_module("accelerate.commands.launch")
    torch = importlib.import_module("torch")
    path = shipped.found(f"accelerate/{name}")
    head = " ".join(x.lstrip("# ").rstrip("\\") for x in path.read_text("utf-8").splitlines())
    words = head[head.index("accelerate launch") :].split()
    words = words[2 : words.index("RECIPE") + 1]
    assert words[words.index("--config_file") + 1] == path.name
    words[words.index("--config_file") + 1] = str(path)
    monkeypatch.setattr(launch, "is_cuda_available", lambda: True, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    arguments = launch.launch_command_parser().parse_args(words)
    checked, defaults, _ = launch._validate_launch_command(arguments)
    assert (checked.module, checked.training_script) == (True, "llmrec")
    assert checked.training_script_args == ["train", "RECIPE"]
    assert checked.num_processes == defaults.num_processes
    assert bool(checked.use_fsdp) is (name == "fsdp2")
    assert bool(checked.use_deepspeed) is name.startswith("zero")
    if name.startswith("zero"):
        assert checked.zero_stage == int(name[-1])
    if name == "fsdp2":
        environment = importlib.import_module("accelerate.utils.launch").prepare_multi_gpu_env
        made = environment(checked)
        assert made["FSDP_VERSION"] == "2"
        assert made["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"


@pytest.mark.parametrize("name", shipped.launch_names())
def test_scripts_are_bash_and_what_they_start_is_known(name):
    path = shipped.found(f"launch/{name}")
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text("utf-8")
    if name == "torchrun":
        command = text[text.index("exec torchrun") :].replace("\\\n", " ")
        defaults = {"NODES": "2", "GPUS": "8", "HOST": "first", "JOB": "x"}
        filled = re.sub(r"\$\{(\w+):-[^}]*\}", lambda m: defaults[m[1]], command)
        words = shlex.split(filled.replace('"$@"', "RECIPE"))[2:]
        run = importlib.import_module("torch.distributed.run")
        parsed = run.get_args_parser().parse_args(words)
        assert (parsed.nnodes, parsed.nproc_per_node, parsed.rdzv_backend) == ("2", "8", "c10d")
        assert parsed.rdzv_endpoint == "first:29500"
        assert (parsed.module, parsed.training_script) == (True, "llmrec")
        assert parsed.training_script_args == ["train", "RECIPE"]
    else:
        for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
            assert f"{variable}=" in text
        assert "--signal=TERM@300" in text
        assert "-eq 75" in text


def test_a_script_is_copied_like_a_recipe(tmp_path):
    assert shipped.copied("launch/slurm", tmp_path).name == "slurm.sh"


def test_accelerate_knows_every_key_of_the_sections():
    launch = importlib.import_module("accelerate.commands.launch")
    config_args = importlib.import_module("accelerate.commands.config.config_args")
    known = {action.dest for action in launch.launch_command_parser()._actions}
    for name in shipped.accelerate_names():
        config = config_args.load_config_from_file(str(shipped.found(name)))
        assert set(config.fsdp_config) | set(config.deepspeed_config) <= known


def test_the_files_of_the_contract_are_there():
    expected = {"cpu", "one_gpu", "ddp", "ddp_2nodes", "fsdp2", "zero2", "zero3"}
    assert set(shipped.accelerate_names()) == expected
    for domain in ("movie", "book", "game", "music", "product"):
        assert f"next_item/{domain}" in shipped.prompt_names()


def test_a_template_by_its_name_and_as_a_file_of_ones_own(tmp_path):
    made = PromptTemplate.from_name("next_item/movie")
    text = "".join(span.text for span in made.prompt(["Love", "Red"]))
    assert "movies" in text
    assert made.name == "next_item/movie"
    path = shipped.prompt_copied("next_item/movie", tmp_path)
    assert path == tmp_path / "next_item_movie.jinja"
    assert PromptTemplate.from_file(path).source == made.source
    with pytest.raises(RecipeError, match="is there already"):
        shipped.prompt_copied("next_item/movie", path)
    with pytest.raises(RecipeError, match="no template 'next_item/moon'; there are "):
        PromptTemplate.from_name("next_item/moon")


def test_no_training_that_is_shipped_saves_by_epochs_alone():
    """An epoch may take days, and the default is every 100 steps."""
    from llmrec.recipe.loading import load
    from llmrec.stages.train import training_arguments_of

    for name in shipped.recipe_names():
        given = training_arguments_of(load(name, []))
        assert given["save_strategy"] == "steps", name
        assert 0 < given["save_steps"] <= 500, name
