"""The softmax of edges among their negatives, multiplied in bfloat16.

With every node as a negative nearly all work is products of matrices, and the passes over the scores between them.
Processors with AMX multiply bfloat16 five to ten times faster than float32, and torch has the softmax of bfloat16 in
one pass that computes in float32. So the scores of a block stay bfloat16, the edge's own score is one more column of
them, and what an edge weighs is applied to its query, not to its row of scores:

    P = softmax([s Q Cᵀ, p]),   ∂Q = s w (P C),   ∂C = Pᵀ (s w Q),   ∂p = -w Σ_j P_j

with s the scale, p the edges' own scores, w their weights. All that is added up over edges is float32.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

PAD = 32
"""Rows of scores start at multiples of so many numbers; others are multiplied at half the speed."""


def narrow_queries(queries: Tensor, scale: float) -> Tensor:
    """Queries (chunks, n, dimension), times the scale, as `softmax_block` takes them."""
    return (queries * scale).bfloat16()


def narrow_candidates(candidates: Tensor) -> Tensor:
    """Candidates (chunks, m, dimension), with at least one row of zeros behind them: the edge's own place."""
    return F.pad(candidates, (0, 0, 0, PAD - candidates.shape[1] % PAD)).bfloat16()


def softmax_block(
    pair: tuple[Tensor, Tensor],
    positive: Tensor,
    share: Tensor,
    excluded: Tensor,
    into: tuple[Tensor, Tensor],
    scale: float,
    new: bool,
) -> tuple[Tensor, Tensor]:
    """The loss of a block, and its gradients.

    Args:
        pair: of `narrow_queries` and `narrow_candidates`.
        positive: the edges' own scores, (chunks, n), times the scale.
        share: what an edge weighs, (chunks, n).
        excluded: places in (chunks, n, m) that count nothing, int64.
        into: the gradients of queries (chunks, n, dimension), written, and of candidates (chunks, m, dimension), added.
        scale: of the scores.
        new: whether what is in the candidates' gradients so far counts nothing.

    Returns:
        The sum of the loss, and the gradient of the positives (chunks, n).
    """
    queries, candidates = pair
    of_queries, of_candidates = into
    count, width = of_candidates.shape[1], candidates.shape[1]
    scores = torch.bmm(queries, candidates.transpose(1, 2))
    if len(excluded):
        scores.view(-1).index_fill_(0, excluded + excluded // count * (width - count), -torch.inf)
    scores[..., count] = positive.bfloat16()
    scores[..., count + 1 :] = -torch.inf
    shares = torch.softmax(scores, dim=-1)
    own = shares[..., count].float()
    shares[..., count:] = 0
    # Summed up, since 1 - own has no digits left where the edge is nearly certain.
    others = (shares @ shares.new_ones(width, 1)).squeeze(-1).float()
    smallest = torch.finfo(torch.float32).tiny
    losses = torch.where(own < 0.5, -own.clamp_min(smallest).log(), -torch.log1p(-others.clamp_max(0.75)))
    weight = share.unsqueeze(-1)
    torch.mul(torch.bmm(shares, candidates), weight * scale, out=of_queries)
    product = torch.bmm(shares.transpose(1, 2), (queries * weight).bfloat16())[:, :count]
    if new:
        of_candidates.copy_(product)
    else:
        of_candidates.add_(product)
    return (losses * share).sum(), -share * others
