"""What libraries raise becomes a message: what, where, why, what to do; defects keep tracebacks."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmrec import terminal
from llmrec.errors import DataError
from llmrec.known_errors import explained


def raised(call):
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        call()
    return caught.value


def deep(levels):
    return deep(levels + 1)


def of_class(module, name, base=Exception):
    return type(name, (base,), {"__module__": module})


def _raise(error):
    raise error


CALLS = {
    "arrow": lambda: pa.ipc.open_stream(b"nothing"),
    "arrow type": lambda: pa.array(["x"]).cast(pa.int32()),
    "unpickling": lambda: pickle.loads(b"no pickle"),  # noqa: S301
    "unicode": lambda: b"\xff".decode("utf-8"),
    "recursion": lambda: deep(0),
    "memory": lambda: _raise(MemoryError()),
    "import": lambda: _raise(ImportError("needs galore", name="galore_torch")),
    "safetensors": lambda: _raise(of_class("safetensors_rust", "SafetensorError")("header")),
    "safetensors below": lambda: _raise(of_class("safetensors.torch", "X")("header")),
    "out of memory": lambda: _raise(of_class("torch", "OutOfMemoryError", RuntimeError)("CUDA")),
    "out of memory, said": lambda: _raise(RuntimeError("DefaultCPUAllocator: can't allocate 9 GB")),
    "no torch file": lambda: _raise(RuntimeError("PytorchStreamReader failed reading")),
    "datasets": lambda: _raise(of_class("datasets.exceptions", "DatasetGenerationError")("x")),
    "hub": lambda: _raise(of_class("huggingface_hub.errors", "GatedRepoError")("x")),
}


@pytest.mark.parametrize("name", CALLS)
def test_known_ones_are_a_message(name, capsys):
    error = raised(CALLS[name])
    told = explained(error)
    for part in (type(error).__name__, ";"):
        assert part in str(told)
    with pytest.raises(SystemExit) as end:
        terminal.guarded(CALLS[name])
    assert end.value.code == told.exit_code
    assert f"error: {told}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        KeyError("x"),
        RuntimeError("shape mismatch"),
        ImportError("cannot import name", name="llmrec.recipe"),
        of_class("numpy", "AxisError")("x"),
    ],
    ids=repr,
)
def test_what_may_be_a_defect_is_not(error):
    assert explained(error) is None
    with pytest.raises(type(error)):
        terminal.guarded(lambda: _raise(error))


def test_where_is_the_file_at_hand(tmp_path):
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"x": [1]}), path)
    path.write_bytes(path.read_bytes()[:-9])

    def inside(path):
        pq.read_table(path)

    inside.__globals__["__name__"], kept = "llmrec.data.fake", __name__
    try:
        told = explained(raised(lambda: inside(path)))
    finally:
        inside.__globals__["__name__"] = kept
    assert str(path) in str(told)
    assert isinstance(told, DataError)


def test_a_library_that_says_much_is_cut():
    assert len(str(explained(MemoryError("long " * 1000)))) < 800
