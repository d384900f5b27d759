"""Neighbours are those that a plain sort finds, and an index on disk is never mistaken for another."""

import faiss
import numpy as np
import pytest
import torch

from tml.core.errors import DataError, UserError
from tml.embeddings.nearest import KINDS, build_index, read_index, recall

RNG = np.random.default_rng(0)
CANDIDATES = (RNG.normal(size=(3000, 12)) * RNG.lognormal(0, 0.5, (3000, 1))).astype(np.float32)
QUERIES = RNG.normal(size=(40, 12)).astype(np.float32)


def sorted_scores(comparison):
    """Scores of all candidates in float64, (queries, candidates)."""
    q, c = QUERIES.astype(float), CANDIDATES.astype(float)
    if comparison == "cosine":
        q, c = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, c))
    if comparison in ("dot", "cosine"):
        return q @ c.T
    difference = q[:, None] - c
    return -np.abs(difference).sum(2) if comparison == "l1" else -np.sqrt((difference**2).sum(2))


@pytest.mark.parametrize("comparison", ["dot", "cosine", "l1", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_are_those_of_a_sort(kind, comparison):
    index = build_index(CANDIDATES, comparison, kind)
    scores, rows = index.search(QUERIES, 10)
    all_scores = sorted_scores(comparison)
    best = np.argsort(-all_scores, axis=1)[:, :10]
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), best.tolist(), strict=True)])
    np.testing.assert_allclose(scores, np.take_along_axis(all_scores, rows, 1), rtol=1e-4, atol=1e-4)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert recall(index, CANDIDATES, QUERIES, 10) == pytest.approx(found)
    assert found == 1 if kind == "exact" else found > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_read_as_it_was_written(kind, tmp_path):
    index = build_index(CANDIDATES, "dot", kind)
    for name in ("one", "two"):
        build_index(CANDIDATES, "dot", kind).write(tmp_path / name)
    assert (tmp_path / "one" / "index.faiss").read_bytes() == (tmp_path / "two" / "index.faiss").read_bytes()
    read = read_index(tmp_path / "one", CANDIDATES, "dot")
    assert read.kind == kind
    for one, other in zip(index.search(QUERIES, 5), read.search(QUERIES, 5), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_index_of_something_else_is_refused(tmp_path):
    build_index(CANDIDATES, "dot").write(tmp_path / "index")
    with pytest.raises(DataError, match="index: the index is of other vectors or of another score"):
        read_index(tmp_path / "index", CANDIDATES + 1, "dot")
    with pytest.raises(DataError, match="of another score"):
        read_index(tmp_path / "index", CANDIDATES, "l2")
    description = (tmp_path / "index" / "index.json").read_text()
    for broken in ("{", "{}", "[]", description.replace("exact", "other")):
        (tmp_path / "index" / "index.json").write_text(broken)
        with pytest.raises(DataError, match=r"index\.json: not the description of an index; remove it"):
            read_index(tmp_path / "index", CANDIDATES, "dot")
    (tmp_path / "index" / "index.json").write_text(description)
    (tmp_path / "index" / "letter.txt").touch()
    with pytest.raises(UserError, match=r"index: found a folder with letter\.txt in it"):
        build_index(CANDIDATES, "dot").write(tmp_path / "index")
    (tmp_path / "index" / "index.faiss").write_bytes(b"half")
    with pytest.raises(DataError, match=r"index\.faiss: not a whole faiss index"):
        read_index(tmp_path / "index", CANDIDATES, "dot")
    with pytest.raises(DataError, match="nowhere: no such index"):
        read_index(tmp_path / "nowhere", CANDIDATES, "dot")


def test_few_candidates_and_other_dimensions():
    index = build_index(CANDIDATES[:3], "dot", "ivf")
    assert index.search(QUERIES, 10)[1].shape == (40, 3)
    with pytest.raises(DataError, match=r"found queries of shape \(40, 5\), allowed is the dimension 12"):
        index.search(QUERIES[:, :5], 1)
    with pytest.raises(DataError, match="found no candidate"):
        build_index(CANDIDATES[:0], "dot")


def test_threads_are_torchs_for_the_call_only(monkeypatch):
    used = []
    monkeypatch.setattr(faiss, "omp_set_num_threads", used.append)
    before = faiss.omp_get_max_threads()
    build_index(CANDIDATES, "dot").search(QUERIES, 1)
    assert used == [torch.get_num_threads(), before] * 2
