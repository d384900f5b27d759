"""Nearest neighbours of vectors through faiss: exactly, or approximately where that would take too long.

    exact   every candidate is compared: n · dimension multiplications a query
    ivf     candidates lie in cells around centroids of k-means; a tenth of the cells, the nearest ones, is searched
            (Jégou et al. 2011); quick to build
    hnsw    a graph in which each candidate knows its neighbours, walked towards the query (Malkov and Yashunin 2016);
            slow to build, the quickest to search

Vectors are compared as TwHIN's scores do, higher is better: `dot`, `cosine`, `l1` and `l2`, the negative distances.

An index on disk is a folder, `index.faiss` and `index.json`; the latter has the fingerprint of what was indexed, so an
index of older vectors is never used for newer ones. The same vectors make the same index: faiss draws from fixed seeds,
and a graph is built by one thread.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import faiss
import numpy as np
import numpy.typing as npt
import torch

from tml.core.errors import DataError
from tml.core.files import read_json, require_replaceable, whole_folder, write_json
from tml.embeddings.files import Vectors

Kind = Literal["exact", "ivf", "hnsw"]
Comparison = Literal["dot", "cosine", "l1", "l2"]
Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

KINDS: tuple[Kind, ...] = get_args(Kind)
METRICS = {
    "dot": faiss.METRIC_INNER_PRODUCT,
    "cosine": faiss.METRIC_INNER_PRODUCT,
    "l1": faiss.METRIC_L1,
    "l2": faiss.METRIC_L2,
}
POINTS_A_CELL = 39
"""Fewer than these and k-means has too little to learn a centroid from."""
NEIGHBOURS, BUILD_WIDTH, SEARCH_WIDTH = 32, 80, 64
"""Of hnsw: neighbours that a candidate knows, and candidates kept in mind while building and while searching."""


@dataclass(frozen=True)
class NearestIndex:
    """Candidates to search in.

    Attributes:
        kind: how they are searched.
        comparison: how they are compared.
        fingerprint: of the candidates.
        index: faiss's own.

    Example:
        >>> index = build_index(np.eye(3, dtype=np.float32), "dot")
        >>> scores, rows = index.search(np.array([[0.1, 0.9, 0.5]], np.float32), k=2)
        >>> rows.tolist()
        [[1, 2]]
    """

    kind: Kind
    comparison: Comparison
    fingerprint: str
    index: Any

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def search(self, queries: Vectors, k: int) -> tuple[Scores, Rows]:
        """The k best candidates of each query.

        Args:
            queries: (queries, dimension) float32.
            k: how many; of fewer candidates all are given.

        Returns:
            Scores and rows of candidates, both (queries, k or the number of candidates), best first. Where an
            approximate search found fewer, a row is -1 and its score -inf.

        Raises:
            DataError: another dimension than the candidates'.
        """
        if queries.ndim != 2 or queries.shape[1] != self.index.d:
            raise DataError(
                f"neighbours: found queries of shape {queries.shape}, allowed is the dimension {self.index.d}"
            )
        k = min(k, len(self))
        with _threads(torch.get_num_threads()):
            found, rows = self.index.search(_prepared(queries, self.comparison), k, **self._settings(k))
        scores = found if METRICS[self.comparison] == faiss.METRIC_INNER_PRODUCT else -np.maximum(found, 0)
        if self.comparison == "l2":
            scores = -np.sqrt(-scores)  # faiss gives squares
        return np.where(rows >= 0, scores, np.float32(-np.inf)), rows

    def _settings(self, k: int) -> dict[str, Any]:
        if self.kind == "hnsw":
            return {"params": faiss.SearchParametersHNSW(efSearch=max(SEARCH_WIDTH, 2 * k))}
        if self.kind == "ivf":
            return {"params": faiss.SearchParametersIVF(nprobe=max(1, self.index.nlist // 10))}
        return {}

    def write(self, path: Path) -> None:
        """Write the index as a folder, whole or not at all.

        Raises:
            UserError: there is something else than an older index.
        """
        require_replaceable(path, ("index.faiss", "index.json"))
        with whole_folder(path) as folder:
            faiss.write_index(self.index, str(folder / "index.faiss"))
            about = {"kind": self.kind, "comparison": self.comparison, "fingerprint": self.fingerprint}
            write_json(folder / "index.json", about)


def build_index(candidates: Vectors, comparison: Comparison, kind: Kind = "exact") -> NearestIndex:
    """Index candidates.

    Args:
        candidates: (candidates, dimension) float32.
        comparison: how they are compared with queries.
        kind: how they are searched.

    Raises:
        DataError: there is no candidate.
    """
    if not len(candidates):
        raise DataError("neighbours: found no candidate, allowed is at least one")
    n, dim = candidates.shape
    prepared, metric = _prepared(candidates, comparison), METRICS[comparison]
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, NEIGHBOURS, metric)
        index.hnsw.efConstruction = BUILD_WIDTH
    elif kind == "ivf":
        cells = max(1, min(round(4 * n**0.5), n // POINTS_A_CELL))
        index = faiss.index_factory(dim, f"IVF{cells},Flat", metric)
    else:
        index = faiss.IndexFlat(dim, metric)
    # Threads that put candidates into a graph at the same time make a different one each time.
    with _threads(1 if kind == "hnsw" else torch.get_num_threads()):
        index.train(prepared)
        index.add(prepared)
    return NearestIndex(kind, comparison, _fingerprint(candidates, comparison), index)


def read_index(path: Path, candidates: Vectors, comparison: Comparison) -> NearestIndex:
    """Read an index of these candidates.

    Args:
        path: the folder.
        candidates: what must have been indexed.
        comparison: how it must compare.

    Raises:
        DataError: it is not there or not whole, or it indexes something else.
    """
    if not (path / "index.json").is_file():
        raise DataError(f"{path}: no such index, allowed is a folder with index.faiss and index.json")
    try:
        about = read_json(path / "index.json")
        kind, fingerprint = about["kind"], about["fingerprint"]
        if kind not in KINDS:
            raise ValueError(kind)
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path / 'index.json'}: not the description of an index; remove it") from None
    if fingerprint != _fingerprint(candidates, comparison):
        raise DataError(
            f"{path}: the index is of other vectors or of another score, allowed is one of these; remove it"
        )
    try:
        index = faiss.read_index(str(path / "index.faiss"))
    except RuntimeError:
        raise DataError(f"{path / 'index.faiss'}: not a whole faiss index; remove it") from None
    return NearestIndex(kind, comparison, fingerprint, index)


def recall(index: NearestIndex, candidates: Vectors, queries: Vectors, k: int) -> float:
    """Share of the true k nearest candidates that an index finds, on the mean over queries."""
    _, found = index.search(queries, k)
    _, true = build_index(candidates, index.comparison).search(queries, k)
    hits = [len(np.intersect1d(some, all_)) / len(all_) for some, all_ in zip(found, true, strict=True)]
    return float(np.mean(hits))


def _prepared(vectors: Vectors, comparison: Comparison) -> Vectors:
    vectors = np.ascontiguousarray(vectors, np.float32)
    if comparison != "cosine":
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = vectors / np.maximum(lengths, np.float32(1e-12))
    return unit


def _fingerprint(candidates: Vectors, comparison: Comparison) -> str:
    digest = hashlib.blake2b(f"{comparison} {candidates.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(candidates, np.float32).data)
    return digest.hexdigest()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """faiss and torch have a pool of threads each; faiss takes what torch was given, and only for the call."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
