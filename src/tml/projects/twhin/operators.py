"""Operators: what a relation does to a node's vector before it is compared with another.

    identity            x
    translation         x + r                      (TransE, Bordes et al. 2013; TwHIN)
    diagonal            x ⊙ r                      (DistMult, Yang et al. 2015)
    complex_diagonal    x ⊙ r over complex numbers  (ComplEx, Trouillon et al. 2016)

A complex vector of dimension d is d / 2 numbers: first their real parts, then their imaginary ones. With the dot
product x ⊙ r · y is then the real part of the product with the conjugate of y, which is ComplEx's score.

An operator works on the head of an edge, on the tail, or on both with a vector for each. With reciprocal relations
there is a second set of vectors for the question "which head?": there the tail is asked from and takes the head's
place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tml.core.errors import ConfigError

Operator = Literal["identity", "translation", "diagonal", "complex_diagonal"]
Side = Literal["head", "tail"]
Sides = Literal["head", "tail", "both"]


@dataclass(frozen=True)
class RelationOperator:
    """A relation's operator and the side or sides of an edge that it works on."""

    operator: Operator = "translation"
    side: Sides = "head"

    def works_on(self, side: Side) -> bool:
        """Whether vectors of this side are changed."""
        return self.operator != "identity" and self.side in (side, "both")


def transform(operator: Operator, vectors: Tensor, weights: Tensor) -> Tensor:
    """Apply an operator.

    Args:
        operator: which one.
        vectors: (..., dimension).
        weights: the relation's vector r, of a shape that broadcasts to that of `vectors`.
    """
    if operator == "translation":
        return vectors + weights
    if operator == "diagonal":
        return vectors * weights
    if operator == "complex_diagonal":
        real, imaginary = vectors.chunk(2, dim=-1)
        by_real, by_imaginary = weights.chunk(2, dim=-1)
        parts = real * by_real - imaginary * by_imaginary, real * by_imaginary + imaginary * by_real
        return torch.cat(parts, dim=-1)
    return vectors


def transform_gradient(operator: Operator, gradient: Tensor, vectors: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `transform`: of the vectors, maybe in the place of `gradient`, and of the weights.

    The gradient of the weights has the shape of `vectors`, or of the weights where they have one vector a chunk.
    """
    if operator == "translation":
        of_weights = gradient
    elif operator == "diagonal":
        of_weights = gradient * vectors
        gradient = gradient.mul_(weights)
    else:
        of_weights = transform("complex_diagonal", gradient, _conjugate(vectors))
        gradient = transform("complex_diagonal", gradient, _conjugate(weights))
    return gradient, of_weights.sum(1, keepdim=True) if weights.shape[1] == 1 else of_weights


def _conjugate(vectors: Tensor) -> Tensor:
    real, imaginary = vectors.chunk(2, dim=-1)
    return torch.cat([real, -imaginary], dim=-1)


class Operators(nn.Module):
    """The operators of all relations, and their vectors in one parameter.

    Args:
        operators: by number of relation.
        dim: the dimension of vectors.
        reciprocal: whether the question "which head?" has vectors of its own.
        device: where the vectors are.

    Attributes:
        weights: (directions, 2, relations, dimension) float32; direction 0 asks for tails (and, unless `reciprocal`,
            for heads), 1 for heads; then the vectors for the end that is asked from (for direction 0 the head), and
            those for the end that is found. What no operator uses stays as it started. Every operator starts without
            effect: translations from 0, factors from 1.

    Raises:
        ConfigError: complex numbers in an odd dimension.
    """

    def __init__(
        self,
        operators: Sequence[RelationOperator],
        dim: int,
        reciprocal: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.operators, self.reciprocal = tuple(operators), reciprocal
        if dim % 2 and any(o.operator == "complex_diagonal" for o in self.operators):
            raise ConfigError(f"embedding_dim: found {dim}, allowed with complex_diagonal are even numbers")
        weights = torch.zeros(2 if reciprocal else 1, 2, len(self.operators), dim, device=device)
        for number, of in enumerate(self.operators):
            if of.operator == "diagonal":
                weights[:, :, number] = 1.0
            if of.operator == "complex_diagonal":
                weights[:, :, number, : dim // 2] = 1.0
        self.weights = nn.Parameter(weights)

    def forward(self, vectors: Tensor, relation: int | Tensor, end: Side, found: Side) -> Tensor:
        """Transform vectors of one end of edges.

        Args:
            vectors: (..., dimension), of heads or of tails.
            relation: a number, or numbers of relations that share their operator and side; their shape with the
                dimension behind it broadcasts to that of `vectors`.
            end: the end of the edge that the vectors are of.
            found: the end that is asked for.
        """
        operator = self.operators[relation if isinstance(relation, int) else int(relation.reshape(-1)[0])]
        weights = self.of(relation, end, found)
        return vectors if weights is None else transform(operator.operator, vectors, weights)

    def of(self, relation: int | Tensor, end: Side, found: Side) -> Tensor | None:
        """The relation's vectors, (..., dimension), that work on an end of edges; None where none does."""
        place = self.place(relation, end, found)
        return None if place is None else self.weights[(*place, relation)]

    def place(self, relation: int | Tensor, end: Side, found: Side) -> tuple[int, int] | None:
        """Where in `weights` the vectors are that work on an end of edges; None where none does."""
        backwards = self.reciprocal and found == "head"
        source = (end == "head") != backwards
        operator = self.operators[relation if isinstance(relation, int) else int(relation.reshape(-1)[0])]
        if not operator.works_on("head" if source else "tail"):
            return None
        return int(backwards), 0 if source else 1
