"""The index against brute force, what it may see, and what it refuses to read."""

import json

import faiss
import numpy as np
import pytest

from llmrec.errors import DataError
from llmrec.retrieval import index as index_module
from llmrec.retrieval.index import ABOUT_FILE, INDEX_FILE, KINDS, VectorIndex
from llmrec.retrieval.vectors import unit

SIZE, DIMENSIONS = 3000, 16


def clustered(size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(0).standard_normal((20, DIMENSIONS))
    noise = rng.standard_normal((size, DIMENSIONS))
    return unit(centers[rng.integers(0, 20, size)] + 0.5 * noise)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(SIZE, 1)


@pytest.fixture(scope="module", params=KINDS)
def index(request, vectors) -> VectorIndex:
    return VectorIndex.build(vectors, request.param)


def brute_force(vectors, query, count, before) -> list[int]:
    scores = vectors[:before] @ query
    return sorted(range(before), key=lambda i: -scores[i])[:count]


def test_recall_against_brute_force_among_what_may_be_seen(index, vectors):
    queries = clustered(40, 2)
    before = np.repeat([SIZE, 1500, 200, 12, 0], 8)
    ids, scores = index.search(queries, 10, before)
    found = brute = 0
    for row in range(40):
        expected = brute_force(vectors, queries[row], 10, before[row])
        there = ids[row][ids[row] >= 0]
        assert len(set(there.tolist())) == len(there) == min(10, before[row])
        assert (there < before[row]).all()
        assert (np.diff(scores[row, : len(there)]) <= 0).all()
        assert (scores[row, len(there) :] == -np.inf).all()
        np.testing.assert_allclose(
            scores[row, : len(there)], vectors[there] @ queries[row], atol=0.05
        )
        found += len(set(there.tolist()) & set(expected))
        brute += len(expected)
    assert found / brute >= {"flat": 1.0, "ivf_sq8": 0.95, "ivf_pq": 0.9}[index.kind]
    assert index.recall >= (0.9 if index.kind == "ivf_pq" else 0.95)  # all lists give no more


def test_a_query_by_itself(index):
    queries, before = clustered(30, 3), np.arange(30) * 100
    threads = faiss.omp_get_max_threads()
    ids, scores = index.search(queries, 5, before, together=False)
    assert faiss.omp_get_max_threads() == threads
    for rows in (slice(0, 1), slice(1, 4), slice(4, 30)):
        again = index.search(queries[rows], 5, before[rows], together=False)
        np.testing.assert_array_equal(again[0], ids[rows])
        np.testing.assert_array_equal(again[1], scores[rows])
    together = index.search(queries, 5, before)[1]
    there = np.isfinite(scores)
    np.testing.assert_allclose(together[there], scores[there], atol=1e-5)


def test_all_that_is_allowed_can_be_asked_for(index):
    ids = index.search(clustered(2, 4), SIZE, np.array([700, SIZE]))[0]
    assert sorted(ids[0, :700].tolist()) == list(range(700))
    assert (ids[0, 700:] == -1).all()
    assert sorted(ids[1].tolist()) == list(range(SIZE))


def test_of_equal_vectors_the_latest_are_found():
    vectors = np.ones((2000, 4), np.float32) / 2
    for together in (True, False):
        ids = VectorIndex.build(vectors).search(vectors[:1], 10, np.array([1500]), together)[0]
        assert sorted(ids[0].tolist()) == list(range(1490, 1500))


def test_building_twice_gives_the_same_index(index, vectors, tmp_path):
    again = VectorIndex.build(vectors, index.kind)
    assert (again.nprobe, again.recall) == (index.nprobe, index.recall)
    for name, one in (("a", index), ("b", again)):
        one.write(tmp_path / name, "data")
    assert (tmp_path / "a" / INDEX_FILE).read_bytes() == (tmp_path / "b" / INDEX_FILE).read_bytes()


def test_memory(index):
    stored = {"flat": 4.0, "ivf_sq8": 1.0, "ivf_pq": 1.25}[index.kind] * DIMENSIONS
    number = 0 if index.kind == "flat" else 8
    assert stored + number <= index.bytes_per_vector
    if index.kind != "ivf_pq":  # its short lists are filled up to blocks of 32
        # besides, centroids: here one for 39 vectors; and a few lines of settings
        assert index.bytes_per_vector <= stored + number + 4 * DIMENSIONS / 39 + 3


def test_auto_goes_by_size(vectors, monkeypatch):
    assert VectorIndex.build(vectors).kind == "flat"
    monkeypatch.setattr(index_module, "FLAT_UP_TO", SIZE - 1)
    assert VectorIndex.build(vectors).kind == "ivf_sq8"
    monkeypatch.setattr(index_module, "SQ8_UP_TO", SIZE - 1)
    assert VectorIndex.build(vectors).kind == "ivf_pq"
    assert VectorIndex.build(vectors[:200], "ivf_pq").kind == "flat"
    with pytest.raises(ValueError, match="allowed: auto, flat, ivf_sq8, ivf_pq"):
        VectorIndex.build(vectors, "hnsw")


def test_what_was_written_is_read(index, tmp_path):
    index.write(tmp_path / "index", "these data")
    read = VectorIndex.read(tmp_path / "index", "these data")
    queries, before = clustered(20, 5), np.full(20, 2500)
    for one, other in zip(
        index.search(queries, 7, before), read.search(queries, 7, before), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert (read.kind, read.nprobe, read.recall) == (index.kind, index.nprobe, index.recall)


def test_other_data_and_damage_are_refused(vectors, tmp_path):
    folder = tmp_path / "index"
    with pytest.raises(DataError, match="cannot be read"):
        VectorIndex.read(folder, "these data")
    VectorIndex.build(vectors[:300]).write(folder, "these data")
    with pytest.raises(DataError, match="these data, that of the data now is others; remove"):
        VectorIndex.read(folder, "others")
    whole = (folder / INDEX_FILE).read_bytes()
    (folder / INDEX_FILE).write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    with pytest.raises(DataError, match=r"is damaged.*built again"):
        VectorIndex.read(folder, "these data")
    (folder / INDEX_FILE).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        VectorIndex.read(folder, "these data")
    (folder / INDEX_FILE).write_bytes(whole)
    about = json.loads((folder / ABOUT_FILE).read_text("utf-8"))
    for wrong in ("{", json.dumps({**about, "sha256": None}), json.dumps([about])):
        (folder / ABOUT_FILE).write_text(wrong, "utf-8")
        with pytest.raises(DataError, match="remove"):
            VectorIndex.read(folder, "these data")
