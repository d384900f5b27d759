"""The TwHIN model and its loss (El-Kishky et al. 2022, arXiv 2202.05387).

A vector for each node, a translation r for each relation; an edge of head s and tail t has the score

    f(s, r, t) = (s + r) · t

and an observed edge should score high, a corrupted one low. With label 1 for observed and 0 for corrupted edges, the
loss of an edge is the logistic one (binary cross-entropy with logits), the negatives of both sides counting by their
mean:

    softplus(-f(s, r, t)) + w · mean over negatives of softplus(f(s', r, t)) and softplus(f(s, r, t'))

A negative whose node is the edge's own head or tail is no negative and is left out of the mean; where none remains, the
second term is 0. The loss of a batch is the mean over its edges. The translation is part of every score, so negatives
move it as positives do.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from tml.embeddings.local import LocalTables
from tml.projects.twhin.data import Relation
from tml.projects.twhin.negatives import Batch


class TwhinModel(nn.Module):
    """Embedding tables for the node types and a translation for each relation.

    Args:
        sizes: the number of nodes of each type.
        relations: the relations, in the order of their numbers.
        dim: the dimension of vectors and translations.
        generator: makes the first vectors; translations start at 0.
        negative_weight: w, what the negatives weigh against the edge itself.
        initial_scale: the mean length of a vector at the start.

    `forward` takes a batch of `negatives.arrange`, whose edges join the same two node types, and returns the loss with
    `positive`, the scores of its edges, (chunks, chunk_size) float32.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        relations: Sequence[Relation],
        dim: int,
        generator: torch.Generator,
        negative_weight: float = 1.0,
        initial_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.relations = tuple(relations)
        self.negative_weight = negative_weight
        self.embeddings = LocalTables(sizes, dim, generator, initial_scale)
        self.translations = nn.Parameter(torch.zeros(len(self.relations), dim, device=generator.device))

    def score(self, relation: torch.Tensor, head: torch.Tensor, tail: torch.Tensor) -> torch.Tensor:
        """Scores of edges between the same two node types: rows of any shape, all alike, give logits of that shape."""
        between = self.relations[int(relation.reshape(-1)[0])]
        translated = self.embeddings(between.head, head) + self.translations[relation]
        scores: torch.Tensor = (translated * self.embeddings(between.tail, tail)).sum(-1)
        return scores

    def forward(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a batch, and the scores of its edges."""
        between = self.relations[int(batch["relation"][0])]
        translation = self.translations[batch["relation"]].unsqueeze(1)
        head, head_negatives = self._read(between.head, batch["head"], batch["head_negatives"])
        tail, tail_negatives = self._read(between.tail, batch["tail"], batch["tail_negatives"])

        translated = head + translation
        positive = (translated * tail).sum(-1)
        against_tails = translated @ tail_negatives.transpose(1, 2)
        against_heads = tail @ (head_negatives + translation).transpose(1, 2)
        own_tail = batch["tail"].unsqueeze(2) == batch["tail_negatives"].unsqueeze(1)
        own_head = batch["head"].unsqueeze(2) == batch["head_negatives"].unsqueeze(1)
        total = _negative_loss(against_tails, own_tail) + _negative_loss(against_heads, own_head)
        count = own_tail.logical_not().sum(-1) + own_head.logical_not().sum(-1)

        of_edge = F.softplus(-positive) + self.negative_weight * total / count.clamp(min=1)
        loss = (batch["weight"] * of_edge).sum() / batch["weight"].sum()
        return loss, {"positive": positive.detach()}

    def _read(self, node: str, rows: torch.Tensor, negatives: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of edges and negatives by one look-up, so that a table has one sparse gradient a side."""
        vectors = self.embeddings(node, torch.cat([rows, negatives], dim=1))
        edges, corrupted = vectors.split([rows.shape[1], negatives.shape[1]], dim=1)
        return edges, corrupted


def _negative_loss(scores: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Sum over negatives of softplus(score), (chunks, edges, negatives) to (chunks, edges); own ones count nothing."""
    # softplus(x) = -logsigmoid(-x), the form with the faster kernel; at -1e4 value and gradient are exactly 0.
    return -F.logsigmoid(-scores.masked_fill(own, -1e4)).sum(-1)
