"""A wheel holds all that llmrec needs, and works where nothing else of the checkout is."""

import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    place = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(place), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    [made] = place.glob("*.whl")
    return made


def test_every_file_of_the_package_and_of_the_shipped_folders_is_inside(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = [p for p in (ROOT / "llmrec").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert {p.relative_to(ROOT).as_posix() for p in package} <= inside
    for folder in ("prompts", "recipes", "studies"):
        shipped = [p for p in (ROOT / folder).rglob("*") if p.is_file()]
        assert shipped
        assert {f"llmrec/shipped/{p.relative_to(ROOT).as_posix()}" for p in shipped} <= inside
    assert not [name for name in inside if name.startswith("tests")]


def test_it_works_in_an_environment_of_its_own(wheel, tmp_path):
    """Its dependencies are those of this environment; llmrec is the wheel's."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    command = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet"]
    subprocess.run([*command, "--no-deps", str(wheel)], check=True, capture_output=True)
    [packages] = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n", "utf-8")
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*arguments):
        done = subprocess.run(
            [str(python), *arguments],
            cwd=tmp_path,
            env=clean,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("-c", "import llmrec; print(llmrec.__file__)").strip()
    assert Path(where).is_relative_to(home)
    assert "demo" in run("-m", "llmrec", "recipes", "ls")
    assert "next_item/movie" in run(str(home / "bin" / "llmrec"), "prompts", "ls")
    assert "demo" in run("-m", "llmrec", "validate", "demo")
    assert "study: soft" in run("-m", "llmrec", "study", "soft", "--dry-run")
