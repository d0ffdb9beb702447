"""Sealed folders: whole, or skipped with the reason."""

import random
import shutil

import pytest

from llmrec.data import sealed as checkpoints


def sealed(root, step, content=b"weights"):
    staged = root / ".staging" / "x"
    staged.mkdir(parents=True)
    (staged / "model.bin").write_bytes(content * 50)
    (staged / "sub").mkdir()
    (staged / "sub" / "state.json").write_text("{}")
    checkpoints.seal(staged, root / f"checkpoint-{step}", step=step)
    return root / f"checkpoint-{step}"


def test_the_newest_whole_one_is_taken(tmp_path):
    for step in (9, 10, 100):
        sealed(tmp_path, step)
    newest, skipped = checkpoints.newest(tmp_path, "checkpoint-")
    assert (newest.name, skipped) == ("checkpoint-100", [])
    assert checkpoints.facts(newest)["step"] == 100


def mutate(folder, rng):
    path = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    data = bytearray(path.read_bytes())
    kind = rng.choice(["delete", "truncate", "flip"])
    if kind == "delete":
        path.unlink()
    elif kind == "truncate":
        path.write_bytes(data[: rng.randrange(len(data))])
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    return path.name


def test_200_damages_fall_back_and_name_the_file(tmp_path):
    good, kept = sealed(tmp_path, 1), tmp_path / "kept"
    shutil.copytree(sealed(tmp_path, 2), kept)
    rng = random.Random(0)
    for _ in range(200):
        shutil.rmtree(tmp_path / "checkpoint-2")
        shutil.copytree(kept, tmp_path / "checkpoint-2")
        name = mutate(tmp_path / "checkpoint-2", rng)
        newest, skipped = checkpoints.newest(tmp_path, "checkpoint-")
        assert newest == good
        assert len(skipped) == 1
        assert name in skipped[0]


def test_a_kill_at_any_file_operation_leaves_a_whole_one(tmp_path, monkeypatch):
    import os

    class Killed(BaseException):
        pass

    for stop_at in range(12):
        root = tmp_path / str(stop_at)
        sealed(root, 1)
        sealed(root, 2, b"older try")
        calls = 0
        real = {name: getattr(os, name) for name in ("replace", "fsync")}

        def counting(name, real=real, stop_at=stop_at):
            def call(*arguments):
                nonlocal calls
                if calls == stop_at:
                    raise Killed
                calls += 1
                return real[name](*arguments)

            return call

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, counting(name))
            try:
                sealed(root, 2, b"newer try")
            except Killed:
                pass
            else:
                assert stop_at >= calls
        newest, _ = checkpoints.newest(root, "checkpoint-")
        assert newest is not None
        assert checkpoints.problem(newest) is None
        checkpoints.clear_staging(root)
        assert not list(root.glob(".staging*"))


def test_old_ones_go_only_when_the_newest_verifies(tmp_path):
    for step in (1, 2, 3):
        sealed(tmp_path, step)
    (tmp_path / "checkpoint-3" / "model.bin").write_bytes(b"")
    checkpoints.prune(tmp_path, "checkpoint-", keep=1)
    assert len(list(tmp_path.glob("checkpoint-*"))) == 3
    shutil.rmtree(tmp_path / "checkpoint-3")
    checkpoints.prune(tmp_path, "checkpoint-", keep=1)
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": 3}', "null", "\x00"])
def test_a_manifest_of_any_content_is_a_reason_not_a_crash(tmp_path, content):
    folder = sealed(tmp_path, 1)
    (folder / checkpoints.MANIFEST).write_text(content)
    assert checkpoints.MANIFEST in checkpoints.problem(folder)
