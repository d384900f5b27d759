"""Scores: how well a transformed vector fits another; higher is better.

dot       q · c
cosine    q · c / (|q| |c|), 0 where a vector is 0
l1        -Σ|q_i - c_i|
l2        -√Σ(q_i - c_i)²
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Score = Literal["dot", "cosine", "l1", "l2"]

SMALLEST = 1e-12
"""Lengths and squared distances below this count as this, so that gradients stay finite."""


def pairwise(score: Score, queries: Tensor, candidates: Tensor) -> Tensor:
    """Scores of queries (..., n, dimension) with candidates (..., m, dimension), (..., n, m)."""
    if score == "l1":
        return -torch.cdist(queries, candidates, p=1)
    if score == "l2":
        return -squared_distances(queries, candidates).clamp_min(SMALLEST).sqrt()
    if score == "cosine":
        queries, candidates = unit(queries), unit(candidates)
    return queries @ candidates.transpose(-1, -2)


def rowwise(score: Score, queries: Tensor, candidates: Tensor) -> Tensor:
    """Scores of queries (..., dimension) each with its own candidate (..., dimension), (...)."""
    if score == "l1":
        return -(queries - candidates).abs().sum(-1)
    if score == "l2":
        return -(queries - candidates).square().sum(-1).clamp_min(SMALLEST).sqrt()
    if score == "cosine":
        queries, candidates = unit(queries), unit(candidates)
    # A product of matrices makes one pass of what would be two.
    return (queries.unsqueeze(-2) @ candidates.unsqueeze(-1))[..., 0, 0]


def unit(vectors: Tensor) -> Tensor:
    """The vectors at length 1; a zero vector stays."""
    return F.normalize(vectors, dim=-1, eps=SMALLEST)


def squared_distances(queries: Tensor, candidates: Tensor) -> Tensor:
    """(..., n, m) by one matrix product, |q|² + |c|² - 2 q·c; of what rounding leaves, the least is above 0."""
    lengths = queries.square().sum(-1).unsqueeze(-1)
    products = queries @ candidates.transpose(-1, -2)
    distances = products.mul_(-2) if not products.requires_grad else products * -2
    distances = distances + candidates.square().sum(-1).unsqueeze(-2) + lengths
    # What is left of two equal vectors is a rounding of their lengths.
    return torch.maximum(distances, lengths * (8 * torch.finfo(lengths.dtype).eps) + SMALLEST)


def unit_gradient_(gradient: Tensor, unit_vectors: Tensor, vectors: Tensor) -> Tensor:
    """The gradient of vectors, in place of that of the vectors at length 1."""
    along = (gradient * unit_vectors).sum(-1, keepdim=True)
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min_(SMALLEST)
    return gradient.addcmul_(along, unit_vectors, value=-1).div_(lengths)


def block_scores(score: Score, queries: Tensor, candidates: Tensor, scale: float) -> tuple[Tensor, Tensor | None]:
    """Scores (chunks, n, m) of a block times `scale`, and what `add_block_gradients` needs of them."""
    if score in ("l1", "l2"):
        distances = (
            torch.cdist(queries, candidates, p=1) if score == "l1" else squared_distances(queries, candidates).sqrt_()
        )
        return distances * -scale, distances
    shape = (queries.shape[0], queries.shape[1], candidates.shape[1])
    return torch.baddbmm(queries.new_empty(shape), queries, candidates.transpose(1, 2), beta=0, alpha=scale), None


def add_block_gradients(
    score: Score,
    gradient: Tensor,
    distances: Tensor | None,
    ends: tuple[Tensor, Tensor],
    into: tuple[Tensor, Tensor],
    scale: float,
    fresh: tuple[bool, bool],
) -> None:
    """Add the gradients of queries and candidates.

    Args:
        score: which one.
        gradient: (chunks, n, m), of the scores; is overwritten.
        distances: as `block_scores` gave them.
        ends: queries (chunks, n, dimension) and candidates (chunks, m, dimension).
        into: the same shapes, written to.
        scale: as in `block_scores`.
        fresh: whether what is in `into` so far counts nothing.
    """
    queries, candidates = ends
    of_queries, of_candidates = into
    keep = [0.0 if new else 1.0 for new in fresh]
    if score == "l1":
        assert distances is not None
        backward = torch.ops.aten._cdist_backward
        gradient = gradient.mul_(-scale).contiguous()
        by_query = backward(gradient, queries.contiguous(), candidates.contiguous(), 1.0, distances)
        turned = [t.transpose(1, 2).contiguous() for t in (gradient, distances)]
        by_candidate = backward(turned[0], candidates.contiguous(), queries.contiguous(), 1.0, turned[1])
        for target, value, new in ((of_queries, by_query, fresh[0]), (of_candidates, by_candidate, fresh[1])):
            target.copy_(value) if new else target.add_(value)
        return
    if score == "l2":
        assert distances is not None
        gradient.div_(distances)
    of_queries.baddbmm_(gradient, candidates, beta=keep[0], alpha=scale)
    of_candidates.baddbmm_(gradient.transpose(1, 2), queries, beta=keep[1], alpha=scale)
    if score == "l2":
        of_queries.addcmul_(gradient.sum(2).unsqueeze(2), queries, value=-scale)
        of_candidates.addcmul_(gradient.sum(1).unsqueeze(2), candidates, value=-scale)


def row_scores(score: Score, queries: Tensor, candidates: Tensor, scale: float) -> Tensor:
    """Scores (chunks, n) of queries each with its own candidate, times `scale`."""
    return rowwise("dot" if score == "cosine" else score, queries, candidates).mul_(scale)


def row_gradients(
    score: Score, gradient: Tensor, queries: Tensor, candidates: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `row_scores` as (factor, x, y): factor · x is the queries', factor · y the candidates'."""
    if score in ("dot", "cosine"):
        return (gradient * scale).unsqueeze(-1), candidates, queries
    difference = candidates - queries
    if score == "l1":
        return (gradient * scale).unsqueeze(-1), difference.sign_(), -difference
    lengths = difference.square().sum(-1).clamp_min_(SMALLEST).sqrt_()
    return (gradient / lengths * scale).unsqueeze(-1), difference, -difference
