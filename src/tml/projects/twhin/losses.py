"""Losses of an edge with score p against its negatives with scores s_j, and their gradients, in place of the scores.

    logistic    softplus(-p) + w · mean_j softplus(s_j)              binary cross-entropy, the edge 1, negatives 0
    softmax     log(e^p + Σ_j e^s_j) - p                             the edge among its negatives
    margin      mean_j max(0, margin - p + s_j)                      negatives score less by the margin

The means of `logistic` and `margin` are over the negatives of both sides; of `softmax` it is the mean of the two sides.
A negative that does not count has the score -inf: its loss and its gradient are 0.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Literal["logistic", "softmax", "margin"]

MEASURED = 1 << 16
"""Of more scores than this of a side, the logistic loss is measured on about so many: it costs as much as the
gradients, and nothing but the log reads it."""


def of_positives(loss: Loss, positive: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """What edges add to the loss for themselves, and its gradient, both of the shape of `positive` and `share`."""
    if loss != "logistic":
        return torch.zeros_like(positive), torch.zeros_like(positive)
    return F.softplus(-positive) * share, torch.sigmoid(-positive) * -share


def of_negatives(
    loss: Literal["softmax", "margin"], scores: Tensor, positive: Tensor, share: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    """What negatives of one side add to the loss, and the gradient; of the logistic loss it is `LogisticNegatives`.

    Args:
        loss: which one.
        scores: (chunks, edges, negatives); becomes the gradient of the loss.
        positive: (chunks, edges), the edges' own scores.
        share: (chunks, edges), what an edge's sum over the negatives (or its softmax) weighs.
        margin: of the loss of that name.

    Returns:
        The sum of the loss, a scalar, and the gradient of the positives (chunks, edges).
    """
    if loss == "margin":
        scores.sub_((positive - margin).unsqueeze(-1)).clamp_min_(0)
        value = (scores.sum(-1) * share).sum()
        scores.sign_().mul_(share.unsqueeze(-1))
        return value, -scores.sum(-1)
    largest = torch.maximum(scores.amax(-1), positive) if scores.shape[-1] else positive
    own = (positive - largest).exp_()
    total = scores.sub_(largest.unsqueeze(-1)).exp_().sum(-1).add_(own)
    value = ((total.log() + largest - positive) * share).sum()
    scores.mul_((share / total).unsqueeze(-1))
    return value, share * (own / total - 1)


class LogisticNegatives:
    """What negatives of one side add to the logistic loss, block by block; the loss is measured once, at the end.

    Args:
        share: (chunks, edges) of a batch, what an edge's sum over the negatives weighs.
        scores: how many there are of them in the batch.
    """

    def __init__(self, share: Tensor, scores: int) -> None:
        self.share, self.every = share, max(1, scores // MEASURED)
        self.scores: list[Tensor] = []
        self.shares: list[Tensor] = []

    def to_gradient_(self, scores: Tensor, share: Tensor) -> None:
        """Turn the scores (chunks, edges, negatives) of some of the edges, of these shares, into their gradient."""
        self.scores.append(scores[:, :: self.every].clone().flatten(0, 1))
        self.shares.append(share[:, :: self.every].reshape(-1))
        scores.sigmoid_().mul_(share.unsqueeze(-1))

    def loss(self) -> Tensor:
        """The sum over all edges."""
        if not self.scores:
            return self.share.new_zeros(())
        share = torch.cat(self.shares)
        some = F.softplus(torch.cat(self.scores)).sum(-1).dot(share)
        return some if self.every == 1 else some * (self.share.sum() / share.sum().clamp_min(1e-30))
