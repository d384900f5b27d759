"""What the ranker must beat: the base rate, and one logistic regression a task on the same inputs.

The logistic regressions of all tasks are fitted at once, on the whole of the training data. Per task, over the n
examples whose label counts, with standardised inputs x, they minimise

    f(w, b) = 1/n · [ Σ CE(y, sigmoid(w·x + b)) + l2/2 · |w|² ]

by L-BFGS (Liu and Nocedal 1989) with a history and a step length of each task's own; only the two products with the
data are shared. Counts and rates of the same thing are nearly collinear, which makes plain L-BFGS slow. So it starts
from the Hessian that f has at the base rate p, namely p(1-p) · XᵀX/n + l2/n · I, whose inverse comes from one
eigendecomposition of XᵀX for all tasks; from there the minimum is some ten steps away.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tml.core.errors import DataError
from tml.projects.home.recap.config import InputShapes

LARGEST_ONE_HOT_VOCABULARY = 64
ROWS_PER_BLOCK = 2048
"""At ten tasks few enough for torch to leave the work beside the two products to one thread: on a busy machine, waiting
for the others costs more than that work."""

HISTORY = 10
SUFFICIENT_DECREASE = 1e-4
SHORTEST_STEP = 2.0**-20


def design_matrix(batch: Mapping[str, Tensor], shapes: InputShapes) -> Tensor:
    """The inputs of the logistic regression: what the ranker sees, less what has too many values to list.

    Continuous columns become sign(x)·log(1+|x|), non-finite ones 0; binary columns and embeddings stay; a discrete
    column becomes one column a value (0, unknown, also for any out of range), unless it has more than 64 values.

    Returns:
        (batch, features) float32.
    """
    x = torch.nan_to_num(batch["continuous"], nan=0.0, posinf=0.0, neginf=0.0)
    parts = [torch.copysign(torch.log1p(x.abs()), x), batch["binary"]]
    for column, size in enumerate(shapes.discrete):
        if size <= LARGEST_ONE_HOT_VOCABULARY:
            value = batch["discrete"][:, column]
            known = torch.where((value >= 0) & (value < size), value, 0)
            parts.append(torch.nn.functional.one_hot(known, size))
    parts += [batch[name] for name in shapes.embeddings if name not in shapes.trained]
    return torch.cat([part.float() for part in parts], dim=1)


def base_rates(labels: Tensor) -> Tensor:
    """Mean label of each task over the examples that count, (tasks,) float64; NaN where none does.

    Example:
        >>> base_rates(torch.tensor([[0.0, 1.0], [1.0, float("nan")]])).tolist()
        [0.5, 1.0]
    """
    return labels.double().nanmean(dim=0)


def _blocks(rows: Tensor) -> tuple[Tensor, ...]:
    """Cut into blocks of rows that stay in the processor's cache while they are standardised and multiplied."""
    return torch.split(rows, ROWS_PER_BLOCK)


@dataclass(frozen=True)
class Standardisation:
    """Attributes: (features,) each, in the type of the features; a constant feature has scale 0, which removes it."""

    mean: Tensor
    scale: Tensor

    @staticmethod
    def of(features: Tensor) -> "Standardisation":
        total = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
        for block in _blocks(features):
            total += block.sum(dim=0, dtype=torch.float64)
        mean = total / len(features)
        squares = torch.zeros_like(total)
        for block in _blocks(features):
            squares += (block.double() - mean).square().sum(dim=0)
        deviation = (squares / len(features)).sqrt()
        varies = deviation > 1e-6 * mean.abs().clamp(min=1e-6)
        scale = torch.where(varies, 1 / deviation, 0.0)
        return Standardisation(mean.to(features.dtype), scale.to(features.dtype))

    def blocks(self, features: Tensor) -> Iterator[Tensor]:
        """The rows, standardised, with a last column of ones for the intercept; each block overwrites the one before.

        A fresh block each time would cost more in pages asked of the system than the products with it.
        """
        buffer = features.new_ones(min(len(features), ROWS_PER_BLOCK), features.shape[1] + 1)
        for block in _blocks(features):
            rows = buffer[: len(block)]
            torch.sub(block, self.mean, out=rows[:, :-1])
            rows[:, :-1] *= self.scale
            yield rows


class LogisticRegression:
    """Logistic regressions of several tasks on the same features.

    Args:
        l2: weight of the penalty |w|²/2 against the summed cross-entropy; scikit-learn's 1/C. The intercept is free.
        tolerance: a task is done when its mean cross-entropy is about this near to its minimum, in nats.
        max_iterations: steps at most.

    Attributes:
        coefficients: (features + 1, tasks) float64 for standardised features, the intercept last.
        iterations: how many steps the fit took.
        converged: (tasks,) bool, whether the tolerance was reached.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> y = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
        >>> LogisticRegression().fit(x, y).predict(x).shape
        torch.Size([4, 1])
    """

    def __init__(self, l2: float = 1.0, tolerance: float = 1e-8, max_iterations: int = 60) -> None:
        self.l2, self.tolerance, self.max_iterations = l2, tolerance, max_iterations

    def fit(self, features: Tensor, labels: Tensor) -> "LogisticRegression":
        """Fit to all the data.

        Args:
            features: (n, features) float32 or float64, finite; it decides the precision.
            labels: (n, tasks) 0, 1, or NaN, which does not count. A task with one class gets its base rate.

        Raises:
            DataError: no rows, or features that are not finite.
        """
        if len(features) == 0 or len(features) != len(labels):
            raise DataError(
                f"logistic regression: found {len(features)} rows of features and {len(labels)} of labels, "
                "allowed is one number above 0"
            )
        self.standardisation = Standardisation.of(features)
        if not self.standardisation.mean.isfinite().all():
            raise DataError("logistic regression: found NaN or infinity in the features, allowed are finite numbers")
        objective = _Objective(features, labels, self.standardisation, self.l2)
        self.coefficients, self.iterations, self.converged = _minimise(
            objective, objective.start(base_rates(labels)), self.tolerance, self.max_iterations
        )
        return self

    def predict(self, features: Tensor) -> Tensor:
        """Probabilities, (n, tasks) in the type of the features."""
        coefficients = self.coefficients.to(features.dtype)
        logits = [rows @ coefficients for rows in self.standardisation.blocks(features)]
        return torch.sigmoid(torch.cat(logits)) if logits else features.new_zeros(0, coefficients.shape[1])


class _Objective:
    """f and its gradient for all tasks, and the inverse of the Hessian that it has at the base rates."""

    def __init__(self, features: Tensor, labels: Tensor, standardisation: Standardisation, l2: float) -> None:
        self.features, self.standardisation = features, standardisation
        self.counts = labels.isfinite()
        self.labels = torch.where(self.counts, labels, 0).to(features.dtype)
        self.examples = self.counts.sum(dim=0).double().clamp(min=1)
        positives = self.labels.sum(dim=0, dtype=torch.float64)
        self.has_both = (positives > 0) & (positives < self.counts.sum(dim=0))
        rate = positives / self.examples
        # No penalty for the intercept, which is the last row.
        self.penalty = torch.full((features.shape[1] + 1, 1), l2, dtype=torch.float64, device=features.device)
        self.penalty[-1] = 0
        self.penalty = self.penalty / self.examples
        gram = torch.zeros(2 * self.penalty.shape[:1], dtype=torch.float64, device=features.device)
        for x in standardisation.blocks(features):
            gram += x.T @ x
        gram /= len(features)
        values, self.vectors = torch.linalg.eigh(gram)
        curvature = (rate * (1 - rate)).clamp(min=1e-12)
        floor = l2 / self.examples + 1e-6 * curvature
        self.inverse = 1 / (values.clamp(min=0).unsqueeze(1) * curvature + floor)

    def start(self, rates: Tensor) -> Tensor:
        """Weights of 0 and the intercept of the base rate."""
        start = torch.zeros_like(self.penalty)
        start[-1] = torch.logit(rates.nan_to_num(0.5).clamp(1e-7, 1 - 1e-7))
        return start

    def precondition(self, gradient: Tensor) -> Tensor:
        """(features + 1, tasks): the inverse Hessian times the gradient."""
        product: Tensor = self.vectors @ (self.inverse * (self.vectors.T @ gradient))
        return product

    def __call__(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """f, (tasks,), and its gradient, (features + 1, tasks), both summed up in float64."""
        loss = torch.zeros_like(self.examples)
        gradient = torch.zeros_like(coefficients)
        rounded = coefficients.to(self.features.dtype)
        blocks = self.standardisation.blocks(self.features), _blocks(self.labels), _blocks(self.counts)
        for x, labels, counts in zip(*blocks, strict=True):
            z = x @ rounded
            cross_entropy = torch.nn.functional.softplus(z) - labels * z
            loss += (cross_entropy * counts).sum(dim=0, dtype=torch.float64)
            gradient += x.T @ ((torch.sigmoid(z) - labels) * counts)
        penalised = self.penalty * coefficients
        return loss / self.examples + (penalised * coefficients).sum(dim=0) / 2, gradient / self.examples + penalised


def _minimise(
    objective: _Objective, start: Tensor, tolerance: float, max_iterations: int
) -> tuple[Tensor, int, Tensor]:
    """L-BFGS for all tasks side by side; returns the minimum, the steps taken, and which tasks converged."""
    x = start
    value, gradient = objective(x)
    pairs: list[tuple[Tensor, Tensor]] = []
    done = ~objective.has_both
    iterations = 0
    while iterations < max_iterations:
        direction = -_inverse_hessian_times(gradient, pairs, objective)
        slope = (gradient * direction).sum(dim=0)
        # Half the slope is what a full Newton step would still gain.
        done = done | (-slope / 2 < tolerance)
        if done.all():
            break
        step, new_value, new_gradient = _backtrack(objective, x, value, direction, slope, done)
        moved = step * direction
        pairs = [*pairs[1 - HISTORY :], (moved, new_gradient - gradient)]
        # A step of 0 means that rounding allows no more descent.
        done = done | (step == 0)
        x, value, gradient = x + moved, new_value, new_gradient
        iterations += 1
    return x, iterations, done


def _backtrack(
    objective: _Objective, x: Tensor, value: Tensor, direction: Tensor, slope: Tensor, done: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Halve each task's step from 1 until its value falls enough; 0 for tasks that are done or find no such step."""
    step = torch.where(done, 0.0, torch.ones_like(value))
    while True:
        new_value, new_gradient = objective(x + step * direction)
        too_far = (step > 0) & ~(new_value <= value + SUFFICIENT_DECREASE * step * slope)
        if not too_far.any():
            return step, new_value, new_gradient
        step = torch.where(too_far, torch.where(step > SHORTEST_STEP, step / 2, 0.0), step)


def _inverse_hessian_times(gradient: Tensor, pairs: list[tuple[Tensor, Tensor]], objective: _Objective) -> Tensor:
    """The two-loop recursion, each column a task with its own history; pairs without curvature are skipped."""
    curvatures = [(s * y).sum(dim=0) for s, y in pairs]
    inverses = [torch.where(c > 1e-20, 1 / c.clamp(min=1e-20), 0.0) for c in curvatures]
    alphas = []
    q = gradient
    for (s, y), inverse in zip(reversed(pairs), reversed(inverses), strict=True):
        alphas.append(inverse * (s * q).sum(dim=0))
        q = q - alphas[-1] * y
    q = objective.precondition(q)
    for (s, y), inverse, alpha in zip(pairs, inverses, reversed(alphas), strict=True):
        q = q + s * (alpha - inverse * (y * q).sum(dim=0))
    return q
