"""Updates of rows against torch.optim's sparse optimizers, and rounding at random."""

import pytest
import torch

from tml.optimizers.config import AdagradConfig, AdamConfig, RowwiseAdagradConfig, SgdConfig
from tml.optimizers.row_updates import round_at_random, state_of_rows, update_rows


def _gradients(steps, rows, dim):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randperm(rows, generator=generator)[:4].sort().values
        yield chosen, torch.randn(4, dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("algorithm", "reference"),
    [
        (SgdConfig(), lambda table: torch.optim.SGD([table], lr=0.1)),
        (AdagradConfig(), lambda table: torch.optim.Adagrad([table], lr=0.1)),
        (AdamConfig(epsilon=1e-7), lambda table: torch.optim.SparseAdam([table], lr=0.1, eps=1e-7)),
    ],
)
def test_rows_move_as_in_torch(algorithm, reference):
    table = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    other = torch.nn.Parameter(table.clone())
    optimizer, state = reference(other), state_of_rows(algorithm, table)
    for step, (rows, values) in enumerate(_gradients(12, 9, 3), start=1):
        update_rows(algorithm, table, state, rows, values, 0.1, step)
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            other.grad = torch.sparse_coo_tensor(rows[None], values, other.shape)
            optimizer.step()
    torch.testing.assert_close(table, other.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_at_random_is_right_on_the_mean_and_takes_a_neighbour(dtype):
    torch.manual_seed(0)
    for value in (0.3, -1.7003, 0.0123, 3.31e-5, -1.234e-6, 4e-8, -1e-8):
        values = torch.full((200_000,), value)
        rounded = round_at_random(values, dtype).float()
        assert len(rounded.unique()) == 2
        assert rounded.min() <= value <= rounded.max()
        gap = (rounded.max() - rounded.min()).item()
        assert abs(rounded.double().mean().item() - value) < 0.01 * gap


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_steps_below_the_narrow_type_add_up(dtype):
    torch.manual_seed(0)
    table = torch.ones(500, 4, dtype=dtype)
    algorithm = SgdConfig()
    for _ in range(100):
        update_rows(algorithm, table, {}, torch.arange(500), torch.ones(500, 4), 1e-4)
    assert abs(table.float().mean().item() - 0.99) < 1e-3


def test_state_of_a_narrow_table_is_float32():
    for algorithm in (AdagradConfig(), AdamConfig(), RowwiseAdagradConfig()):
        assert {v.dtype for v in state_of_rows(algorithm, torch.zeros(3, 2, dtype=torch.float16)).values()} == {
            torch.float32
        }
