import numpy as np
import torch

from tml.embeddings.local import LocalTables


def _tables(seed=0, dim=3):
    return LocalTables({"user": 5, "author": 7}, dim, torch.Generator().manual_seed(seed), scale=2.0)


def test_rows_are_those_of_the_table():
    tables = _tables()
    rows = torch.tensor([[4, 0], [2, 2]])
    torch.testing.assert_close(tables("author", rows), tables.vectors("author")[rows])


def test_the_gradient_is_sparse_and_the_sum_over_reads():
    tables = _tables()
    weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    (tables("user", torch.tensor([1, 3, 1, 4])) * weights).sum().backward()

    gradient = tables.tables[0].weight.grad
    assert gradient.is_sparse
    assert gradient._indices().tolist() == [[1, 3, 4]]  # summed, each row once
    dense = np.zeros((5, 3))
    for row, weight in zip([1, 3, 1, 4], weights.double().numpy(), strict=True):
        dense[row] += weight
    np.testing.assert_allclose(gradient.to_dense().numpy(), dense, rtol=1e-6)
    assert tables.tables[1].weight.grad is None


def test_first_vectors_follow_from_the_seed_and_have_the_scale():
    assert torch.equal(_tables(3).vectors("user"), _tables(3).vectors("user"))
    assert not torch.equal(_tables(3).vectors("user"), _tables(4).vectors("user"))
    wide = LocalTables({"user": 2000}, 64, torch.Generator().manual_seed(0), scale=2.0).vectors("user")
    assert abs(wide.norm(dim=1).mean() - 2.0) < 0.05
