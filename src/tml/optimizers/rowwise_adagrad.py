"""Row-wise Adagrad: Adagrad for embedding tables, with one accumulator a row instead of one a weight.

    sum_r ← sum_r + mean(g_r²)          w_r ← w_r - rate · g_r / (√sum_r + ε)

A quarter of Adam's memory traffic and of its state hardly anything is left: for a table of width 64, one number for 64
weights. The same update as FBGEMM's `EXACT_ROWWISE_ADAGRAD`.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tml.optimizers.config import RowwiseAdagradConfig
from tml.optimizers.row_updates import TableOptimizer, mean_of_squares, update_rows


class RowwiseAdagrad(TableOptimizer):
    """Row-wise Adagrad for parameters of two or more dimensions; gradients are dense or sparse by row.

    With a sparse gradient only its rows are read and written. The state `sum`, float32 of shape (rows,), begins at 0.

    Args:
        params: as for every optimizer of torch.
        lr: the learning rate.
        eps: added to the square root of a row's sum.
        weight_decay: times the weights is added to a dense gradient; a sparse one allows none.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-2, eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    def update(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Update all rows, or those of a sparse gradient."""
        state = self.state[table]
        if not state:
            state["sum"] = torch.zeros(len(table), dtype=torch.float32, device=table.device)
        sums, rate, epsilon = state["sum"], group["lr"], group["eps"]
        if gradient.is_sparse:
            if group["weight_decay"]:
                raise ValueError("row-wise Adagrad with sparse gradients has no weight decay")
            gradient = gradient.coalesce()
            rows, values = gradient.indices()[0], gradient.values()
            update_rows(RowwiseAdagradConfig(epsilon=epsilon), table, state, rows, values, rate)
            return
        if group["weight_decay"]:
            gradient = gradient.add(table, alpha=group["weight_decay"])
        sums.add_(mean_of_squares(gradient, sums.dtype))
        scale = (rate / (sums.sqrt() + epsilon)).to(table.dtype)
        table.addcmul_(gradient, _by_row(scale, table), value=-1)


def _by_row(scale: Tensor, table: Tensor) -> Tensor:
    # The table itself may not be flattened: where its memory is not in order, that is a copy.
    return scale.view(-1, *[1] * (table.ndim - 1))
