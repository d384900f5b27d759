"""Weights of tasks in the loss that are learnt with the model.

**Uncertainty** (Kendall, Gal & Cipolla 2018, arXiv 1705.07115). A task's noise is a parameter, s_i the logarithm
of its variance; for a cross-entropy L_i the joint likelihood gives

    loss = mean over tasks of exp(-s_i)·L_i + s_i / 2

**GradNorm** (Chen et al. 2018, arXiv 1711.02257). With W the last weights that all tasks share, w_i the weights and
L_i(0) the first losses,

    G_i = ‖∇_W w_i·L_i‖        r_i = (L_i / L_i(0)) / mean_j(L_j / L_j(0))
    the w_i minimise  Σ_i |G_i - mean_j(G_j)·r_i^alpha|,  where the target is constant

A task whose gradient is small, or which has learnt less than the others, gains weight. After each step the weights are
scaled to add up to the number of tasks. In the gradient of G_i by w_i the norm ‖∇_W L_i‖ is a constant factor, so no
second derivative is needed; but each task costs a backward of its own through its tower and W.

A task without labels in a batch takes no part in either.
"""

import torch
from torch import Tensor, nn

from tml.projects.home.recap.config import GradNormConfig

SMALLEST_WEIGHT = 1e-3
"""What GradNorm's weights are kept above: at 0 a task would be lost for good."""


class UncertaintyWeights(nn.Module):
    """Losses of tasks to one loss, each weighted by the inverse of a variance that is learnt."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(tasks))

    def forward(self, losses: Tensor, present: Tensor) -> Tensor:
        """Losses (tasks,), and which tasks have labels in the batch, to a scalar."""
        terms = torch.exp(-self.log_variance) * losses + self.log_variance / 2
        return torch.where(present, terms, 0.0).mean()


class GradNorm(nn.Module):
    """Losses of tasks to one loss, weighted so that the tasks train at similar rates."""

    first_losses: Tensor

    def __init__(self, config: GradNormConfig, tasks: int) -> None:
        super().__init__()
        self.alpha = config.alpha
        self.weights = nn.Parameter(torch.ones(tasks))
        self.register_buffer("first_losses", torch.full((tasks,), torch.nan))

    def forward(self, losses: Tensor, present: Tensor, shared: Tensor) -> Tensor:
        """Losses (tasks,), which tasks have labels in the batch, and W, to a scalar.

        Its gradient by the weights is that of their own objective, by all else that of the weighted mean of losses.
        """
        weights = self._scaled()
        mean = (weights.detach() * losses).mean()
        if not (self.training and torch.is_grad_enabled()):
            return mean
        found = losses.detach()
        self.first_losses.copy_(torch.where(self.first_losses.isnan() & present, found, self.first_losses))
        norms = torch.stack(
            [torch.autograd.grad(loss, shared, retain_graph=True)[0].norm() for loss in losses.unbind()]
        )
        ratios = found / self.first_losses.clamp(min=torch.finfo(found.dtype).tiny)
        own = self.weights * norms
        rates = ratios / _mean(ratios, present)
        target = _mean(own.detach(), present) * rates**self.alpha
        # What is absent is at its target, whatever that may be: it may be NaN.
        distance = (own - torch.where(present, target, own.detach())).abs().sum()
        # The value is the mean of losses alone; the distance gives its gradient and nothing else.
        return mean + distance - distance.detach()

    @torch.no_grad()
    def _scaled(self) -> Tensor:
        """The weights, positive and with a mean of 1; a step of the optimizer may have moved them from there."""
        self.weights.clamp_(min=SMALLEST_WEIGHT)
        self.weights.div_(self.weights.mean())
        return self.weights


def _mean(values: Tensor, present: Tensor) -> Tensor:
    return torch.where(present, values, 0.0).sum() / present.sum().clamp(min=1)
