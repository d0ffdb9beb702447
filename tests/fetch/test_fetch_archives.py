"""Archives made by somebody else: escapes, links and bombs are refused before a byte is written."""

import stat
import struct
import zipfile

import pytest

from llmrec.errors import DataError
from llmrec.fetch.archives import unpack

ESCAPES = [
    "../evil",
    "../../evil",
    "a/../../evil",
    "/evil",
    "//evil",
    "a/../../../evil",
    "..",
    "..\\evil",
    "a\\..\\..\\evil",
    "C:\\evil",
    "C:evil",
    "\\\\server\\evil",
    "a/..",
    "./../evil",
    "evil\n",
    "ev\x1bil",
    "nul",
    "NUL.txt",
    "a/con",
    "com1.csv",
    "a:b",
    "a|b",
    "what?",
    "a*b",
    'a"b',
    "<a>",
    "..//evil",
    "a/b/../../../evil",
]


def made(path, members, modify=None):
    """A zip of {name: bytes}; `modify` may change each ZipInfo."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo("placeholder")
            info.filename = info.orig_filename = name
            info.compress_type = zipfile.ZIP_DEFLATED
            if modify:
                modify(info)
            archive.writestr(info, content)
    return path


def only(folder, *expected):
    """Nothing lies in the folder but what is expected."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*")) == sorted(expected)


@pytest.mark.parametrize("name", ESCAPES)
def test_members_that_lead_out_are_refused(name, tmp_path):
    archive = made(tmp_path / "a.zip", [("good.txt", b"x"), (name, b"x")])
    into = tmp_path / "deep" / "into"
    with pytest.raises(DataError, match="not unpacked"):
        unpack(archive, into)
    assert only(tmp_path, "a.zip")


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]
)
def test_links_and_devices_are_refused(kind, tmp_path):
    def as_kind(info):
        info.external_attr = (kind | 0o777) << 16

    archive = made(tmp_path / "a.zip", [("link", b"/etc/passwd")], as_kind)
    with pytest.raises(DataError, match="a link or a device"):
        unpack(archive, tmp_path / "into")
    assert only(tmp_path, "a.zip")


def test_a_bomb_is_refused_by_its_declared_size(tmp_path):
    archive = made(tmp_path / "a.zip", [("zeros", bytes(3_000_000))])
    assert archive.stat().st_size < 10_000
    with pytest.raises(DataError, match="3000000 bytes unpacked, more than 1000000"):
        unpack(archive, tmp_path / "into", max_bytes=1_000_000)
    assert only(tmp_path, "a.zip")


def test_a_bomb_that_lies_about_its_size_is_stopped(tmp_path):
    archive = made(tmp_path / "a.zip", [("zeros", bytes(3_000_000))])
    content = bytearray(archive.read_bytes())
    for place in range(len(content) - 4):
        if struct.unpack_from("<I", content, place)[0] == 3_000_000:
            struct.pack_into("<I", content, place, 10)
    archive.write_bytes(content)
    with pytest.raises(DataError):
        unpack(archive, tmp_path / "into", max_bytes=1_000_000)
    written = tmp_path / "into" / "zeros"
    assert not written.exists() or written.stat().st_size <= 10


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("llmrec.fetch.archives.MAX_MEMBERS", 3)
    archive = made(tmp_path / "a.zip", [(f"f{i}", b"") for i in range(4)])
    with pytest.raises(DataError, match="4 members"):
        unpack(archive, tmp_path / "into")


@pytest.mark.parametrize("second", ["a.txt", "A.TXT", "a.txt/"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(second, tmp_path):
    archive = made(tmp_path / "a.zip", [("a.txt", b"1"), (second, b"")])
    with pytest.raises(DataError, match="one name"):
        unpack(archive, tmp_path / "into")


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"not a zip" * 100, b"PK\x05\x06" + bytes(18)[:-4]]
)
def test_what_is_no_zip_is_refused(content, tmp_path):
    file = tmp_path / "a.zip"
    file.write_bytes(content)
    with pytest.raises(DataError, match="not a readable zip"):
        unpack(file, tmp_path / "into")


def test_flipped_bytes_never_pass(tmp_path):
    archive = made(tmp_path / "a.zip", [("a.txt", bytes(range(256)) * 20)])
    content = archive.read_bytes()
    start = content.index(b"a.txt") + 5
    for offset in range(start, start + 40, 4):
        flipped = bytearray(content)
        flipped[offset] ^= 0xFF
        archive.write_bytes(flipped)
        try:
            (written,) = unpack(archive, tmp_path / "into")
        except DataError:
            continue
        assert written.read_bytes() == bytes(range(256)) * 20


def test_wanted_members_go_to_their_new_names(tmp_path):
    archive = made(tmp_path / "a.zip", [("deep/a.txt", b"1"), ("deep/b.txt", b"2")])
    (written,) = unpack(archive, tmp_path / "into", {"deep/b.txt": "c.txt"})
    assert written.read_bytes() == b"2"
    assert only(tmp_path / "into", "c.txt")


def test_all_members_keep_their_folders(tmp_path):
    archive = made(tmp_path / "a.zip", [("deep/", b""), ("deep/a.txt", b"1"), ("b.txt", b"2")])
    unpack(archive, tmp_path / "into")
    assert only(tmp_path / "into", "deep", "deep/a.txt", "b.txt")


def test_a_missing_member_is_named_and_nothing_written(tmp_path):
    archive = made(tmp_path / "a.zip", [("a.txt", b"1")])
    with pytest.raises(DataError, match=r"no member 'b\.txt'"):
        unpack(archive, tmp_path / "into", {"a.txt": "a.txt", "b.txt": "b.txt"})
    assert only(tmp_path, "a.zip")
