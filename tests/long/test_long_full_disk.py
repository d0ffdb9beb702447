"""A whole run on a disk that is full at any of 30 points: told without a traceback, nothing left
half-written, and with room again the same command ends with the bytes of a run that had it all.

The disk is a limit on the size of a file, and a file system of so many bytes where this user may
mount one.
"""

import os
import shutil
import subprocess

import pytest

from llmrec.data import sealed
from llmrec.evaluation.predictions import Predictions
from llmrec.model.kept_weights import CHECKPOINT
from tests.long.conftest import rounds

pytestmark = pytest.mark.long
LIMIT = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({0}, {0}))"
ROOM = 1 << 28


class Limit:
    """No file may be larger than `size`."""

    told = ("the disk is full",)

    def __init__(self, folder):
        self.folder = folder

    def size_at(self, share, files):
        """Bytes, denser where the many small files are; what is told is a file too."""
        return max(4096, int(max(files) * share**3))

    def given(self, size):
        """What a command does first, that has so much room."""
        return LIMIT.format(size)


class FileSystem:
    """A file system of `size` bytes."""

    told = ("the disk is full", "nothing was written")

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self._mount(f"size={ROOM}")

    def size_at(self, share, files):
        """Bytes, from nearly nothing to a little less than all."""
        return max(4096, int(sum(files) * (0.01 + 0.98 * share)))

    def given(self, size):
        """The same; what stands is gone before."""
        self._mount(f"remount,size={size}")
        return ""

    def _mount(self, options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(params=[Limit, FileSystem])
def disk(request, tmp_path):
    """A place whose room can be set."""
    if request.param is FileSystem and (os.geteuid() != 0 or not shutil.which("mount")):
        pytest.skip("only root may mount a file system")
    folder = tmp_path / "disk"
    try:
        yield request.param(folder)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no file system can be mounted here: {error.stderr!r}")
    finally:
        if os.path.ismount(folder):
            subprocess.run(["umount", str(folder)], check=True)


def test_a_run_at_30_points(disk, recipe_of, written, forks, capsys):
    straight, folder_a = recipe_of("name=straight")
    assert forks.run("-q", "run", written(straight))[0] == 0
    recipe, folder = recipe_of("name=full", f"output_dir={disk.folder}")
    path, told = written(recipe), {}
    files = [p.stat().st_size for p in folder_a.root.rglob("*") if p.is_file()]
    weights = (folder_a.adapter / "adapter_model.safetensors").read_bytes()
    for point in range(rounds(30)):
        size = disk.size_at(point / 30, files)
        code, _, errors = forks.run("-q", "run", path, before=disk.given(size))
        assert "Traceback" not in errors, (size, errors)
        if code:
            assert any(said in errors for said in disk.told), (size, errors)
        how = (
            ("looked at before" if "nothing was written" in errors else "while writing")
            if code
            else "room"
        )
        told[how] = told.get(how, 0) + 1
        left = [p.name for p in folder.root.rglob(".*") if p.name not in (".lock", ".holder.json")]
        assert not [name for name in left if "staging" in name or ".tmp" in name], (size, left)
        for checkpoint in folder.checkpoints.glob(f"{CHECKPOINT}*"):
            assert sealed.problem(checkpoint) is None, size
        if point % 3 == 0:
            disk.given(ROOM)
            assert forks.run("-q", "run", path)[0] == 0
            assert (folder.adapter / "adapter_model.safetensors").read_bytes() == weights
            for name in recipe.systems:
                ours, theirs = (Predictions.read(f.predictions(name)) for f in (folder, folder_a))
                assert ours.items.tolist() == theirs.items.tolist()
                assert ours.nll.tolist() == theirs.nll.tolist()
        if folder.root.exists():
            shutil.rmtree(folder.root)
    with capsys.disabled():
        print(f"\n{type(disk).__name__}: {rounds(30)} points, {len(files)} files: {told}")
