"""The masked, weighted binary cross-entropy against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from tml.core.losses import binary_cross_entropy_with_logits

ROWS, TASKS = 60, 3


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, TASKS, generator=generator, dtype=torch.float64)
    labels = (torch.rand(ROWS, TASKS, generator=generator) < 0.4).double()
    labels[torch.rand(ROWS, TASKS, generator=generator) < 0.3] = math.nan
    weights = torch.rand(ROWS, TASKS, generator=generator, dtype=torch.float64)
    return logits, labels, weights


def sklearn_loss(logits: torch.Tensor, labels: torch.Tensor, weights: np.ndarray, pos_weight: float = 1.0) -> float:
    counts = ~np.isnan(labels.numpy())
    y, w = labels.numpy()[counts], weights[counts]
    probability = 1 / (1 + np.exp(-logits.numpy()[counts]))
    total: float = log_loss(y, probability, sample_weight=w * np.where(y == 1, pos_weight, 1), normalize=False)
    return total / w.sum()


def test_equals_sklearn_on_the_labels_that_count(data: tuple[torch.Tensor, ...]) -> None:
    logits, labels, _ = data
    expected = [sklearn_loss(logits[:, t], labels[:, t], np.ones(ROWS)) for t in range(TASKS)]
    np.testing.assert_allclose(binary_cross_entropy_with_logits(logits, labels), expected, rtol=1e-12)


def test_weights_and_pos_weight_equal_sklearns_sample_weight(data: tuple[torch.Tensor, ...]) -> None:
    logits, labels, weights = data
    pos_weight = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
    expected = [
        sklearn_loss(logits[:, t], labels[:, t], weights[:, t].numpy(), float(pos_weight[t])) for t in range(TASKS)
    ]
    losses = binary_cross_entropy_with_logits(logits, labels, weights, pos_weight)
    np.testing.assert_allclose(losses, expected, rtol=1e-12)


def test_one_task_may_come_without_its_dimension(data: tuple[torch.Tensor, ...]) -> None:
    logits, labels, weights = data
    loss = binary_cross_entropy_with_logits(logits[:, 1], labels[:, 1], weights[:, 1])
    assert loss.shape == ()
    torch.testing.assert_close(loss, binary_cross_entropy_with_logits(logits, labels, weights)[1])


def test_integer_and_boolean_labels_and_one_weight_per_example_are_taken(data: tuple[torch.Tensor, ...]) -> None:
    logits, labels, weights = data
    full = labels.nan_to_num()
    for kind in (torch.int64, torch.bool, torch.float32):
        by_row = binary_cross_entropy_with_logits(logits, full.to(kind), weights[:, :1])
        torch.testing.assert_close(
            by_row, binary_cross_entropy_with_logits(logits, full, weights[:, :1].expand(-1, TASKS))
        )


@pytest.mark.parametrize("weights", [None, torch.zeros(ROWS, TASKS, dtype=torch.float64)])
def test_a_task_of_which_nothing_counts_has_loss_and_gradient_zero(
    data: tuple[torch.Tensor, ...], weights: torch.Tensor | None
) -> None:
    logits, labels, _ = data
    logits = logits.clone().requires_grad_()
    labels = labels.clone()
    labels[:, 1] = math.nan
    losses = binary_cross_entropy_with_logits(logits, labels, weights)
    losses.sum().backward()
    assert losses[1] == 0
    assert losses.isfinite().all()
    assert logits.grad is not None
    assert torch.equal(logits.grad[:, 1], torch.zeros(ROWS, dtype=torch.float64))
    assert logits.grad.isfinite().all()


def test_labels_that_do_not_count_get_no_gradient_and_the_rest_is_right(data: tuple[torch.Tensor, ...]) -> None:
    logits, labels, weights = data
    logits = logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: binary_cross_entropy_with_logits(z, labels, weights), logits)
    binary_cross_entropy_with_logits(logits, labels, weights).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[labels.isnan()] == 0).all()
    assert (logits.grad[~labels.isnan()] != 0).all()


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([1e4, -1e4, 1e4, -1e4])
    losses = binary_cross_entropy_with_logits(logits, torch.tensor([1.0, 0.0, 0.0, 1.0]))
    torch.testing.assert_close(losses, torch.tensor(5000.0))
