"""`llmrec serve` as a process: it says where it is, answers, and ends well when told to."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from typer.testing import CliRunner

from llmrec.cli import app
from llmrec.errors import LlmrecError, RecipeError
from llmrec.stages import prepare, serve

pytest.importorskip("uvicorn")


@pytest.fixture
def prepared(recipe_of):
    recipe, folder = recipe_of("systems=[popularity]")
    prepare.run(recipe, folder)
    folder.keep(recipe)
    return recipe, folder


def test_it_answers_until_it_is_told_to_stop(prepared):
    _, folder = prepared
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llmrec", "serve", str(folder.root), "--system", "popularity"]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    body = json.dumps({"histories": [["i1"]], "top_k": 2}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/recommend", body, {"Content-Type": "application/json"}
    )
    for _ in range(600):
        assert process.poll() is None, process.stderr.read()
        try:
            with urllib.request.urlopen(request) as response:  # noqa: S310  our own address
                said = json.load(response)
            break
        except OSError:
            time.sleep(0.1)
    assert len(said["results"][0]["items"]) == 2
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert f"served: http://127.0.0.1:{port}" in out
    assert f"serving at http://127.0.0.1:{port}; Ctrl+C stops" in err


def test_what_keeps_it_from_serving_is_told(prepared, monkeypatch):
    recipe, folder = prepared
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LlmrecError, match=rf"127.0.0.1:{port} cannot be listened on"):
            serve.run(recipe, folder, ["popularity"], port=port)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(RecipeError, match=r"needs uvicorn: pip install 'llmrec\[serve\]'"):
        serve.run(recipe, folder)
    refused = CliRunner().invoke(app, ["serve", str(folder.root / "nowhere")])
    assert isinstance(refused.exception, RecipeError)
