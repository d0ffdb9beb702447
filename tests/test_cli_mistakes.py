"""What people get wrong: a message with the fix and an exit code, never a traceback."""

import json
import signal
import sys

import pytest

from llmrec import __version__
from llmrec.cli import main

CSV = "user_id,item_id,timestamp,rating,title\n" + "".join(
    f"u{user},i{(user + step) % 7},{step},5,Title {(user + step) % 7}\n"
    for user in range(8)
    for step in range(5)
)
FILES = {
    "good.yaml": "name: good\ndata: {source: good.csv}\n",
    "typo.yaml": "name: x\ndata: {sorce: good.csv}\n",
    "twice.yaml": "name: x\nname: y\ndata: {source: good.csv}\n",
    "broken.yaml": "name: [\n",
    "empty.yaml": "",
    "list.yaml": "- a\n- b\n",
    "tab.yaml": "name: x\ndata:\n\tsource: good.csv\n",
    "nocolon.yaml": "name x\ndata\n",
    "json.yaml": '{"name": "x", "data": {"source": 3}}',
    "tagged.yaml": "name: !!python/object/apply:os.getcwd []\ndata: {source: good.csv}\n",
    "lost.yaml": "name: x\ndata: {source: ./nowhere.csv}\n",
    "unknown_source.yaml": "name: x\ndata: {source: ml-100m}\n",
    "lost_items.yaml": "name: x\ndata: {source: good.csv, items: nowhere.csv}\n",
    "lost_prompt.yaml": "name: x\ndata: {source: good.csv}\nprompt: {file: nowhere.jinja}\n",
    "empty_data.yaml": "name: x\ndata: {source: empty.csv}\n",
    "headless.yaml": "name: x\ndata: {source: headless.csv}\n",
    "badtime.yaml": "name: x\ndata: {source: badtime.csv}\n",
    "columns.yaml": "name: x\ndata: {source: good.csv, columns: {user_id: uid}}\n",
    "format.yaml": "name: x\ndata: {source: good.csv, format: parquet}\n",
    "kcore.yaml": "name: x\ndata: {source: good.csv, k_core: 99}\n",
    "binary.yaml": "name: x\ndata: {source: binary.csv}\n",
    "folder_source.yaml": "name: x\ndata: {source: ./folder}\n",
    "good.csv": CSV,
    "empty.csv": "",
    "headless.csv": "1,2,3\n4,5,6\n",
    "badtime.csv": "user_id,item_id,timestamp,rating,title\nu,i,yesterday,5,T\n",
    "notes.txt": "hello",
}
USAGE = [
    "frobnicate",
    "trian demo",
    "train",
    "validate",
    "prepare",
    "evaluate",
    "compare",
    "report",
    "recommend",
    "run",
    "fetch",
    "fetch model",
    "fetch data",
    "fetch prompt x",
    "fetch model nope",
    "fetch data nope",
    "fetch data ml-100k --ofline",
    "train demo --dryrun",
    "train --dry-run",
    "validate demo --jsn",
    "recipes",
    "recipes frob",
    "recipes show",
    "recipes show nope",
    "recipes show ../demo",
    "recipes cp nope",
    "recipes cp demo good.yaml",
    "recipes cp demo nowhere/x.yaml",
    "prompts",
    "prompts show",
    "prompts show nope",
    "prompts show ../../recipes/demo",
    "prompts render",
    "config",
    "config show",
    "config show nope",
    "validate nope",
    "validate nope.yaml",
    "validate folder",
    "validate notes.txt",
    "validate typo.yaml",
    "validate twice.yaml",
    "validate broken.yaml",
    "validate empty.yaml",
    "validate list.yaml",
    "validate tab.yaml",
    "validate nocolon.yaml",
    "validate json.yaml",
    "validate tagged.yaml",
    "validate good.csv",
    "validate binary.csv",
    "validate lost.yaml",
    "validate lost_items.yaml",
    "validate lost_prompt.yaml",
    "validate good.yaml seed",
    "validate good.yaml seed=",
    "validate good.yaml =3",
    "validate good.yaml seed=one",
    "validate good.yaml seed=1.5",
    "validate good.yaml seed=-1",
    "validate good.yaml Seed=1",
    "validate good.yaml train.lr=1e-3",
    "validate good.yaml lr=1e-3",
    "validate good.yaml train.learning_rate=fast",
    "validate good.yaml train.learning_rate=-1",
    "validate good.yaml train=3",
    "validate good.yaml train.seed=3",
    "validate good.yaml train.output_dir=x",
    "validate good.yaml train.fp17=true",
    "validate good.yaml model.lora.r=0",
    "validate good.yaml model.lora.r=8.0",
    "validate good.yaml model.dtype=fp16",
    "validate good.yaml model.quantization=4bit model.lora=null",
    "validate good.yaml model.trust_remote_code=true",
    "validate good.yaml objective=msl",
    "validate good.yaml objective.name=mls",
    "validate good.yaml decode.beams=5",
    "validate good.yaml decode.search=widest",
    "validate good.yaml decode.guidance.weight=2",
    "validate good.yaml systems=tuned",
    "validate good.yaml systems=[tunned]",
    "validate good.yaml systems=[]",
    "validate good.yaml evaluate.k=10",
    "validate good.yaml evaluate.k=[0]",
    "validate good.yaml evaluate.confidence=95",
    "validate good.yaml data.ratios=[0.8,0.2]",
    "validate good.yaml data.ratios=[8,1,1]",
    "validate good.yaml data.split=random",
    "validate good.yaml name=a/b",
    "validate good.yaml seed=!!int",
    "validate good.yaml seed=[1",
    "train typo.yaml",
    "train nope --dry-run",
    "run typo.yaml",
    "report nope",
    "evaluate folder",
    "recommend good.yaml --histories nowhere.jsonl",
    "recommend good.yaml --top-k 0",
    "recommend good.yaml --top-k ten",
    "compare",
    "compare a b --format docx",
]
DATA = [
    "prepare unknown_source.yaml",
    "prepare lost.yaml",
    "prepare lost_items.yaml",
    "prepare empty_data.yaml",
    "prepare headless.yaml",
    "prepare badtime.yaml",
    "prepare columns.yaml",
    "prepare format.yaml",
    "prepare kcore.yaml",
    "prepare binary.yaml",
    "prepare folder_source.yaml",
    "prepare good.yaml data.min_rating=9",
    "evaluate good.yaml",
]
FAILED = [
    "fetch data ml-1m --offline",
    "fetch model smollm2-135m-instruct --offline",
    "fetch model owner/nothing --offline",
    "prepare demo --offline",
    "prepare good.yaml output_dir=notes.txt",
]


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """Run the command line in a folder of these files; (exit code, stdout, stderr)."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["llmrec", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, errors = capfd.readouterr()
        return end.value.code or 0, out, errors

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_there_are_a_hundred():
    assert len({*USAGE, *DATA, *FAILED}) >= 100


@pytest.mark.parametrize(
    ("command", "code"), [(c, 2) for c in USAGE] + [(c, 3) for c in DATA] + [(c, 1) for c in FAILED]
)
def test_a_mistake_gets_a_message_and_its_code(command, code, call):
    found, out, errors = call(*command.split())
    assert found == code, errors
    assert "Traceback" not in errors
    if command not in ("recipes", "prompts", "config"):  # these print their help
        assert out == ""
        assert len(errors.strip()) > 20


def test_what_is_right_ends_with_0(call, tmp_path):
    code, out, _ = call("validate", "good.yaml", "--json")
    assert (code, '"name": "good"' in out) == (0, True)
    code, _, errors = call("prepare", "good.yaml")
    assert code == 0, errors
    assert (tmp_path / "runs" / "good" / "data" / "items.parquet").is_file()
    assert (tmp_path / "runs" / "good" / "recipe.yaml").is_file()
    code, out, _ = call("config", "show", "runs/good")
    assert (code, out.splitlines()[0]) == (0, "name: good")
    code, out, _ = call("recipes", "cp", "sft_ml100k", ".")
    assert (code, out.strip()) == (0, "sft_ml100k.yaml")
    assert call("validate", "sft_ml100k.yaml")[0] == 0
    code, out, _ = call("recipes", "ls")
    assert all(word in out for word in ("demo", "sft_ml100k", "fsdp2", "zero3"))
    assert call("--version")[1].strip() == __version__


def test_the_run_verb_does_the_stages_in_order(call, monkeypatch):
    from llmrec.stages import pipeline

    done = []

    def stage(name):
        def run(recipe, folder):
            done.append(name)
            print("a library talks")
            found = {"evaluate": {"table": "a | table"}, "report": {"headline": "Worth it."}}
            return {"stage": name, **found.get(name, {})}

        return type(sys)(name), run

    import llmrec.stages as stages

    for name in ("prepare", "train", "recommend", "evaluate", "report"):
        module, run = stage(name)
        module.run = run
        monkeypatch.setitem(sys.modules, f"llmrec.stages.{name}", module)
        monkeypatch.setattr(stages, name, module, raising=False)
    code, out, errors = call("run", "good.yaml", "--json")
    assert code == 0, errors
    assert list(dict.fromkeys(done)) == ["prepare", "train", "recommend", "evaluate", "report"]
    told = json.loads(out)
    assert (told["headline"], told["table"]) == ("Worth it.", "a | table")
    assert "stage" not in told
    code, out, errors = call("run", "good.yaml")
    assert out.splitlines()[:3] == ["Worth it.", "", "a | table"]
    assert out.splitlines()[-1].startswith("run: ")
    done.clear()
    assert "a library talks" in errors
    done.clear()
    assert call("run", "good.yaml", "systems=[markov, untuned]")[0] == 0
    assert done == ["prepare", "recommend", "evaluate", "report"]
    assert pipeline.__doc__
