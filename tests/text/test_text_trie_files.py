"""A trie written and read is the same trie, or a refusal."""

import json
import shutil

import numpy as np
import pytest

from llmrec.data import mapped
from llmrec.data.files import sha256_of
from llmrec.errors import DataError
from llmrec.text import trie_files
from llmrec.text.trie import TitleTrie

TRIE = TitleTrie.from_sequences([[5, 1, 0], [5, 2, 0], [7, 0], [5, 1, 9, 0]])
OTHER = TitleTrie.from_sequences([[8, 0], [9, 0]])
NAMES = ("tokens", "begin", "children", "low", "high", "items", "rank")


@pytest.fixture
def folder(tmp_path):
    trie_files.write(TRIE, tmp_path / "trie", "titles 1")
    return tmp_path / "trie"


def assert_same(one, other):
    for name in NAMES:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("verify", [True, False])
def test_what_is_read_equals_what_was_written(folder, verify):
    trie = trie_files.read(folder, "titles 1", verify)
    assert_same(trie, TRIE)
    assert trie.allowed([5, 1]).tolist() == [0, 9]
    nodes = np.arange(len(TRIE.tokens))
    for asked in ("child_count", "chain_end"):
        mine, expected = getattr(trie, asked)(nodes), getattr(TRIE, asked)(nodes)
        np.testing.assert_array_equal(mine, expected)


def test_arrays_are_mapped_and_cannot_be_written(folder):
    trie = trie_files.read(folder, "titles 1")
    for name in NAMES:
        array = getattr(trie, name)
        assert isinstance(array.base, np.memmap)
        assert array.dtype == np.int32
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize("name", NAMES)
def test_one_changed_byte_is_noticed(folder, name):
    path = folder / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}\.npy is damaged.*SHA-256.*write the trie again"):
        trie_files.read(folder, "titles 1")


def test_another_key_is_refused_and_both_are_named(folder):
    with pytest.raises(DataError, match=r"'titles 1'.*'titles 2'.*write it again"):
        trie_files.read(folder, "titles 2")


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["trie.json", "tokens.npy", "rank.npy"])
def test_a_missing_file_is_refused(folder, name, verify):
    (folder / name).unlink()
    with pytest.raises(DataError, match=name):
        trie_files.read(folder, "titles 1", verify)


def test_an_empty_place_holds_no_trie(tmp_path):
    with pytest.raises(DataError, match="no trie in"):
        trie_files.read(tmp_path / "nowhere", "titles 1")


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"PK\x03\x04 not a zip", b"cos\nsystem\n(S'true'\ntR."]
)
def test_a_file_that_is_no_array_is_refused_without_its_hash_too(folder, content):
    (folder / "low.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"low\.npy is damaged"):
        trie_files.read(folder, "titles 1", verify=False)


@pytest.mark.parametrize(
    "array", [np.arange(3, dtype=np.int32), np.zeros(4, np.int64), np.array([None] * 4)]
)
def test_another_array_is_refused_without_its_hash_too(folder, array):
    np.save(folder / "items.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=r"items\.npy is damaged"):
        trie_files.read(folder, "titles 1", verify=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("key"),
        lambda m: m.update(format=2),
        lambda m: m.update(arrays=[]),
        lambda m: m["arrays"].pop("begin"),
        lambda m: m["arrays"]["begin"].pop("sha256"),
    ],
)
def test_a_manifest_that_lacks_something_is_refused(folder, change):
    manifest = json.loads((folder / "trie.json").read_text("utf-8"))
    change(manifest)
    (folder / "trie.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(DataError, match=r"trie\.json is damaged"):
        trie_files.read(folder, "titles 1")


@pytest.mark.parametrize("content", ["{", "[]", "null", "\ud800"])
def test_a_manifest_that_is_none_is_refused(folder, content):
    (folder / "trie.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match=r"trie\.json is damaged"):
        trie_files.read(folder, "titles 1")


def test_the_manifest_says_shapes_and_hashes(folder):
    manifest = json.loads((folder / "trie.json").read_text("utf-8"))
    assert manifest["key"] == "titles 1"
    assert set(manifest["arrays"]) == set(NAMES)
    for name, said in manifest["arrays"].items():
        assert said["shape"] == [len(getattr(TRIE, name))]
        assert said["sha256"] == sha256_of(folder / f"{name}.npy")


def test_a_new_trie_takes_the_old_ones_place_and_who_mapped_the_old_keeps_it(folder):
    old = trie_files.read(folder, "titles 1")
    trie_files.write(OTHER, folder, "titles 2")
    assert_same(trie_files.read(folder, "titles 2"), OTHER)
    assert_same(old, TRIE)
    assert [p.name for p in folder.parent.iterdir()] == ["trie"]


def test_a_write_that_fails_leaves_the_old_trie(folder, monkeypatch):
    def no_space(path, array, allow_pickle):
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", no_space)
    with pytest.raises(OSError, match="no space"):
        trie_files.write(OTHER, folder, "titles 2")
    assert_same(trie_files.read(folder, "titles 1"), TRIE)
    assert [p.name for p in folder.parent.iterdir()] == ["trie"]


def test_a_rename_that_fails_puts_the_old_trie_back(folder, monkeypatch):
    replace = mapped.os.replace

    def refuse_the_new(source, target):
        if source.name.endswith(".tmp") and target == folder:
            raise OSError("refused")
        replace(source, target)

    monkeypatch.setattr(mapped.os, "replace", refuse_the_new)
    with pytest.raises(OSError, match="refused"):
        trie_files.write(OTHER, folder, "titles 2")
    assert_same(trie_files.read(folder, "titles 1"), TRIE)


def test_of_two_writers_one_wins(folder, monkeypatch):
    replace = mapped.os.replace
    shutil.copytree(folder, folder.parent / "theirs")

    def another_is_faster(source, target):
        if source.name.endswith(".tmp") and target == folder:
            replace(folder.parent / "theirs", folder)
        replace(source, target)

    monkeypatch.setattr(mapped.os, "replace", another_is_faster)
    trie_files.write(OTHER, folder, "titles 2")
    assert_same(trie_files.read(folder, "titles 1"), TRIE)
    assert [p.name for p in folder.parent.iterdir()] == ["trie"]


def test_a_folder_of_other_things_is_never_replaced(tmp_path, folder):
    (folder / "notes.txt").write_text("mine", "utf-8")
    (tmp_path / "file").write_text("mine", "utf-8")
    for place in (folder, tmp_path, tmp_path / "file"):
        with pytest.raises(DataError, match="other things"):
            trie_files.write(TRIE, place, "titles 1")
    assert (folder / "notes.txt").read_text("utf-8") == "mine"


def test_a_shared_trie_is_built_once_and_again_for_another_key(tmp_path):
    built, place = [], tmp_path / "trie"

    def shared(trie, key):
        def make():
            built.append(key)
            return trie

        return trie_files.shared(make, place, key)

    first = shared(TRIE, "titles 1")
    assert_same(shared(OTHER, "titles 1"), TRIE)
    assert built == ["titles 1"]
    assert not first.tokens.flags.writeable
    assert_same(shared(OTHER, "titles 2"), OTHER)
    (place / "tokens.npy").write_bytes(b"torn")
    assert_same(shared(OTHER, "titles 2"), OTHER)
    assert built == ["titles 1", "titles 2", "titles 2"]
