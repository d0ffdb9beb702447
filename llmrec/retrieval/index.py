"""Nearest vectors among the first of many, exactly or approximately, with faiss.

Kinds, and what one of M vectors of d dimensions takes in memory:

- flat: every vector is compared, 4 d bytes;
- ivf_sq8: vectors in lists around 2 sqrt(M) centroids, one byte a dimension: d + 8 bytes;
- ivf_pq: the same lists with two bits a dimension, searched first, and one byte a dimension that
  ranks what was found: 1.25 d + 8 bytes, more than ivf_sq8, for a quarter of it read in long lists.

(Product quantisation: Jegou, Douze & Schmid, TPAMI 2011; read in registers: Andre, Kermarrec &
Le Scouarnec, VLDB 2015.) How many lists are
searched is decided by the recall that was measured. Knows nothing of what the vectors stand for,
nor of time: a query says how many of the first vectors it may see.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from llmrec.data.files import replacing, sha256_of, write_json
from llmrec.data.records import Longs
from llmrec.errors import DataError
from llmrec.retrieval.vectors import Floats

KINDS = ("flat", "ivf_sq8", "ivf_pq")
LEARNED_FROM = 256  # vectors at least; of fewer every kind is flat
FLAT_UP_TO = 100_000  # vectors; an exact search of so many takes milliseconds
SQ8_UP_TO = 5_000_000
TRAINED_ON = 40  # vectors for each list; faiss asks for 39
SAMPLED = 256  # vectors whose neighbours are looked up to measure the recall
RECALL_AT = 10
REFINED = 10  # times as many as wanted are ranked again in ivf_pq
ADDED = 2**17  # vectors at a time
INDEX_FILE, ABOUT_FILE = "index.faiss", "index.json"


class VectorIndex:
    """An index over M vectors; build it with `build` or `read`."""

    def __init__(self, index: Any, kind: str, nprobe: int, recall: float) -> None:
        """A faiss index that holds the vectors last to first, and what `build` found out."""
        self.kind, self.nprobe, self.recall = kind, nprobe, recall
        self._index = index

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def bytes_per_vector(self) -> float:
        """The whole index as it is written, centroids and all, for one of its vectors."""
        return len(faiss.serialize_index(self._index)) / max(1, len(self))

    @staticmethod
    def build(
        vectors: Floats, kind: str = "auto", recall: float = 0.95, seed: int = 0
    ) -> "VectorIndex":
        """Index vectors (M, d) float32 of length 1 or 0, compared by inner product.

        `auto` is flat up to 100,000 vectors, ivf_sq8 up to 5 million, ivf_pq beyond. `recall` is
        the share of the 10 others nearest to up to 256 sampled vectors that must be found; the
        lists searched are doubled until it is reached, or all are. Fewer than 256 vectors are
        always flat. Raises ValueError for an unknown kind.
        """
        if kind == "auto":
            kind = KINDS[(len(vectors) > FLAT_UP_TO) + (len(vectors) > SQ8_UP_TO)]
        if kind not in KINDS:
            raise ValueError(f"index kind {kind!r}; allowed: auto, {', '.join(KINDS)}")
        flat = kind == "flat" or len(vectors) < LEARNED_FROM
        index = faiss.IndexFlatIP(vectors.shape[1]) if flat else _trained(vectors, kind, seed)
        # Newest first: of equal vectors faiss keeps those it meets first.
        for end in range(len(vectors), 0, -ADDED):
            index.add(np.ascontiguousarray(vectors[max(0, end - ADDED) : end][::-1]))
        built = VectorIndex(index, "flat" if flat else kind, 0 if flat else 1, 1.0)
        if not flat:
            built._choose_lists(vectors, recall, seed)
        return built

    def search(
        self, queries: Floats, count: int, before: Longs, together: bool = True
    ) -> tuple[Longs, Floats]:
        """The `count` (K) nearest of the first `before` vectors: ids (Q, K) int64, scores (Q, K).

        queries (Q, d), before (Q,). Where fewer are found, ids are -1 and scores minus infinity. An
        approximate index searches more lists for a query that may see fewer vectors. Queries with
        the same `before` are searched in one call, whose rounding depends on how many they are;
        with `together` False each query is searched by itself, in threads.
        """
        ids = np.full((len(queries), count), -1, np.int64)
        scores = np.full((len(queries), count), -np.inf, np.float32)
        before = np.minimum(before, len(self))
        queries = np.ascontiguousarray(queries, np.float32)

        def look(rows: Longs) -> None:
            allowed = int(before[rows[0]])
            most = min(count, allowed)
            if most < 1:
                return
            lists = -(-self.nprobe * len(self) // allowed)
            found, score = self._searched(queries[rows], most, allowed, lists)
            few = (found < 0).any(axis=1)
            if self.kind != "flat" and few.any():
                found[few], score[few] = self._searched(
                    queries[rows[few]], most, allowed, len(self)
                )
            there = found >= 0
            ids[rows, :most] = np.where(there, len(self) - 1 - found, -1)
            scores[rows, :most] = np.where(there, score, -np.inf)

        if together:
            for rows in _groups(before):
                look(rows)
        else:
            # A worker's own setting, which no other thread sees: one query is not divided further.
            with ThreadPoolExecutor(
                faiss.omp_get_max_threads(), initializer=faiss.omp_set_num_threads, initargs=(1,)
            ) as threads:
                list(threads.map(look, np.arange(len(queries))[:, None]))
        return ids, scores

    def write(self, folder: Path, fingerprint: str) -> None:
        """Write the index, and beside it its hash and the `fingerprint` of the data it is over."""
        with replacing(folder / INDEX_FILE) as temporary:
            faiss.write_index(self._index, str(temporary))
        about = {
            "fingerprint": fingerprint,
            "sha256": sha256_of(folder / INDEX_FILE),
            "kind": self.kind,
            "nprobe": self.nprobe,
            "recall": self.recall,
            "vectors": len(self),
            "dimensions": self._index.d,
        }
        write_json(folder / ABOUT_FILE, about)

    @staticmethod
    def read(folder: Path, fingerprint: str) -> "VectorIndex":
        """Read what `write` wrote; DataError if it is damaged or of another fingerprint."""
        path = folder / INDEX_FILE
        remedy = f"remove {path} and {folder / ABOUT_FILE}; the index is then built again"
        try:
            about = json.loads((folder / ABOUT_FILE).read_text("utf-8"))
            known = {name: about[name] for name in ("kind", "nprobe", "recall")}
            written, found = about["sha256"], sha256_of(path)
            over = about["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"the index in {folder} cannot be read: {error}; {remedy}") from error
        if over != fingerprint:
            raise DataError(
                f"the index {path} is over other data: its fingerprint is {over}, that "
                f"of the data now is {fingerprint}; {remedy}"
            )
        if found != written:
            raise DataError(
                f"the index {path} is damaged: its SHA-256 is {found}, {written} was "
                f"written; {remedy}"
            )
        try:
            return VectorIndex(faiss.read_index(str(path)), **known)
        except RuntimeError as error:
            raise DataError(f"{path} is no index of faiss ({error}); {remedy}") from None

    def _searched(
        self, queries: Floats, count: int, allowed: int, lists: int
    ) -> tuple[Longs, Floats]:
        """Ask faiss for `count` of the `allowed` oldest, which it holds at the end."""
        last = len(self)
        only = faiss.IDSelectorRange(last - allowed, last, True) if allowed < last else None
        if self.kind == "flat":
            settings = faiss.SearchParameters()
        else:
            settings = faiss.SearchParametersIVF()
            settings.nprobe = min(lists, self._lists)
        settings.sel = only
        if self.kind == "ivf_pq":
            refined = faiss.IndexRefineSearchParameters()
            refined.k_factor, refined.base_index_params = REFINED, settings
            score, found = self._index.search(queries, count, params=refined)
        else:
            score, found = self._index.search(queries, count, params=settings)
        return found, score

    @property
    def _lists(self) -> int:
        return int(faiss.extract_index_ivf(self._index).nlist)

    def _choose_lists(self, vectors: Floats, wanted: float, seed: int) -> None:
        """Double the lists searched until the sampled vectors' neighbours are found."""
        rng = np.random.default_rng(seed)
        sample = vectors[np.sort(rng.permutation(len(vectors))[:SAMPLED])]
        most = RECALL_AT + 1  # the nearest is the vector itself
        everything = np.full(len(sample), len(vectors))
        exact = faiss.knn(sample, vectors, most, metric=faiss.METRIC_INNER_PRODUCT)[0][:, -1]
        while True:
            ids = self.search(sample, most, everything)[0]
            score = np.einsum("qkd,qd->qk", vectors[ids], sample)
            # By score, not by number: of equal vectors any may be found.
            hits = (score >= exact[:, None] - 1e-6).sum(axis=1) - 1
            self.recall = float(hits.mean() / RECALL_AT)
            if self.recall >= wanted or self.nprobe >= self._lists:
                return
            self.nprobe = min(2 * self.nprobe, self._lists)


def _trained(vectors: Floats, kind: str, seed: int) -> Any:
    """An empty faiss index of the kind, its centroids and codes learned from a sample."""
    size, dimensions = vectors.shape
    lists = max(1, min(int(2 * np.sqrt(size)), size // TRAINED_ON))
    codes = {"ivf_sq8": "SQ8", "ivf_pq": f"PQ{_parts(dimensions)}x4fs,Refine(SQ8)"}[kind]
    index = faiss.index_factory(dimensions, f"IVF{lists},{codes}", faiss.METRIC_INNER_PRODUCT)
    faiss.extract_index_ivf(index).cp.seed = seed + 1
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(size)[: max(TRAINED_ON * lists, 256)])
    index.train(np.ascontiguousarray(vectors[chosen]))
    return index


def _parts(dimensions: int) -> int:
    """Into how many parts of four bits a vector is cut: d / 2, or the next divisor of d below."""
    return max(m for m in range(1, max(1, dimensions // 2) + 1) if dimensions % m == 0)


def _groups(before: Longs) -> list[Longs]:
    """Rows with the same `before`."""
    order = np.argsort(before, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(before[order])) + 1) if len(order) else []
