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

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tml.core.errors import ConfigError
from tml.embeddings.local import LocalTables
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.gradients import LossOfBatch, Rows
from tml.projects.twhin.graph import Relation
from tml.projects.twhin.negatives import ROLES, Batch
from tml.projects.twhin.operators import Operators, Side
from tml.projects.twhin.scores import pairwise, rowwise


class TwhinModel(nn.Module):
    """Embedding tables for the node types and an operator for each relation.

    Args:
        sizes: the number of nodes of each type.
        relations: the relations, in the order of their numbers.
        config: dimension, operators, score and loss.
        generator: makes the first vectors.
        tables: makes the engine of the tables, with the arguments of `LocalTables`.

    Raises:
        ConfigError: the config speaks of a node type or a relation that is not there.

    `forward` takes a batch of `negatives.arrange`, whose edges join the same two node types and share an operator, and
    returns the loss with `positive`, the scores of its edges, (chunks, chunk_size) float32.

    Whoever uses the model asks "which tail (or head)?": `compare(queries(...), candidates(...))` are the scores of all
    candidates for each query.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        relations: Sequence[Relation],
        config: TwhinConfig,
        generator: torch.Generator,
        tables: Callable[..., Any] = LocalTables,
    ) -> None:
        super().__init__()
        self.relations, self.config = tuple(relations), config
        require_fit(config, relations, sizes)
        own = {node: config.embeddings.table(node) for node in sizes}
        self.embeddings = tables(
            sizes,
            config.embedding_dim,
            generator,
            config.embeddings.initial_scale,
            {node: table.data_type for node, table in own.items()},
            [node for node, table in own.items() if table.frozen],
        )
        operators = [config.operator_of(relation.name) for relation in relations]
        self.operators = Operators(operators, config.embedding_dim, config.reciprocal, generator.device)
        self._room_left: dict[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where the vectors are."""
        device: torch.device = self.embeddings.device
        return device

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
        """The loss of a batch, and the scores of its edges; backward hands the gradients of rows to the engine."""
        between = self.relations[int(batch["relation"][0, 0])]
        nodes = {role: between.head if role.startswith("head") else between.tail for role in ROLES}
        self.embeddings.begin(batch)
        room = self._room(batch)

        def read(role: str, chunks: slice) -> Tensor:
            rows = batch[role][chunks]
            vectors: Tensor = self.embeddings.read(nodes[role], rows.reshape(-1))
            return vectors.view(*rows.shape, self.config.embedding_dim)

        with torch.no_grad():
            step = LossOfBatch(self.config, self.operators, batch, Rows(read, _by_role(batch, nodes, room)))

        def deliver(scale: float) -> None:
            for node, read in batch["reads"].items():
                if self.embeddings.learns(node):
                    summed = sum_of_rows(room[node][: len(read["rows"])], read)
                    summed = summed if scale == 1 else summed.mul_(scale)
                    self.embeddings.add_gradients(node, read["unique"], summed)
            self.embeddings.finish()
            self._room_left |= room

        loss: Tensor = _WithGradients.apply(self.operators.weights, step.loss, step.of_weights, deliver)  # type: ignore[no-untyped-call]
        return loss, {"positive": step.positive}

    def _room(self, batch: Batch) -> dict[str, Tensor]:
        """By node type, room for the gradients of the rows that a batch reads: that of an earlier batch, if it is free.

        The system clears memory that it hands out, page by page, which took as long as a third of a step.
        """
        room, like = {}, self.operators.weights.detach()
        for node, read in batch["reads"].items():
            count, left = len(read["rows"]), self._room_left.pop(node, None)
            if left is None or len(left) < count or (left.dtype, left.device) != (like.dtype, like.device):
                left = like.new_empty(count + count // 16, like.shape[-1])
            room[node] = left
        return room


def _by_role(batch: Batch, nodes: Mapping[str, str], room: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of the room for each role, (chunks, n, dimension)."""
    parts, starts = {}, dict.fromkeys(room, 0)
    for role in ROLES:
        start, shape = starts[nodes[role]], batch[role].shape
        starts[nodes[role]] = end = start + shape.numel()
        whole = room[nodes[role]]
        parts[role] = whole[start:end].view(*shape, whole.shape[1])
    return parts


def require_fit(config: TwhinConfig, relations: Sequence[Relation], sizes: Mapping[str, int]) -> None:
    """Refuse a config that speaks of what a graph has not.

    Raises:
        ConfigError: with its name.
    """
    for table in config.embeddings.tables:
        if table.name not in sizes:
            allowed = ", ".join(sizes)
            raise ConfigError(f"embeddings.tables: found {table.name!r}, allowed are the graph's node types: {allowed}")
        if table.num_embeddings not in (None, sizes[table.name]):
            raise ConfigError(
                f"embeddings.tables: found {table.num_embeddings:,} as num_embeddings of {table.name}, allowed is the "
                f"graph's number of its nodes, {sizes[table.name]:,}"
            )
    ends = {relation.name: (relation.head, relation.tail) for relation in relations}
    for own in config.relations:
        if own.source is None and own.name not in ends:
            allowed = ", ".join(ends)
            raise ConfigError(f"relations: found {own.name!r}, allowed are those of the graph: {allowed}")
        given = {end for end in ("head", "tail") if end in own.model_fields_set}
        if own.name in ends and any(getattr(own, end) != ends[own.name][end == "tail"] for end in given):
            joined = " to ".join(ends[own.name])
            raise ConfigError(
                f"relations: {own.name} goes from {own.head} to {own.tail}, but in the graph from {joined}"
            )


def sum_of_rows(gradients: Tensor, read: Mapping[str, Tensor]) -> Tensor:
    """Gradients of rows that were read, (n, dimension), summed by row: (unique rows, dimension)."""
    return F.embedding_bag(read["order"], gradients, read["starts"], mode="sum")


class _WithGradients(torch.autograd.Function):
    """A loss whose gradients are there already: backward gives out the weights' and delivers those of the rows."""

    @staticmethod
    def forward(context: Any, _weights: Tensor, loss: Tensor, gradient: Tensor, deliver: Any) -> Tensor:
        context.gradient, context.deliver = gradient, deliver
        return loss.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        context.deliver(gradients[0].item())
        return context.gradient * gradients[0], None, None, None
