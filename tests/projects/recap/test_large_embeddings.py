"""Vectors of hashed ids: the hash against plain integers, what is unknown, and gradients of the rows alone."""

import hashlib

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tml.core.errors import DataError
from tml.data.id_numbers import NO_ID
from tml.projects.home.recap.config import LargeEmbeddingsConfig, LargeTableConfig
from tml.projects.home.recap.large_embeddings import HashedTable, LargeEmbeddings, id_tensor, mix

INT64 = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(INT64, min_size=1))
def test_mix_is_splitmix64_s_finaliser(ids: list[int]) -> None:
    def reference(z: int) -> int:
        z &= 2**64 - 1
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        z ^= z >> 31
        return z - 2**64 if z >= 2**63 else z

    assert mix(torch.tensor(ids)).tolist() == [reference(z) for z in ids]


def make(**changes: float) -> HashedTable:
    config = LargeTableConfig(name="user_id", num_embeddings=1000, embedding_dim=4, **changes)
    return HashedTable(config, torch.Generator().manual_seed(0))


def test_ids_spread_evenly_over_all_rows_but_the_unknown_s() -> None:
    rows = make().row_of(torch.arange(200_000))
    counts = torch.bincount(rows, minlength=1000)
    assert counts[0] == 0
    # 200.2 a row: for a Poisson number 6 deviations are 85.
    assert counts[1:].min() > 115
    assert counts[1:].max() < 285


def test_an_id_has_its_row_and_no_id_zeros() -> None:
    table = make()
    ids = torch.tensor([5, NO_ID, -5, 5])
    vectors = table(ids).detach()
    assert torch.equal(vectors[0], table.table.weight[table.row_of(ids)[0]])
    assert torch.equal(vectors[0], vectors[3])
    assert not vectors[1].any()
    assert vectors[2].any()


def test_the_gradient_is_of_the_batch_s_rows_alone() -> None:
    table, ids = make(), torch.tensor([5, 9, 5])
    table(ids).sum().backward()
    gradient = table.table.weight.grad
    assert gradient is not None
    assert gradient.is_sparse
    assert set(gradient.coalesce().indices()[0].tolist()) == set(table.row_of(ids).tolist())


def test_rare_and_unseen_ids_share_the_unknown_s_vector() -> None:
    config = LargeEmbeddingsConfig(
        tables=(
            LargeTableConfig(name="user_id", num_embeddings=10_000, embedding_dim=2, min_count=2),
            LargeTableConfig(name="twice", key="user_id", num_embeddings=10_000, embedding_dim=3),
        )
    )
    tables = LargeEmbeddings(config)
    assert tables.columns == ("user_id",)
    assert tables.fields == (2, 3)
    assert tables.needs_counts
    tables.keep_frequent([{"user_id": torch.tensor([1, 2, NO_ID])}, {"user_id": torch.tensor([2, 3, NO_ID])}])
    known = tables.tables["user_id"]
    assert known.known[known.row_of(torch.tensor([1, 2, 3, 4]))].tolist() == [False, True, False, False]
    with torch.no_grad():
        known.table.weight[0] = 7.0
    vectors = tables({"user_id": torch.tensor([1, 2, 3, 4])})
    assert (vectors[:, 0] == 7).tolist() == [True, False, True, True]
    assert vectors[:, 2:].all()
    restored = LargeEmbeddings(config)
    restored.load_state_dict(tables.state_dict())
    assert torch.equal(restored({"user_id": torch.arange(5)}), tables({"user_id": torch.arange(5)}))


def test_ids_are_dropped_in_training_alone() -> None:
    table, ids = make(drop_probability=0.3), torch.arange(10_000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dropped = (table(ids) == 0).all(dim=1).float().mean().item()
    assert dropped == pytest.approx(0.3, abs=0.02)
    assert table.eval()(ids).any(dim=1).all()


def test_columns_of_ids_become_int64_whatever_they_are() -> None:
    assert id_tensor(pa.array([3, None, -1], pa.int32()), "a").tolist() == [3, NO_ID, -1]
    assert id_tensor(pa.array([2**64 - 1], pa.uint64()), "a").tolist() == [-1]
    texts = pa.chunked_array([["x", None], ["y", "x"]])
    digest = {t: int.from_bytes(hashlib.blake2b(t.encode(), digest_size=8).digest(), "little") for t in "xy"}
    expected = [digest["x"], NO_ID % 2**64, digest["y"], digest["x"]]
    for column in (texts, texts.cast(pa.large_string()), texts.dictionary_encode().combine_chunks()):
        assert [value % 2**64 for value in id_tensor(column, "a").tolist()] == expected
    assert id_tensor(pa.array([], pa.string()), "a").shape == (0,)
    with pytest.raises(DataError, match="author_id: found ids of type double"):
        id_tensor(pa.array([1.5]), "author_id")
