"""Row-wise Adagrad against its formula in NumPy, with dense and with sparse gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tml.optimizers import row_updates
from tml.optimizers.rowwise_adagrad import RowwiseAdagrad

ROWS, WIDTH = 11, 3


def reference(table: np.ndarray[Any, Any], batches: list[list[int]], rate: float, epsilon: float, decay: float) -> Any:
    table, sums = table.astype(np.float64), np.zeros(len(table))
    for batch in batches:
        gradient = np.zeros_like(table)
        for row in batch:
            gradient[row] += np.cos(table[row])
        touched = range(len(table)) if decay else sorted(set(batch))
        for row in touched:
            g = gradient[row] + decay * table[row]
            sums[row] += (g**2).mean()
            table[row] -= rate * g / (np.sqrt(sums[row]) + epsilon)
    return table, sums


@pytest.mark.parametrize(("sparse", "decay", "block"), [(True, 0, 100), (True, 0, 7), (False, 0, 1), (False, 0.1, 1)])
def test_against_the_formula(sparse: bool, decay: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_updates, "BLOCK", block)
    torch.manual_seed(0)
    table = nn.Embedding(ROWS, WIDTH, sparse=sparse)
    batches = torch.randint(ROWS, (25, 6), generator=torch.Generator().manual_seed(1)).tolist()
    expected, sums = reference(table.weight.detach().numpy(), batches, 0.1, 1e-8, decay)
    optimizer = RowwiseAdagrad(table.parameters(), lr=0.1, eps=1e-8, weight_decay=decay)
    for batch in batches:
        optimizer.zero_grad()
        table(torch.tensor(batch)).sin().sum().backward()
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            optimizer.step()
    np.testing.assert_allclose(table.weight.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(optimizer.state[table.weight]["sum"].numpy(), sums, rtol=1e-5)


def test_a_row_that_never_had_a_gradient_stays_finite() -> None:
    table = nn.Embedding(4, 2)
    before = table.weight.detach().clone()
    optimizer = RowwiseAdagrad(table.parameters(), lr=1.0, eps=1e-8)
    table(torch.tensor([2])).sum().backward()
    optimizer.step()
    assert torch.equal(table.weight[[0, 1, 3]], before[[0, 1, 3]])
    assert torch.isfinite(table.weight).all()


def test_half_precision_keeps_the_sums_in_single() -> None:
    table = nn.Embedding(4, 2, sparse=True, dtype=torch.bfloat16)
    optimizer = RowwiseAdagrad(table.parameters(), lr=0.1)
    table(torch.tensor([2, 2])).sum().backward()
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        optimizer.step()
    assert optimizer.state[table.weight]["sum"].tolist() == pytest.approx([0, 0, 4, 0])
    assert table.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("sparse", [False, True])
def test_memory_in_another_order_learns_the_same(sparse: bool) -> None:
    start = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    ordered = start.clone().requires_grad_()
    crossed = start.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    for table in (ordered, crossed):
        table.grad = start.sin().to_sparse(1) if sparse else start.sin()
        RowwiseAdagrad([table], lr=0.1).step()
    assert not crossed.is_contiguous()
    assert torch.equal(ordered, crossed)
    assert not torch.allclose(ordered, start)
