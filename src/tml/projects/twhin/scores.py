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
    return (queries * candidates).sum(-1)


def unit(vectors: Tensor) -> Tensor:
    """The vectors at length 1; a zero vector stays."""
    return F.normalize(vectors, dim=-1, eps=SMALLEST)


def squared_distances(queries: Tensor, candidates: Tensor) -> Tensor:
    """(..., n, m) by one matrix product, |q|² + |c|² - 2 q·c; a rounding can make it slightly negative."""
    products = queries @ candidates.transpose(-1, -2)
    lengths = queries.square().sum(-1).unsqueeze(-1) + candidates.square().sum(-1).unsqueeze(-2)
    return lengths - 2 * products
