"""The notebooks of examples/ run from their first cell to their last, with a tiny model."""

import os
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.ipynb")))
def test_a_notebook_runs(name, tmp_path, tiny_base, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "keep notebooks without outputs"
    # The command is that of this interpreter, wherever the tests run.
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "llmrec"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmrec "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.setenv("LLMREC_EXAMPLE_MODEL", str(tiny_base))
    monkeypatch.setenv("LLMREC_EXAMPLE_ROWS", "16")
    monkeypatch.chdir(tmp_path)
    client = nbclient.NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    assert "error:" not in printed, printed
    assert "Traceback" not in printed, printed
    for words in {
        "shop_log.ipynb": ("left out: ", "By NLL, ", "optimiser_steps: "),
        "judge_any_ranking.ipynb": (
            "popular  hit_rate",
            "stands above popular",
            "\\begin{tabular}",
        ),
    }[name]:
        assert words in printed
