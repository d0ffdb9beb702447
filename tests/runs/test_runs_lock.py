"""One writer for a run folder, named to the others; readers of what is read-only are served."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest

from llmrec.data import catalog as catalogs
from llmrec.data.catalog import Catalog, build_catalog
from llmrec.data.files import unique, write_json
from llmrec.errors import RecipeError
from llmrec.fetch import cache
from llmrec.runs.lock import HOLDER, hold, holding, release
from llmrec.text import trie_files
from llmrec.text.trie import TitleTrie

STARTER = (
    "import sys\nfrom pathlib import Path\nfrom llmrec import terminal\n"
    "from llmrec.runs.lock import hold\n"
    "def work():\n"
    "    hold(Path(sys.argv[1]), sys.argv[2])\n"
    "    hold(Path(sys.argv[1]), sys.argv[2])\n"  # a verb that calls another
    "    print('runs', flush=True)\n    sys.stdin.read()\n"
    "terminal.guarded(work)"
)
_closed = []  # the folders that are read-only as long as they are here


def _refuse(event, arguments):
    """An audit hook that keeps folders from being written, as root may write all others."""
    if not _closed:
        return
    writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        writes = any(letter in (mode or "") for letter in "wax+") or bool(
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
    path = str(arguments[0]) if arguments else ""
    if writes and any(path.startswith(folder) for folder in _closed):
        raise PermissionError(13, "Permission denied", path)


@pytest.fixture
def read_only():
    """A function that makes a folder read-only until the test ends."""
    sys.addaudithook(_refuse)
    yield lambda folder: _closed.append(str(folder))
    _closed.clear()


def started(folder, verb="train"):
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, str(folder), verb],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_of_eight_starters_one_runs_and_seven_name_it(tmp_path):
    folder = tmp_path / "run"
    starters = [started(folder) for _ in range(8)]
    refused = []
    while len(refused) < 7:
        refused = [s for s in starters if s.poll() is not None]
        if len(refused) == 8:
            break
    running = next(s for s in starters if s not in refused)
    said = rf"{folder} is in use by `llmrec train`, pid {running.pid} on \S+, since 20\d\d-"
    for one in refused:
        _, errors = one.communicate(timeout=30)
        assert one.returncode == 2
        assert re.search(said, errors), errors
        assert "Traceback" not in errors
    running.kill()  # the lock ends with its process
    running.communicate()
    with started(folder, "evaluate") as after:
        assert after.stdout.readline() == "runs\n"
        with started(folder) as late:
            assert "`llmrec evaluate`, pid" in late.communicate()[1]
        after.communicate("")
        assert after.returncode == 0


def test_the_commands_hold_it_and_readers_do_not(tmp_path, monkeypatch, capsys):
    from llmrec.cli import main
    from llmrec.stages import recommend_histories

    (tmp_path / "x.yaml").write_text("name: x\ndata: {source: x.csv}\n")
    (tmp_path / "h.jsonl").write_text('["a"]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llmrec.terminal.signal.signal", lambda *_: None)
    monkeypatch.setattr(recommend_histories, "tables", lambda *_: [])

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["llmrec", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, capsys.readouterr()

    with started(tmp_path / "runs" / "x", "run") as holder:
        assert holder.stdout.readline() == "runs\n"
        verbs = ["prepare", "train", "distill", "retrieve", "evaluate", "report", "run", "export"]
        for verb in [*([v] for v in verbs), ["check", "leakage"]]:
            code, said = call(*verb, "x.yaml")
            assert (code, "in use by `llmrec run`" in said.err) == (2, True), verb
        assert call("recommend", "x.yaml")[0] == 2
        assert call("recommend", "x.yaml", "--histories", "h.jsonl")[0] == 0
        assert call("config", "show", "x.yaml")[0] == 0
        monkeypatch.setenv("RANK", "1")  # another process of the job that holds it
        assert call("prepare", "x.yaml")[0] == 3  # its own error: there is no x.csv
        monkeypatch.delenv("RANK")
        holder.communicate("")


def test_a_call_from_python_holds_it_and_lets_go(recipe_of):
    from llmrec.stages import evaluate, prepare, recommend

    recipe, folder = recipe_of("systems=[popularity]")
    with started(folder.root, "train") as holder:
        assert holder.stdout.readline() == "runs\n"
        for stage in (prepare, recommend, evaluate):
            with pytest.raises(RecipeError, match="in use by `llmrec train`, pid"):
                stage.run(recipe, folder)
        holder.communicate("")
    prepare.run(recipe, folder)
    with started(folder.root) as after:
        assert after.stdout.readline() == "runs\n"
        after.communicate("")


def test_two_threads_are_two_writers(tmp_path):
    with holding(tmp_path, "train"), ThreadPoolExecutor(1) as pool:
        with pytest.raises(RecipeError, match="another thread of this process"):
            pool.submit(hold, tmp_path, "train").result()
        with holding(tmp_path, "prepare"):  # a stage that another calls
            pass
        with started(tmp_path) as late:
            assert "in use by" in late.communicate()[1]
    hold(tmp_path, "train")
    release(tmp_path)


def test_what_a_killed_process_left_is_cleared(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host, mine = unique().rsplit("-", 2)[0], unique()
    theirs = f"{host}-{gone.pid}-0123abcd"
    left = [tmp_path / f".{theirs}.adapter", tmp_path / "a" / f".x.json.{theirs}.tmp"]
    elsewhere = f".elsewhere-{gone.pid}-0123abcd.adapter"
    kept = [tmp_path / name for name in (f".{mine}.adapter", ".mine", f"{theirs}.x", elsewhere)]
    left[0].mkdir()
    left[1].parent.mkdir()
    for path in (left[0] / "weights", left[1], *kept):
        path.write_text("")
    with holding(tmp_path, "train"):
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in kept)


def test_an_old_name_is_not_believed(tmp_path):
    with started(tmp_path) as holder:
        assert holder.stdout.readline() == "runs\n"
        (tmp_path / HOLDER).write_text("{")
        with pytest.raises(RecipeError, match="in use by another llmrec"):
            hold(tmp_path, "train")
        holder.communicate("")


def test_a_read_only_cache_and_run_folder_serve_readers(tmp_path, read_only, monkeypatch):
    model = tmp_path / "models" / "smollm2-135m-instruct"
    model.mkdir(parents=True)
    write_json(model / cache.MANIFEST, {"files": {}})
    sequences = [np.array([1, 2], np.int32), np.array([3], np.int32)]
    run = tmp_path / "run"
    run.mkdir()
    catalog = build_catalog(["1", "2"], ["One", "Two"])
    catalog.write(run / "items.parquet")
    monkeypatch.setattr(catalogs, "LARGE", 2)
    read_only(tmp_path)
    with pytest.raises(PermissionError):
        (run / "x").write_text("")
    assert Catalog.read(run / "items.parquet") == catalog
    assert cache.fetch("model", "smollm2-135m-instruct", cache=tmp_path) == model
    hold(run, "evaluate")
    trie = TitleTrie.from_sequences(sequences)
    assert trie_files.shared(lambda: trie, run / "trie", "key").items is trie.items
    assert [path.name for path in run.iterdir()] == ["items.parquet"]


def visible(root):
    """The files of a folder that are not hidden: what arrow writes asks no audit hook."""
    return {p: p.read_bytes() for p in root.rglob("[!.]*") if p.is_file()}


def test_the_commands_serve_from_a_run_that_is_read_only(
    trained, read_only, tmp_path, monkeypatch, capsys
):
    from llmrec.cli import main
    from llmrec.stages import evaluate, recommend

    recipe, folder = trained
    recommend.run(recipe, folder)
    evaluate.run(recipe, folder)
    before = visible(folder.root)
    histories, out = tmp_path / "h.jsonl", tmp_path / "out"
    histories.write_text('["The Man", "The Man II"]\n["Love"]\n')
    monkeypatch.setattr("llmrec.terminal.signal.signal", lambda *_: None)
    monkeypatch.setattr(cache, "cache_root", lambda: tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    read_only(folder.root)
    read_only(tmp_path / "cache")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["llmrec", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, capsys.readouterr().err

    for arguments in (
        ["evaluate", folder.root],
        ["report", folder.root, "--out", out / "page.html"],
        ["export", folder.root, "--out", out],
        ["recommend", folder.root, "--histories", histories, "--out", out / "answers.parquet"],
        ["recommend", folder.root, "--histories", histories],
        ["check", "leakage", folder.root],
        ["prompts", "render", folder.root],
        ["evaluate", folder.root, "--json"],
    ):
        assert call(*arguments)[0] == 0, arguments
    for arguments in (["report", folder.root], ["export", folder.root]):
        code, said = call(*arguments)
        assert (code, "may not be read or written" in said) == (1, True), said
        assert "--out" in said
    assert pq.read_table(out / "answers.parquet")["user"].to_pylist() == ["1"] * 10 + ["2"] * 10
    assert (out / "page.html").is_file()
    assert (out / "predictions" / "tuned.parquet").is_file()
    assert visible(folder.root) == before


def test_a_finished_run_that_is_read_only_is_evaluated(recipe_of, read_only, caplog):
    from llmrec.stages import evaluate, prepare, recommend

    recipe, folder = recipe_of("systems=[popularity, markov]")
    prepare.run(recipe, folder)
    recommend.run(recipe, folder)
    kept = evaluate.run(recipe, folder)
    before = folder.metrics.stat().st_mtime_ns
    read_only(folder.root)
    with caplog.at_level("WARNING", "llmrec"):
        assert evaluate.run(recipe, folder)["table"] == kept["table"]
    assert "read-only" in caplog.text
    assert folder.metrics.stat().st_mtime_ns == before
