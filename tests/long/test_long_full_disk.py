"""A whole run on a disk that is full at any of 30 points: told without a traceback, nothing left
half-written, and with room again the same command ends with the bytes of a run that had it all."""

import shutil

import pytest

from llmrec.data import sealed
from llmrec.evaluation.predictions import Predictions
from llmrec.model.kept_weights import CHECKPOINT
from tests.long.conftest import rounds

pytestmark = pytest.mark.long
LIMIT = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({0}, {0}))"


def test_a_run_at_30_points(recipe_of, written, forks, capsys):
    straight, folder_a = recipe_of("name=straight")
    assert forks.run("-q", "run", written(straight))[0] == 0
    recipe, folder = recipe_of("name=full")
    path, told = written(recipe), {}
    largest = max(p.stat().st_size for p in folder_a.root.rglob("*") if p.is_file())
    weights = (folder_a.adapter / "adapter_model.safetensors").read_bytes()
    for point in range(rounds(30)):
        # Denser where the many small files are.
        size = max(4096, int(largest * (point / 30) ** 3))  # what it tells is a file too
        code, _, errors = forks.run("-q", "run", path, before=LIMIT.format(size))
        assert "Traceback" not in errors, (size, errors)
        if code:
            assert "the disk is full" in errors, (size, errors)
        told[code] = told.get(code, 0) + 1
        left = [p.name for p in folder.root.rglob(".*") if p.name not in (".lock", ".holder.json")]
        assert not [name for name in left if "staging" in name or ".tmp" in name], (size, left)
        for checkpoint in folder.checkpoints.glob(f"{CHECKPOINT}*"):
            assert sealed.problem(checkpoint) is None, size
        if point % 3 == 0:
            assert forks.run("-q", "run", path)[0] == 0
            assert (folder.adapter / "adapter_model.safetensors").read_bytes() == weights
            for name in recipe.systems:
                ours, theirs = (Predictions.read(f.predictions(name)) for f in (folder, folder_a))
                assert ours.items.tolist() == theirs.items.tolist()
                assert ours.nll.tolist() == theirs.nll.tolist()
        shutil.rmtree(folder.root)
    with capsys.disabled():
        print(f"\n{rounds(30)} points, largest file {largest} bytes: exit codes {told}")
