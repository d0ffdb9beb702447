"""A disk that is full at some write: what stood is whole, nothing half-written stays, and a message
says where; no write is begun where there is no room for it."""

import resource
import shutil
from contextlib import contextmanager

import pytest

from llmrec.data import files, sealed
from llmrec.data.batching import batches
from llmrec.errors import LlmrecError
from llmrec.known_errors import explained
from llmrec.model.kept_weights import CHECKPOINT
from llmrec.model.saving import SavingTrainer
from llmrec.runs.batch_files import answer_in_parts, collected
from llmrec.stages import evaluate, export, prepare, recommend, report, train


@contextmanager
def no_file_above(size):
    """What writes more than so many bytes to one file fails, as on a disk that is full there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def failed(work, size):
    """What is told of `work` where no file can be larger than `size`; None where it ended."""
    with no_file_above(size):
        try:
            work()
            return None
        except Exception as error:
            raised = error
    told = raised if isinstance(raised, LlmrecError) else explained(raised)
    assert told is not None, repr(raised)
    return str(told)


def leftovers(root):
    return [p for p in root.rglob(".*") if p.name not in (".lock", ".holder.json")]


def test_a_save_that_fails_at_any_of_30_points_leaves_the_old_checkpoint(recipe_of, monkeypatch):
    recipe, folder = recipe_of("train.num_train_epochs=1", "train.save_total_limit=2")
    real, told = SavingTrainer._save_checkpoint, []

    def saving(self, model, trial):
        if self.state.global_step == 4:
            largest = max(f.stat().st_size for f in (self.root / f"{CHECKPOINT}2").iterdir())
            for point in range(30):
                said = failed(lambda: real(self, model, trial), point * largest // 30)
                told.append(said)
                newest, skipped = sealed.newest(self.root, CHECKPOINT)
                assert (newest.name, skipped) == (f"{CHECKPOINT}2", [])
                assert not list(self.root.glob(".*"))
        real(self, model, trial)

    monkeypatch.setattr(SavingTrainer, "_save_checkpoint", saving)
    train.run(recipe, folder)
    assert len(told) == 30
    for said in told:
        assert "the disk is full" in said, said
        assert "are free on that disk" in said, said
        assert "checkpoints" in said, said
    assert (folder.adapter / "adapter_model.safetensors").is_file()


def test_every_other_verb_leaves_what_stood(recipe_of):
    recipe, folder = recipe_of("systems=[popularity, markov]")
    verbs = {
        "prepare": lambda: prepare.run(recipe, folder),
        "recommend": lambda: recommend.run(recipe, folder),
        "evaluate": lambda: evaluate.run(recipe, folder),
        "report": lambda: report.run(recipe, folder),
        "export": lambda: export.run(recipe, folder),
    }
    for name, verb in verbs.items():
        before = {p: p.read_bytes() for p in folder.root.rglob("*") if p.is_file()}
        points = [failed(verb, size) for size in (0, 100, 1000, 3000)]
        assert "the disk is full" in points[0], name
        for path, content in before.items():
            assert path.read_bytes() == content, (name, path)
        assert not leftovers(folder.root), name
        verb()
        assert verb()


def test_no_room_is_told_before_anything_is_done(recipe_of, monkeypatch):
    recipe, folder = recipe_of()
    prepare.run(recipe, folder)
    usage = shutil.disk_usage(folder.root)
    monkeypatch.setattr(files, "disk_usage", lambda _: usage._replace(free=5000))
    with pytest.raises(LlmrecError) as told:
        train.run(recipe, folder)
    for word in (str(folder.root), "training needs about", "4.9 kB are free", "output_dir"):
        assert word in str(told.value)
    assert not folder.checkpoints.exists()


def test_room_that_goes_while_it_trains_is_told_before_the_save(recipe_of, monkeypatch):
    recipe, folder = recipe_of("train.num_train_epochs=1")
    real = SavingTrainer._save_checkpoint

    def saving(self, model, trial):
        if self.state.global_step == 4:
            usage = shutil.disk_usage(folder.root)
            monkeypatch.setattr(files, "disk_usage", lambda _: usage._replace(free=5000))
        real(self, model, trial)

    monkeypatch.setattr(SavingTrainer, "_save_checkpoint", saving)
    with pytest.raises(LlmrecError, match=r"checkpoints: a checkpoint needs about .* are free"):
        train.run(recipe, folder)
    newest, _ = sealed.newest(folder.checkpoints, CHECKPOINT)
    assert newest.name == f"{CHECKPOINT}2"


def test_data_that_would_not_fit_is_told_and_the_former_stays(recipe_of, monkeypatch):
    recipe, folder = recipe_of()
    prepare.run(recipe, folder)
    before = {p.name: p.read_bytes() for p in folder.data.iterdir()}
    usage = shutil.disk_usage(folder.root)
    monkeypatch.setattr(files, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(LlmrecError, match=r"the prepared data needs about .* 10 bytes are free"):
        prepare.run(recipe.model_copy(update={"seed": 9}), folder)
    assert {p.name: p.read_bytes() for p in folder.data.iterdir()} == before
    assert not leftovers(folder.root)


def test_a_download_that_would_not_fit_is_told_and_no_other_source_is_tried(tmp_path, monkeypatch):
    from llmrec.fetch.download import from_archive
    from llmrec.fetch.known import Archive

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files, "disk_usage", lambda _: usage._replace(free=10))
    source = Archive(url="http://localhost/x.zip", sha256="0" * 64, size=10**9, files=())
    with pytest.raises(LlmrecError, match=r"953\.7 MB and 10 bytes are free.*LLMREC_CACHE"):
        from_archive(source, tmp_path)


def test_answers_that_grow_lose_the_batch_that_found_no_room_alone(tmp_path):
    plan, asked = batches([1] * 20, 2), []

    def answer(batch):
        asked.append(batch)
        return [f"answer {i}" for i in batch.tolist()]

    def work():
        answer_in_parts(tmp_path / "parts", plan, lambda: answer, "test")

    told = failed(work, 500)
    (path,) = (tmp_path / "parts").iterdir()
    assert "the disk is full" in told
    assert str(path) in told
    assert path.stat().st_size == 500
    work()
    assert len(asked) == len(plan) + 1
    assert collected(tmp_path / "parts")[0] == [f"answer {i}" for i in range(20)]
