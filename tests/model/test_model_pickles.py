"""Forty pickles, each of which leaves a mark when it is loaded, at every place that is read."""

import codecs
import io
import json
import pickle
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from llmrec.data import sealed
from llmrec.data.files import sha256_of, write_json
from llmrec.errors import LlmrecError
from llmrec.model.loading import BaseModel, load_model, load_tuned
from llmrec.model.trust import require_safe_encoder


class Call:
    """Pickled as a call that writes the mark."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(mark):
    """Names and bytes of pickles: every protocol, several calls, several wrappings."""
    text = f"open({str(mark)!r}, 'w').close()"
    calls = {
        "exec": Call(exec, text),
        "touch": Call(Path.touch, mark),
        "open": Call(open, str(mark), "w"),
        "codecs": Call(codecs.open, str(mark), "w"),
    }
    for name, call in calls.items():
        for protocol in range(6):
            yield f"{name}-{protocol}", pickle.dumps(call, protocol)
            if protocol in (2, 4):
                yield f"{name}-{protocol}-in-a-mapping", pickle.dumps({"weight": call}, protocol)
        for new in (True, False):
            stream = io.BytesIO()
            torch.save({"weight": call}, stream, _use_new_zipfile_serialization=new)
            yield f"{name}-torch-{new}", stream.getvalue()
        stream = io.BytesIO()
        np.save(stream, np.array([call], dtype=object), allow_pickle=True)
        yield f"{name}-npy", stream.getvalue()


@pytest.fixture
def hostile(tmp_path):
    """The payloads; at the end none has left its mark."""
    mark = tmp_path / "mark"
    made = dict(payloads(mark))
    assert len(made) >= 40
    yield made
    assert not mark.exists()


def test_they_would_leave_a_mark(tmp_path):
    mark = tmp_path / "mark"
    for name, content in payloads(mark):
        if "torch" in name:
            torch.load(io.BytesIO(content), weights_only=False)
        elif "npy" in name:
            np.load(io.BytesIO(content), allow_pickle=True)
        else:
            pickle.loads(content)  # noqa: S301
        assert mark.exists(), name
        mark.unlink()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.pkl", "model.safetensors"])
def test_a_model_folder(name, hostile, tmp_path, tiny_base):
    shutil.copytree(tiny_base, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    for content in hostile.values():
        (tmp_path / "model" / name).write_bytes(content)
        with pytest.raises(LlmrecError, match="safetensors"):
            load_model(BaseModel(str(tmp_path / "model")), "cpu")
        with pytest.raises(LlmrecError, match="safetensors"):  # as what training left
            load_tuned(BaseModel("nowhere"), tmp_path / "model")


def test_a_list_of_parts_that_names_a_pickle(hostile, tmp_path, tiny_base):
    folder = tmp_path / "model"
    shutil.copytree(tiny_base, folder)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    content = next(iter(hostile.values()))
    for name in ("part.bin", "../part.safetensors"):
        (folder / name).write_bytes(content)
        write_json(folder / "model.safetensors.index.json", {"weight_map": {"lm_head": name}})
        with pytest.raises(LlmrecError, match="part"):
            load_model(BaseModel(str(folder)), "cpu")


def test_beside_safetensors_a_pickle_is_left_alone(hostile, tmp_path, tiny_base):
    shutil.copytree(tiny_base, tmp_path / "model")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(next(iter(hostile.values())))
    assert load_model(BaseModel(str(tmp_path / "model")), "cpu").training is False


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter.pt", "adapter_model.safetensors"])
def test_an_adapter_folder(name, hostile, tmp_path, tiny_base):
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"]}
    write_json(folder / "adapter_config.json", settings)
    for content in hostile.values():
        (folder / name).write_bytes(content)
        with pytest.raises(LlmrecError, match=r"pickle|not an adapter"):
            load_tuned(BaseModel(str(tiny_base)), folder)


def test_an_adapter_that_names_a_module_imports_none(tmp_path, tiny_base, monkeypatch):
    mark, folder = tmp_path / "mark", tmp_path / "adapter"
    (tmp_path / "named.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    model = load_model(BaseModel(str(tiny_base)), "cpu")
    from llmrec.model.loading import Lora, with_new_lora

    with_new_lora(model, Lora(r=2), 0).save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["auto_mapping"] = {"base_model_class": "X", "parent_library": "named"}
    settings["megatron_config"], settings["megatron_core"] = {"x": 1}, "named"
    write_json(folder / "adapter_config.json", settings)
    with suppress(LlmrecError):  # refused is as good
        load_tuned(BaseModel(str(tiny_base)), folder)
    assert not mark.exists()
    settings["peft_type"] = "XLORA"  # reads further folders that it names
    write_json(folder / "adapter_config.json", settings)
    with pytest.raises(LlmrecError, match="XLORA"):
        load_tuned(BaseModel(str(tiny_base)), folder)


def test_a_sealed_folder_with_a_file_that_its_manifest_lacks(hostile, tmp_path):
    staged, final = tmp_path / "staged", tmp_path / "final"
    staged.mkdir()
    (staged / "weights.safetensors").write_bytes(b"x")
    sealed.seal(staged, final)
    (final / "README.md").write_text("notes of one's own")
    assert sealed.problem(final) is None
    for name in ("adapter_model.bin", "optimizer.pt", "below/x.pkl"):
        (final / name).parent.mkdir(exist_ok=True)
        (final / name).write_bytes(next(iter(hostile.values())))
        assert name in sealed.problem(final)
        (final / name).unlink()


def test_a_trie_an_index_and_an_encoder(hostile, tmp_path):
    from llmrec.errors import DataError
    from llmrec.retrieval.index import ABOUT_FILE, INDEX_FILE, VectorIndex
    from llmrec.text import trie_files
    from llmrec.text.trie import TitleTrie

    trie, index, encoder = (tmp_path / name for name in ("trie", "index", "encoder"))
    trie_files.write(TitleTrie.from_sequences([np.array([1, 2], np.int32)]), trie, "key")
    VectorIndex.build(np.eye(4, dtype=np.float32)).write(index, "print")
    (encoder / "2_Dense").mkdir(parents=True)
    write_json(encoder / "modules.json", [{"type": "sentence_transformers.models.Dense"}])
    for content in hostile.values():
        for path, about, keys in (
            (trie / "tokens.npy", trie / trie_files.FILES.manifest, ("arrays", "tokens")),
            (index / INDEX_FILE, index / ABOUT_FILE, ()),
        ):
            path.write_bytes(content)
            said = inner = json.loads(about.read_text())
            for key in keys:
                inner = inner[key]
            inner["sha256"] = sha256_of(path)  # whoever changed it changed its hash too
            write_json(about, said)
        with pytest.raises(DataError):
            trie_files.read(trie, "key")
        with pytest.raises(DataError):
            VectorIndex.read(index, "print")
        (encoder / "2_Dense" / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(LlmrecError, match="pickle"):
            require_safe_encoder(encoder)
    write_json(encoder / "modules.json", [{"type": "os.system"}])
    with pytest.raises(LlmrecError, match=r"os\.system"):
        require_safe_encoder(encoder)


def test_item_vectors_and_networks(hostile, recipe_of):
    from llmrec.inference.similar_users import item_vectors
    from llmrec.methods import networks
    from llmrec.runs import made
    from llmrec.stages import prepare

    recipe, folder = recipe_of("network={max_epochs: 1}", "systems=[popularity, network]")
    prepare.run(recipe, folder)
    right = item_vectors(recipe, folder, "factors")
    kept = next(folder.similar.glob("items-factors-*.npy"))
    network = made.network(recipe, folder, "base")
    for content in hostile.values():
        kept.write_bytes(content)
        assert np.array_equal(item_vectors(recipe, folder, "factors"), right)
        staged = network.staged()
        staged.mkdir()
        (staged / networks.WEIGHTS).write_bytes(content)
        network.seal(staged, epoch=1, sizes={})  # sealed by whoever made it
        with pytest.raises(LlmrecError, match="holds no weights"):
            networks.fitted(recipe, folder, "base")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint(name, hostile, trained, recipe_of):
    from llmrec.stages import train

    recipe, folder = recipe_of("train.num_train_epochs=3")  # goes on from where it was
    shutil.rmtree(folder.adapter)
    newest, _ = sealed.newest(folder.checkpoints, "checkpoint-")
    facts = {k: v for k, v in sealed.facts(newest).items() if k not in ("files", "seal")}
    content = hostile["exec-torch-True"]
    (newest / name).write_bytes(content)
    sealed.seal(newest, newest.with_name("again"), **facts)
    newest.with_name("again").rename(newest)
    with pytest.raises(pickle.UnpicklingError, match=r"(?i)weights.only"):
        train.run(recipe, folder)
    for weights in ("adapter_model.bin", "pytorch_model.bin"):
        (newest / weights).write_bytes(content)
    sealed.seal(newest, newest.with_name("again"), **facts)
    newest.with_name("again").rename(newest)
    with pytest.raises(LlmrecError, match="pickle"):
        train.run(recipe, folder)
