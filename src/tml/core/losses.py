"""Binary cross-entropy over several tasks whose labels need not all be there.

For logit z, label y in [0, 1], weight w and positive weight c, with p = 1 / (1 + e^-z),

    loss = Σ w·(-c·y·log p - (1 - y)·log(1 - p)) / Σ w

summed over the examples whose label counts. A label that is NaN does not count: the example was down-sampled for this
task, or the task does not apply to it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def binary_cross_entropy_with_logits(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, pos_weight: Tensor | None = None
) -> Tensor:
    """The mean loss of each task over the examples that count.

    Args:
        logits: (batch, tasks) or (batch,).
        labels: of the same shape; 0 to 1, or NaN where the example does not count for the task.
        weights: of the same shape, or one that broadcasts to it; at least 0. None weighs every example alike.
        pos_weight: (tasks,) or a scalar, multiplies the positive's part of the loss but not the divisor.

    Returns:
        (tasks,) or a scalar; 0, with a gradient of 0, for a task of which no example counts.

    Example:
        >>> labels = torch.tensor([1.0, float("nan")])
        >>> binary_cross_entropy_with_logits(torch.zeros(2), labels)
        tensor(0.6931)
    """
    counts = ~labels.isnan()
    observed = torch.where(counts, labels, 0.0).to(logits.dtype)
    weight = counts.to(logits.dtype) if weights is None else counts * weights.to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, observed, weight, pos_weight=pos_weight, reduction="none")
    total = weight.sum(dim=0)
    return losses.sum(dim=0) / torch.where(total > 0, total, 1.0)
