"""The baselines against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as SklearnLogisticRegression

from tml.core.errors import DataError
from tml.projects.home.recap.baselines import LogisticRegression, base_rates, design_matrix
from tml.projects.home.recap.config import InputShapes


def nearly_collinear(n: int = 3000) -> tuple[torch.Tensor, torch.Tensor]:
    """Features as a log has them (collinear, constant, rare, far from 0) and labels of very different frequency."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(n, 12, generator=generator, dtype=torch.float64)
    x = torch.cat([base, base @ torch.randn(12, 8, generator=generator, dtype=torch.float64)], dim=1)
    x[:, 3] = x[:, 4] + 0.01 * x[:, 3]
    x[:, 5] = 7.0
    x[:, 6] = (x[:, 6] > 2.3).double()
    x[:, 7] = 1000 + x[:, 7]
    truth = torch.randn(20, 3, generator=generator, dtype=torch.float64) / 4
    z = (x - x.mean(0)) @ truth + torch.tensor([0.0, -2.0, -5.0])
    y = (torch.rand(n, 3, generator=generator, dtype=torch.float64) < torch.sigmoid(z)).double()
    y[torch.rand(n, 3, generator=generator) < 0.1] = torch.nan
    return x, y


@pytest.mark.parametrize(
    ("dtype", "tolerance", "difference"), [(torch.float64, 1e-15, 1e-6), (torch.float32, 1e-10, 1e-4)]
)
def test_agrees_with_scikit_learn_task_by_task(dtype, tolerance, difference):
    x, y = nearly_collinear()
    model = LogisticRegression(l2=2.0, tolerance=tolerance).fit(x.to(dtype), y.to(dtype))
    assert model.converged.all()
    assert model.iterations < 40
    standardised = (x - x.mean(0)) / x.std(0, correction=0).clamp(min=1e-9)
    for task in range(3):
        counts = y[:, task].isfinite()
        # scikit-learn standardises nothing; as here, the statistics are those of all rows.
        reference = SklearnLogisticRegression(C=0.5, tol=1e-10, max_iter=5000)
        reference.fit(standardised[counts].numpy(), y[counts, task].numpy())
        expected = reference.predict_proba(standardised.numpy())[:, 1]
        np.testing.assert_allclose(model.predict(x.to(dtype))[:, task].numpy(), expected, atol=difference)


def test_the_gradient_is_zero_at_the_solution():
    x, y = nearly_collinear(500)
    model = LogisticRegression(l2=1.0, tolerance=1e-14).fit(x, y)
    residual = torch.nan_to_num(model.predict(x) - y)
    z = torch.cat([rows.clone() for rows in model.standardisation.blocks(x)])
    penalty = torch.cat([model.coefficients[:-1], torch.zeros(1, 3, dtype=torch.float64)])
    assert (z.T @ residual + penalty).abs().max() < 1e-3


def test_tasks_do_not_move_each_other():
    x, y = nearly_collinear(800)
    together = LogisticRegression().fit(x, y).predict(x)
    alone = torch.cat([LogisticRegression().fit(x, y[:, [task]]).predict(x) for task in range(3)], dim=1)
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)


def test_a_task_of_one_class_or_none_gets_its_base_rate():
    x, _ = nearly_collinear(50)
    y = torch.stack([torch.zeros(50), torch.ones(50), torch.full((50,), torch.nan), (x[:, 0] > 0).float()], dim=1)
    predicted = LogisticRegression().fit(x, y).predict(x)
    torch.testing.assert_close(predicted[0, :3].float(), torch.tensor([0.0, 1.0, 0.5]), atol=1e-6, rtol=0)
    assert predicted.isfinite().all()
    assert predicted[:, 3].std() > 0.1


def test_separable_labels_stay_finite_without_penalty():
    x = torch.linspace(-1, 1, 20).unsqueeze(1)
    predicted = LogisticRegression(l2=0.0).fit(x, (x > 0).float()).predict(x)
    assert predicted.isfinite().all()
    assert predicted[-1] > 0.99


def test_same_data_same_bits():
    x, y = nearly_collinear(700)
    first, second = (LogisticRegression().fit(x.float(), y.float()).predict(x.float()) for _ in range(2))
    assert torch.equal(first, second)


def test_wrong_data_is_refused():
    x, y = nearly_collinear(10)
    with pytest.raises(DataError, match="found 0 rows of features"):
        LogisticRegression().fit(x[:0], y[:0])
    with pytest.raises(DataError, match="found NaN or infinity in the features"):
        LogisticRegression().fit(torch.full_like(x, torch.inf), y)


def test_base_rates_leave_out_what_does_not_count():
    assert base_rates(torch.tensor([[1.0, torch.nan], [0.0, 1.0], [0.0, torch.nan]])).tolist() == [
        pytest.approx(1 / 3),
        1.0,
    ]


def test_design_matrix_by_hand():
    shapes = InputShapes(continuous=2, binary=1, discrete=(3, 65), embeddings={"b": 2, "a": 1}, tasks=("is_click",))
    batch = {
        "continuous": torch.tensor([[np.e - 1, 1 - np.e], [torch.nan, torch.inf]]),
        "binary": torch.tensor([[1.0], [0.0]]),
        "discrete": torch.tensor([[2, 64], [5, 0]]),
        "a": torch.tensor([[0.25], [0.5]]),
        "b": torch.tensor([[3.0, 4.0], [5.0, 6.0]]),
    }
    expected = [[1, -1, 1, 0, 0, 1, 3, 4, 0.25], [0, 0, 0, 1, 0, 0, 5, 6, 0.5]]
    torch.testing.assert_close(design_matrix(batch, shapes), torch.tensor(expected))
