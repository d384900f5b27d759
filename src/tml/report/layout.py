"""Points of many dimensions in two, so that near ones stay near: t-SNE (van der Maaten and Hinton 2008), exactly.

Near is what has a high probability p under a Gaussian around each point, as wide as gives it `PERPLEXITY` neighbours;
in the plane q follows Student's distribution, and the layout minimises the Kullback-Leibler divergence of q from p. It
starts from the first two principal components, so that the large structure is kept and the same points make the same
picture (Kobak and Berens 2019). Each step costs points², which is meant for about a thousand points.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PERPLEXITY = 30.0
STEPS, EXAGGERATED = 350, 120
"""Steps of gradient descent, and how many of them at the start draw clusters together twelvefold."""

Points = npt.NDArray[np.float32]


def layout(vectors: Points) -> Points:
    """Places in the plane.

    Args:
        vectors: (points, dimension) float32, at least 4 points.

    Returns:
        (points, 2) float32.
    """
    points = torch.from_numpy(np.array(vectors, np.float32))
    points = points - points.mean(0)
    # At most a handful of directions matter to the distances, and fewer columns are quicker.
    left, lengths, _ = torch.linalg.svd(points, full_matrices=False)
    components = left * lengths
    near = _affinities(components[:, :50])
    place = torch.nn.functional.pad(components[:, :2], (0, 2 - min(2, components.shape[1])))
    place = place / place[:, 0].std().clamp_min(1e-12) * 1e-2
    rate, speed = max(len(points) / 48, 10.0), torch.zeros_like(place)
    gains = torch.ones_like(place)
    for step in range(STEPS):
        gradient = _gradient(place, near * (12.0 if step < EXAGGERATED else 1.0))
        # A coordinate that keeps its direction goes faster, one that swings slower (Jacobs 1988).
        gains = torch.where(gradient.sign() == speed.sign(), gains * 0.8, gains + 0.2).clamp_min(0.01)
        speed = (0.5 if step < EXAGGERATED else 0.8) * speed - rate * gains * gradient
        place = place + speed
        place = place - place.mean(0)
    found: Points = place.numpy()
    return found


def _affinities(points: Tensor) -> Tensor:
    """Symmetric probabilities p of pairs, (points, points), each row's width found by bisection."""
    squares = torch.cdist(points, points).square()
    squares.fill_diagonal_(torch.inf)
    wanted = np.log(min(PERPLEXITY, (len(points) - 1) / 3))
    low, high = torch.zeros(len(points), 1), torch.full((len(points), 1), torch.inf)
    precision = 1 / squares.masked_fill(squares.isinf(), 0).mean(1, keepdim=True).clamp_min(1e-12)
    for _ in range(50):
        rows = torch.softmax(-squares * precision, dim=1)
        entropy = -torch.special.xlogy(rows, rows).sum(1, keepdim=True)
        wide = entropy > wanted
        low, high = torch.where(wide, precision, low), torch.where(wide, high, precision)
        precision = torch.where(high.isinf(), precision * 2, (low + high) / 2)
    return ((rows + rows.T) / (2 * len(points))).clamp_min(1e-12)


def _gradient(place: Tensor, near: Tensor) -> Tensor:
    """4 Σ over j of (p - q)(y - y_j) / (1 + |y - y_j|²)."""
    squares = place.square().sum(1)
    closeness = 1 / (1 + (squares + squares.unsqueeze(1) - 2 * place @ place.T).clamp_min(0))
    closeness.fill_diagonal_(0)
    force = (near - closeness / closeness.sum()) * closeness
    return 4 * (force.sum(1, keepdim=True) * place - force @ place)
