"""The pages of docs/: what they show runs, and the house they describe is the one that stands."""

import re
from pathlib import Path

from llmrec.stages import prepare
from llmrec.studies.cells import planned
from llmrec.studies.study import described

DOCS = Path(__file__).parents[2] / "docs"
PACKAGE = DOCS.parent / "llmrec"
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_what_extending_shows_runs(recipe_of, tmp_path, monkeypatch):
    recipe, folder = recipe_of("systems=[popularity, markov]")
    prepare.run(recipe, folder)
    folder.keep(recipe)
    blocks = CODE.findall((DOCS / "extending.md").read_text("utf-8"))
    assert len(blocks) == 4
    (tmp_path / "plays").mkdir()
    monkeypatch.chdir(tmp_path / "plays")
    names = {"RUN": folder.root, "__name__": "extending"}
    for number, block in enumerate(blocks):
        assert len(block.splitlines()) <= 36
        monkeypatch.setattr("llmrec.data.sources.published._OTHERS", _others())
        exec(compile(block, f"extending.md, block {number}", "exec"), names)  # noqa: S102


def _others():
    from llmrec.data.sources import published

    return published._OTHERS


def test_the_study_of_its_page_can_be_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [text] = re.findall(r"```yaml\n(.*?)```", (DOCS / "studies.md").read_text("utf-8"), re.DOTALL)
    Path("alpha.yaml").write_text(text, "utf-8")
    cells = described(planned(Path("alpha.yaml"), ["study.seeds=[0,1]", "decode.top_k=20"]))[
        "cells"
    ]
    assert len(cells) == 2 * (1 + 3)


def test_the_rooms_of_architecture_are_those_that_stand():
    text = (DOCS / "architecture.md").read_text("utf-8")
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert set(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)) == rooms
    for path in re.findall(r"`((?:\w+/)+\w+\.py)`", text):
        file = DOCS.parent / path if path.startswith("tests/") else PACKAGE / path
        assert file.is_file(), path


def test_every_link_of_the_pages_leads_somewhere():
    pages = [DOCS.parent / "README.md", *DOCS.glob("*.md"), *(DOCS.parent / "results").glob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
