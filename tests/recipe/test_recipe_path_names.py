"""60 names that lead out of a folder, or mean something to some file system: none is the name of a
run, of a study's cell or of a ranking, and nothing is written."""

import pytest

from llmrec.errors import LlmrecError
from llmrec.recipe.loading import load
from llmrec.stages import evaluate_files

OUT = [
    "..",
    "../x",
    "../../etc/x",
    "x/../../y",
    "./..",
    "/",
    "/etc/passwd",
    "//host/x",
    "~",
    "~root/x",
]
WINDOWS = [
    "..\\x",
    "C:\\x",
    "C:x",
    "\\\\host\\share",
    "a\\..\\..\\b",
    "nul:",
    "x:y",
    "a|b",
    "a<b",
    "a>b",
]
ODD = [
    "",
    " ",
    ".",
    ".hidden",
    "-rf",
    "--help",
    "a b",
    "a\tb",
    "a\nb",
    "a\rb",
    "a\0b",
    "a\x1b[2J",
    "a\x7f",
]
SHELL = [
    "$(touch x)",
    "`touch x`",
    "a;b",
    "a&b",
    "a*",
    "a?b",
    "a'b",
    'a"b',
    "$HOME",
    "${x}",
    "a#b",
    "a=b",
]
WIDE = [
    "\u0430",
    "\uff41",
    "a\u202eb",
    "a\u200bb",
    "a\ufeff",
    "é",
    "名",
    "a\u2044b",
    "\u2025/x",
    "a\u0000",
    "😀",
]
NAMES = [*OUT, *WINDOWS, *ODD, *SHELL, *WIDE, "x" * 101, "x" * 5000, "%2e%2e%2f", "x/y"]


def test_there_are_sixty():
    assert len(set(NAMES)) >= 60


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_that_leads_elsewhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "x.yaml"
    recipe.write_text("name: x\ndata: {source: x.csv}\n", "utf-8")
    (tmp_path / "t.csv").write_text("user_id,item_id\na,b\n", "utf-8")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(LlmrecError):
        load(recipe, [f"name={name}"])
    if "=" not in name:
        with pytest.raises(LlmrecError):
            evaluate_files.run(tmp_path / "t.csv", [f"{name}=../t.csv"])
    assert sorted(tmp_path.rglob("*")) == before
    assert sorted(p.name for p in tmp_path.parent.iterdir() if p.name.startswith("x")) == []
