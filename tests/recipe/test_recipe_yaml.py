"""Hostile and broken YAML: refused with a line, quickly, and nothing of it is carried out."""

import time

import pytest

from llmrec.errors import RecipeError
from llmrec.recipe.loading import load
from llmrec.recipe.plain_yaml import read, write

HEAD = "name: x\ndata: {source: x}\n"
CALLS = [
    "python/object/apply:os.system",
    "python/object/apply:builtins.eval",
    "python/object/apply:subprocess.check_output",
    "python/object/new:os.system",
    "python/object/new:type",
    "python/name:os.system",
    "python/name:builtins.exec",
    "python/module:this",
    "python/module:antigravity",
    "python/object:collections.Counter",
    "python/tuple",
    "python/bytes",
    "python/complex",
    "python/dict",
    "python/unicode",
    "python/object/apply:time.sleep",
    "python/object/apply:pathlib.Path.touch",
]
TAGS = [
    "!!binary",
    "!!set",
    "!!omap",
    "!!pairs",
    "!!timestamp",
    "!!int",
    "!!str",
    "!!float",
    "!!map",
    "!!seq",
    "!!merge",
    "!!value",
    "!include",
    "!ENV",
    "!vault",
    "!!js/function",
    "!ruby/object:Gem::Installer",
    "!<tag:yaml.org,2002:python/name:os.system>",
]
BOMB = "a: &a [x, x]\n" + "\n".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]" for i in range(12)
)
HOSTILE = [
    *(HEAD + f"output_dir: !!{call} [touch MARK]\n" for call in CALLS),
    *(HEAD + f"seed: {tag} 1\n" for tag in TAGS),
    HEAD + BOMB,
    HEAD + "prompt: &p {max_history: 3}\nrows: *p\n",
    HEAD + "prompt: &p {max_history: 3, <<: *p}\n",
    HEAD + "prompt: *nowhere\n",
    HEAD + "<<: {seed: 1}\n",
    HEAD + "prompt: {<<: {max_history: 3}}\n",
    HEAD + "seed: 1\nseed: 2\n",
    HEAD + "prompt: {form: plain, form: chat}\n",
    HEAD + "---\nname: y\n",
    "%TAG ! tag:yaml.org,2002:python/\n--- !object/apply:os.system [touch MARK]\n",
    "%YAML 9.9\n---\n" + HEAD + "seed: !!int 1\n",
    HEAD + "seed: " + "9" * 5000 + "\n",
    HEAD + "seed: .inf\n",
    HEAD + "train: {learning_rate: .nan}\n",
    HEAD + "train: {learning_rate: 1e999}\n",
    HEAD + "? [a, b]\n: 1\n",
    HEAD + "? {a: b}\n: 1\n",
    HEAD + "prompt: " + "[" * 50_000,
    HEAD + "prompt: " + "{a: " * 20_000,
    HEAD + "prompt:\n  " + "- " * 20_000 + "x\n",
    HEAD + "x" * 300_000 + ": 1\n",
    HEAD + "seed: \x00\n",
    HEAD + "seed: \x1b[2J\n",
    HEAD + "\tseed: 1\n",
    HEAD + 'seed: "1\n',
    HEAD + "seed: {a: 1\n",
    HEAD + "seed: a: b\n",
    HEAD + "seed: @x\n",
    HEAD + "seed: `touch MARK`\n",
    HEAD + "name: ../../etc\n",
    "name: ../../etc\ndata: {source: x}\n",
    "name: a/b\ndata: {source: x}\n",
    'name: "a\\nb"\ndata: {source: x}\n',
    "name: '{{7*7}}'\ndata: {source: x}\n",
    "name: .hidden\ndata: {source: x}\n",
    "name: ''\ndata: {source: x}\n",
    "- name: x\n- data\n",
    "just text\n",
    "42\n",
    HEAD + "import: os\n",
    HEAD + "__class__: x\n",
    HEAD + "model_config: {extra: allow}\n",
    HEAD + "model: {trust_remote_code: true}\n",
    HEAD + "model: {trust_remote_code: true, revision: main}\n",
    HEAD + "train: {push_to_hub: true}\n",
    HEAD + "train: {output_dir: /etc}\n",
    HEAD + "train: {__init__: 1}\n",
]


def test_there_are_enough_files():
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_file_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    started = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        load(file)
    assert time.monotonic() - started < 2
    assert caught.value.exit_code == 2
    assert f"{file}:" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("text", HOSTILE[:40], ids=range(40))
def test_hostile_override_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text(HEAD)
    value = text.removeprefix(HEAD)
    with pytest.raises(RecipeError):
        load(file, [f"prompt.domain={value}"])
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"name: \xe4\n",
        b"\x80" * 100,
        "name: x\n".encode("utf-16"),
        b"\x1f\x8b\x08",
    ],
)
def test_bytes_that_are_no_text_are_refused(content, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=r"UTF-8|not YAML|recipe"):
        load(file)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-3", -3),
        ("+3", 3),
        ("010", 10),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2020-01-01", "2020-01-01"),
        ("'1'", "1"),
        (".inf", ".inf"),
        ("[1, a, 2.5]", [1, "a", 2.5]),
        ("{a: }", {"a": None}),
        ("=", "="),
        ("<<", "<<"),
    ],
)
def test_plain_values_follow_yaml_1_2(text, value):
    document = read(f"a: {text}")
    assert document.problems == []
    assert document.value == {"a": value}
    assert type(document.value["a"]) is type(value)


def test_lines_are_those_of_the_keys():
    document = read("a: 1\nb:\n  c: [1,\n    2]\n")
    assert document.lines["a",] == 1
    assert document.lines["b", "c"] == 3
    assert document.lines["b", "c", 1] == 4


def test_all_duplicates_are_found_at_once():
    problems = read("a: 1\nb: {c: 1, c: 2}\na: 3\n").problems
    assert [(p.line, p.text.split(" is")[0]) for p in problems] == [(2, "b.c"), (3, "a")]


@pytest.mark.parametrize(
    "value", ["1e5", "010", "true", "null", "", "no", "a: b", "# x", "é", "x\ny", "\x07", "1.5"]
)
def test_what_is_written_reads_back(value):
    tree = {"a": value, "b": [1, 2.5, 1e-5, None, True], "c": {}}
    assert read(write(tree)).value == tree
