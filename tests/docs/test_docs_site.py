"""The site of docs/: it builds, strictly and without a network; what is made from code is new."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["reference.md", "api.md"])
def test_pages_made_from_the_code_are_as_the_code_is(reference, page):
    there = (ROOT / "docs" / page).read_text("utf-8")
    assert there == reference.PAGES[page](), "run `python tools/reference.py` and commit its pages"


def test_the_reference_has_every_key(reference):
    from llmrec.recipe.keys import all_keys, keys_in

    text = "## top\n" + reference.recipe_page()
    parts = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for path in all_keys():
        if keys_in(path):
            assert ".".join(path) in parts
        else:
            assert f"\n| `{path[-1]}` |" in parts[".".join(path[:-1]) or "top"]


NO_NETWORK = """
import socket
def refused(*_, **__):
    raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refused
from mkdocs.__main__ import cli
cli()
"""


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK, "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*.html")}
    assert {"index.html", "soft.html", "results/speed.html", "prompts/index.html"} <= set(pages)
    elsewhere = re.compile(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?:https?:)?//[^"]+')
    for name, path in pages.items():
        text = path.read_text("utf-8")
        loaded = [tag for tag in elsewhere.findall(text) if 'rel="canonical"' not in tag]
        assert not loaded, f"{name}: {loaded[0]}"
        if name == "404.html":
            continue  # its links begin at the root of a host
        for link in re.findall(r'href="([^"#:]+)(?:#[^"]*)?"', text):
            assert (path.parent / link).exists(), f"{name}: {link}"
