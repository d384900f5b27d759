"""Learnt task weights against the papers' formulas, with finite differences or in NumPy."""

import math

import numpy as np
import pytest
import torch

from tml.projects.home.recap.config import GradNormConfig
from tml.projects.home.recap.task_weights import GradNorm, UncertaintyWeights


def test_uncertainty_equals_the_formula_and_leaves_out_absent_tasks() -> None:
    weights = UncertaintyWeights(3).double()
    s = np.array([0.3, -1.0, 2.0])
    with torch.no_grad():
        weights.log_variance.copy_(torch.tensor(s))
    losses = torch.tensor([0.5, 0.2, 0.0], dtype=torch.float64)
    loss = weights(losses, torch.tensor([True, True, False]))
    assert loss.item() == pytest.approx((math.exp(-0.3) * 0.5 + 0.15 + math.exp(1.0) * 0.2 - 0.5) / 3)
    loss.backward()
    np.testing.assert_allclose(weights.log_variance.grad, (-np.exp(-s) * losses.numpy() + 0.5) / 3 * [1, 1, 0])


def test_uncertainty_s_weight_ends_at_half_the_inverse_of_the_loss() -> None:
    """With a loss that stays L the minimum over s of exp(-s)·L + s/2 is at exp(-s) = 1 / (2L)."""
    weights = UncertaintyWeights(2)
    losses = torch.tensor([0.1, 0.7])
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        weights(losses, torch.tensor([True, True])).backward()
        optimizer.step()
    torch.testing.assert_close(torch.exp(-weights.log_variance), 1 / (2 * losses), rtol=1e-3, atol=0)


class Tasks(torch.nn.Module):
    """Three losses whose gradients by a shared matrix have quite different norms."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.shared = torch.nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64))
        self.x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
        self.scale = torch.tensor([10.0, 1.0, 0.1], dtype=torch.float64)

    def forward(self) -> torch.Tensor:
        return (self.x @ self.shared - 1).square().mean(dim=0) * self.scale


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_grad_norm_equals_the_formula(alpha: float) -> None:
    tasks = Tasks()
    balance = GradNorm(GradNormConfig(alpha=alpha), 3).double()
    present = torch.tensor([True, True, True])
    balance(tasks(), present, tasks.shared)
    first = tasks().detach().numpy()
    with torch.no_grad():
        tasks.shared.mul_(torch.tensor([0.9, 0.5, 1.3]))
        balance.weights.copy_(torch.tensor([0.5, 2.0, 0.5]))
    losses = tasks()
    loss = balance(losses, present, tasks.shared)
    loss.backward()

    weights = np.array([0.5, 2.0, 0.5])
    residuals = (tasks.x @ tasks.shared - 1).detach().numpy()
    norms = np.array(
        [np.linalg.norm(2 / 8 * tasks.x.numpy().T @ residuals[:, i]) * tasks.scale[i].item() for i in range(3)]
    )
    values = (residuals**2).mean(axis=0) * tasks.scale.numpy()
    rates = values / first / (values / first).mean()
    target = (weights * norms).mean() * rates**alpha
    assert loss.item() == pytest.approx((weights * values).mean())
    np.testing.assert_allclose(balance.weights.grad, np.sign(weights * norms - target) * norms, rtol=1e-6)
    expected = 2 / 8 * tasks.x.numpy().T @ residuals * tasks.scale.numpy() * weights / 3
    np.testing.assert_allclose(tasks.shared.grad, expected, rtol=1e-6)


def test_grad_norm_brings_the_norms_together() -> None:
    tasks, balance = Tasks(), GradNorm(GradNormConfig(alpha=0), 3).double()
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.01)
    for _ in range(500):
        optimizer.zero_grad()
        balance(tasks(), torch.ones(3, dtype=torch.bool), tasks.shared).backward()
        optimizer.step()
    losses = tasks()
    norms = torch.stack([torch.autograd.grad(loss, tasks.shared, retain_graph=True)[0].norm() for loss in losses])
    weighted = balance.weights.detach() * norms
    assert weighted.max() / weighted.min() < 1.3 < 20 < norms.max() / norms.min()


def test_a_task_without_labels_keeps_its_weight_and_its_first_loss_waits() -> None:
    tasks, balance = Tasks(), GradNorm(GradNormConfig(), 3).double()
    present = torch.tensor([True, False, True])
    losses = tasks() * present
    balance(losses, present, tasks.shared).backward()
    assert balance.first_losses.isnan().tolist() == [False, True, False]
    assert balance.weights.grad is not None
    assert balance.weights.grad.isfinite().all()
    assert balance.weights.grad[1] == 0


def test_in_evaluation_grad_norm_is_the_weighted_mean_and_needs_no_gradient() -> None:
    tasks, balance = Tasks(), GradNorm(GradNormConfig(), 3).double().eval()
    with torch.no_grad():
        loss = balance(tasks(), torch.ones(3, dtype=torch.bool), tasks.shared)
    assert loss.item() == pytest.approx(tasks().mean().item())
    assert balance.first_losses.isnan().all()
