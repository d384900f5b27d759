"""Updates of some rows of an embedding table, at no more cost than those rows.

Gradients come as rows and their values, each row once. SGD, Adagrad, row-wise Adagrad and Adam are those of torch.optim
and FBGEMM for the rows that have a gradient; the other rows, and their state, stay as they are (for Adam that is its
lazy form, `torch.optim.SparseAdam`).

A table may be kept in float16 or bfloat16. A step is then often smaller than the distance between two numbers, and
rounding to the nearest would lose it; here the sum is rounded up or down at random, so that it is right on the mean.
State is always float32 or wider.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tml.optimizers.config import AdagradConfig, AdamConfig, AdamWConfig, Algorithm, RowwiseAdagradConfig

BLOCK = 1 << 20
"""Numbers that row-wise Adagrad updates at a time: from length to change a gradient stays in the processor's cache."""

DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}
"""How many of the bits of a float32 a number of this type has not."""


def state_of_rows(algorithm: Algorithm, table: Tensor) -> dict[str, Tensor]:
    """The state that an algorithm keeps for a table at the start, by name: one row for each row."""
    wide = torch.promote_types(table.dtype, torch.float32)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=wide, device=table.device)

    if isinstance(algorithm, AdagradConfig):
        return {"sum": zeros(*table.shape).fill_(algorithm.initial_accumulator_value)}
    if isinstance(algorithm, RowwiseAdagradConfig):
        return {"sum": zeros(len(table))}
    if isinstance(algorithm, AdamConfig | AdamWConfig):
        return {"exp_avg": zeros(*table.shape), "exp_avg_sq": zeros(*table.shape)}
    return {}


@torch.no_grad()
def update_rows(
    algorithm: Algorithm,
    table: Tensor,
    state: Mapping[str, Tensor],
    rows: Tensor,
    gradients: Tensor,
    rate: float,
    step: int = 1,
) -> None:
    """Update rows of a table and of its state, in place.

    Args:
        algorithm: of SGD without momentum, Adagrad, row-wise Adagrad, Adam.
        table: (n, dimension).
        state: of `state_of_rows`.
        rows: (m,) int64, each row once.
        gradients: (m, dimension), float32 or wider.
        rate: the learning rate.
        step: the number of this update of the table, from 1; Adam corrects its bias by it.
    """
    if isinstance(algorithm, RowwiseAdagradConfig):
        size = max(1, BLOCK // max(1, gradients[:1].numel()))
        for some, of_some in zip(torch.split(rows, size), torch.split(gradients, size), strict=True):
            _rowwise_adagrad(algorithm, table, state["sum"], some, of_some, rate)
    elif isinstance(algorithm, AdagradConfig):
        state["sum"].index_add_(0, rows, gradients.square())
        root = state["sum"].index_select(0, rows).sqrt_().add_(algorithm.epsilon)
        add_to_rows(table, rows, torch.div(gradients, root, out=root).mul_(-rate))
    elif isinstance(algorithm, AdamConfig | AdamWConfig):
        change = _adam(algorithm, state, rows, gradients, step)
        add_to_rows(table, rows, change.mul_(-rate))
    else:
        add_to_rows(table, rows, gradients * -rate)


def _rowwise_adagrad(
    algorithm: RowwiseAdagradConfig, table: Tensor, sums: Tensor, rows: Tensor, gradients: Tensor, rate: float
) -> None:
    own = sums.index_select(0, rows).add_(mean_of_squares(gradients, sums.dtype))
    sums.index_copy_(0, rows, own)
    scale = own.sqrt_().add_(algorithm.epsilon).reciprocal_().mul_(-rate)
    add_to_rows(table, rows, gradients * scale.view(-1, *[1] * (gradients.ndim - 1)))


def _adam(
    algorithm: AdamConfig | AdamWConfig, state: Mapping[str, Tensor], rows: Tensor, gradients: Tensor, step: int
) -> Tensor:
    mean, square = (state[name].index_select(0, rows) for name in ("exp_avg", "exp_avg_sq"))
    mean.lerp_(gradients, 1 - algorithm.beta_1)
    square.mul_(algorithm.beta_2).addcmul_(gradients, gradients, value=1 - algorithm.beta_2)
    state["exp_avg"].index_copy_(0, rows, mean)
    state["exp_avg_sq"].index_copy_(0, rows, square)
    correction = (1 - algorithm.beta_2**step) ** 0.5 / (1 - algorithm.beta_1**step)
    return mean.div_(square.sqrt_().add_(algorithm.epsilon)).mul_(correction)


def add_to_rows(table: Tensor, rows: Tensor, change: Tensor) -> None:
    """Add to rows, each one there once; where the table is narrower than `change` the sum is rounded at random."""
    if table.dtype not in DROPPED_BITS:
        table.index_add_(0, rows, change.to(table.dtype))
    else:
        table.index_copy_(0, rows, round_at_random(table.index_select(0, rows).float() + change, table.dtype))


def round_at_random(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values of float32 in bfloat16 or float16, up or down with the probability that makes the mean right."""
    bits = DROPPED_BITS[dtype]
    as_integers = values.float().view(torch.int32)
    noise = torch.randint(0, 1 << bits, values.shape, dtype=torch.int32, device=values.device)
    rounded = ((as_integers + noise) & -(1 << bits)).view(torch.float32)
    if dtype == torch.float16:
        # Its smallest numbers are all as far apart, and have fewer bits the smaller they are.
        steps = (values.float() * 2.0**24 + noise * 2.0**-bits).floor_()
        rounded = torch.where(values.abs() < 2.0**-14, steps * 2.0**-24, rounded)
    return rounded.to(dtype)


def mean_of_squares(gradients: Tensor, dtype: torch.dtype) -> Tensor:
    """Of each row of (n, …), taken and given in `dtype`: what row-wise Adagrad sums."""
    flat = gradients.flatten(1)
    norms: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=dtype)
    return norms.square_().div_(flat.shape[1])


class TableOptimizer(torch.optim.Optimizer):
    """A step that updates the tables which have a gradient, each by `update`."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the tables that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self.update(table, table.grad, group)
        return loss

    def update(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Update a table by its gradient, with the settings of its group."""
        raise NotImplementedError


class RowOptimizer(TableOptimizer):
    """One of these algorithms for tables whose gradients are sparse by row.

    Args:
        params: as for every optimizer of torch.
        algorithm: which one.
        lr: the learning rate.
    """

    def __init__(self, params: Iterable[Any], algorithm: Algorithm, lr: float = 1e-2) -> None:
        self.algorithm = algorithm
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})

    def __getstate__(self) -> dict[str, Any]:
        # torch knows of nothing but groups, state and defaults.
        return {**super().__getstate__(), "algorithm": self.algorithm}

    @property
    def title(self) -> str:
        """What the table of groups calls it."""
        return f"{type(self.algorithm).__name__.removesuffix('Config')} by row"

    @property
    def state_names(self) -> set[str]:
        """What is kept for a table."""
        return {"step", *state_of_rows(self.algorithm, torch.empty(0, 1))}

    def update(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Update the rows that have a gradient."""
        state = self.state[table]
        if not state:
            state |= {"step": torch.zeros(()), **state_of_rows(self.algorithm, table)}
        state["step"] += 1
        gradient = gradient.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        update_rows(self.algorithm, table.detach(), state, rows, values, group["lr"], int(state["step"]))
