"""The TwHIN model and its loss (El-Kishky et al. 2022, arXiv 2202.05387).

A vector for each node and an operator for each relation (`operators.py`). An edge of head s, relation r and tail t is
scored by comparing (`scores.py`) a query with a candidate, the vectors of its two ends, one or both of them changed by
the operator; as TwHIN has it, by translation and dot product,

    f(s, r, t) = (s + r) · t

An observed edge should score high, a corrupted one low. With label 1 for observed and 0 for corrupted edges, the
loss of an edge is the logistic one (binary cross-entropy with logits), the negatives of both sides counting by their
mean:

    softplus(-f(s, r, t)) + w · mean over negatives of softplus(f(s', r, t)) and softplus(f(s, r, t'))

A negative whose node is the edge's own head or tail is no negative and is left out of the mean; where none remains, the
second term is 0. The loss of a batch is the mean over its edges. The translation is part of every score, so negatives
move it as positives do.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tml.embeddings.local import LocalTables
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.data import Relation
from tml.projects.twhin.negatives import Batch
from tml.projects.twhin.operators import Operators, Side
from tml.projects.twhin.scores import pairwise, rowwise


class TwhinModel(nn.Module):
    """Embedding tables for the node types and an operator for each relation.

    Args:
        sizes: the number of nodes of each type.
        relations: the relations, in the order of their numbers.
        config: dimension, operators, score and loss.
        generator: makes the first vectors.

    `forward` takes a batch of `negatives.arrange`, whose edges join the same two node types and share an operator, and
    returns the loss with `positive`, the scores of its edges, (chunks, chunk_size) float32.

    Whoever uses the model asks "which tail (or head)?": `compare(queries(...), candidates(...))` are the scores of all
    candidates for each query.
    """

    def __init__(
        self, sizes: Mapping[str, int], relations: Sequence[Relation], config: TwhinConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.relations, self.config = tuple(relations), config
        self.embeddings = LocalTables(sizes, config.embedding_dim, generator, config.embeddings.initial_scale)
        operators = [config.operator_of(relation.name) for relation in relations]
        self.operators = Operators(operators, config.embedding_dim, config.reciprocal, generator.device)

    @property
    def device(self) -> torch.device:
        """Where the vectors are."""
        return self.embeddings.device

    def queries(self, relation: int, side: Side, rows: Tensor | slice) -> Tensor:
        """What is compared with candidates of a side, made of the nodes at the other end.

        Args:
            relation: the relation's number.
            side: the side that is to be found; for `tail` the rows are of heads.
            rows: (n,) int64, or a slice, of the vocabulary of the other end.

        Returns:
            (n, dimension), without a gradient for the tables.
        """
        return self._read(relation, "head" if side == "tail" else "tail", side, rows)

    def candidates(self, relation: int, side: Side, rows: Tensor | slice | None = None) -> Tensor:
        """The nodes of a side as they are compared with queries, (m, dimension); None reads all nodes of the type."""
        return self._read(relation, side, side, slice(None) if rows is None else rows)

    def compare(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """Scores of queries (n, dimension) with candidates (m, dimension), (n, m); higher is better."""
        return pairwise(self.config.score, queries, candidates)

    def score(self, relation: int, head: Tensor, tail: Tensor, side: Side | None = None) -> Tensor:
        """Scores of edges of one relation.

        Args:
            relation: the relation's number.
            head: rows of heads, (n,) int64.
            tail: rows of tails, (n,) int64.
            side: which side was asked for; with reciprocal relations the two differ, and None is their mean.
        """
        if side is None and self.config.reciprocal:
            return (self.score(relation, head, tail, "tail") + self.score(relation, head, tail, "head")) / 2
        found: Side = side or "tail"
        ends = self._read(relation, "head", found, head), self._read(relation, "tail", found, tail)
        return rowwise(self.config.score, *ends)

    def _read(self, relation: int, end: Side, found: Side, rows: Tensor | slice) -> Tensor:
        between = self.relations[relation]
        vectors = self.embeddings.read(between.head if end == "head" else between.tail, rows)
        transformed: Tensor = self.operators(vectors, relation, end, found)
        return transformed

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and the scores of its edges."""
        between, relation, score = (
            self.relations[int(batch["relation"][0])],
            batch["relation"][:, None],
            self.config.score,
        )
        heads, other_heads = self._lookup(between.head, batch["head"], batch["head_negatives"])
        tails, other_tails = self._lookup(between.tail, batch["tail"], batch["tail_negatives"])
        found: Side
        total, count, positive = torch.zeros(()), torch.zeros(()), torch.zeros(())
        for found, asked, own, others in (("tail", heads, tails, other_tails), ("head", tails, heads, other_heads)):
            other_end: Side = "head" if found == "tail" else "tail"
            queries = self.operators(asked, relation, other_end, found)
            positive = positive + rowwise(score, queries, self.operators(own, relation, found, found)) / 2
            scores = pairwise(score, queries, self.operators(others, relation, found, found))
            excluded = batch[found].unsqueeze(2) == batch[f"{found}_negatives"].unsqueeze(1)
            total = total + _negative_loss(scores, excluded)
            count = count + excluded.logical_not().sum(-1)

        of_edge = F.softplus(-positive) + self.config.negative_weight * total / count.clamp(min=1)
        loss = (batch["weight"] * of_edge).sum() / batch["weight"].sum()
        return loss, {"positive": positive.detach()}

    def _lookup(self, node: str, rows: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of edges and negatives by one look-up."""
        vectors = self.embeddings(node, torch.cat([rows, negatives], dim=1))
        edges, corrupted = vectors.split([rows.shape[1], negatives.shape[1]], dim=1)
        return edges, corrupted


def _negative_loss(scores: Tensor, own: Tensor) -> Tensor:
    """Sum over negatives of softplus(score), (chunks, edges, negatives) to (chunks, edges); own ones count nothing."""
    # softplus(x) = -logsigmoid(-x), the form with the faster kernel; at -1e4 value and gradient are exactly 0.
    return -F.logsigmoid(-scores.masked_fill(own, -1e4)).sum(-1)
