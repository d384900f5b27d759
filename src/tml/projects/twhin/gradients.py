"""The loss of a batch with its gradients in closed form.

Autograd would keep every matrix of scores until backward, and write gradients to memory several times over. Here the
scores of a block of edges against their negatives are made, turned into their gradient in place and used up, while they
are still in the processor's cache; what remains is one gradient row for each row read.

For each question ("which tail?", "which head?") the ends of the edges are prepared, which is the operator and for
cosines the division by the length; then come the negatives' blocks, the edges' own scores, and the way back through
what was prepared. Without reciprocal relations and dropout both questions share what is prepared.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.losses import of_negatives, of_positives
from tml.projects.twhin.narrow import narrow_candidates, narrow_queries, softmax_block
from tml.projects.twhin.negatives import Batch
from tml.projects.twhin.operators import Operators, Side, transform, transform_gradient
from tml.projects.twhin.scores import (
    add_block_gradients,
    block_scores,
    row_gradients,
    row_scores,
    unit,
    unit_gradient_,
)

BLOCK = 1 << 20
"""Scores that are in memory at a time; 4 MiB fit the caches of two cores."""

LEAST = 512
"""Edges of a block at least, where a chunk has very many negatives: with fewer, the gradients of the negatives would be
read and written more often than anything is made of them."""


@dataclass
class Rows:
    """Vectors that were read, (chunks, n, dimension), and their gradient, to be filled; by role in the batch."""

    vectors: dict[str, Tensor]
    gradients: dict[str, Tensor]
    written: set[str] = field(default_factory=set)

    def add(self, role: str, gradient: Tensor) -> None:
        """Count a gradient towards that of a role."""
        if role not in self.written:
            if gradient is not self.gradients[role]:
                self.gradients[role].copy_(gradient)
            self.written.add(role)
        else:
            self.gradients[role].add_(gradient)


class _Prepared:
    """Vectors of a role as they are compared, and the way back."""

    def __init__(self, step: "LossOfBatch", role: str, end: Side, found: Side) -> None:
        self.step, self.role = step, role
        operators, relation = step.operators, step.relation
        self.raw = step.rows.vectors[role]
        self.place = operators.place(step.first, end, found)
        self.kind = operators.operators[step.first].operator
        self.weights = None if self.place is None else operators.weights.detach()[(*self.place, relation)]
        self.transformed = self.raw if self.weights is None else transform(self.kind, self.raw, self.weights)
        self.compared = unit(self.transformed) if step.config.score == "cosine" else self.transformed
        self.mask: Tensor | None = None
        # The gradient is made where that of the rows belongs, unless something is there already.
        place = step.rows.gradients[role]
        self.gradient = torch.empty_like(place) if role in step.rows.written else place

    def drop(self, share: float) -> None:
        """Set a share of the numbers to 0 and make the others larger."""
        self.mask = torch.empty_like(self.compared).bernoulli_(1 - share).div_(1 - share)
        self.plain, self.compared = self.compared, self.compared * self.mask

    def back(self) -> None:
        """From the gradient of what is compared to that of the rows and the relations."""
        gradient = self.gradient
        if self.mask is not None:
            gradient.mul_(self.mask)
        if self.step.config.score == "cosine":
            gradient = unit_gradient_(gradient, self.compared if self.mask is None else self.plain, self.transformed)
        if self.weights is not None and self.place is not None:
            gradient, of_weights = transform_gradient(self.kind, gradient, self.raw, self.weights)
            into = self.step.of_weights[self.place]
            into.index_add_(0, self.step.relation.reshape(-1), of_weights.reshape(-1, into.shape[1]))
        self.step.rows.add(self.role, gradient)


class LossOfBatch:
    """Computes the loss of a batch and fills in the gradients.

    Args:
        config: score, loss, temperature, regularisation.
        operators: of the relations.
        batch: as `negatives.arrange` makes it.
        rows: the vectors of `head`, `tail`, `head_negatives`, `tail_negatives`.

    Attributes:
        loss: a scalar, the mean over the edges by weight.
        positive: the scores of the edges, (chunks, edges); with reciprocal relations the mean of the two.
        of_weights: the gradient of the operators' weights.
    """

    def __init__(self, config: TwhinConfig, operators: Operators, batch: Batch, rows: Rows) -> None:
        self.config, self.operators, self.batch, self.rows = config, operators, batch, rows
        self.relation: Tensor = batch["relation"]
        self.count: Tensor = batch["count"].clamp(min=1)
        self.first = int(self.relation[0, 0])
        self.scale = 1 / config.temperature
        self.of_weights = torch.zeros_like(operators.weights)
        weight = batch["weight"].to(rows.vectors["head"].dtype)
        self.share = weight / weight.sum().clamp_min(1e-30)
        questions: list[tuple[Side, ...]] = [("tail", "head")]
        if config.reciprocal or config.dropout:
            questions = [("tail",), ("head",)]
        self.loss, self.positive = self.share.new_zeros(()), torch.zeros_like(self.share)
        for sides in questions:
            self._ask(sides, 1 / len(questions))
        if config.l2 or config.n3:
            self._regularise()

    def _ask(self, sides: tuple[Side, ...], part: float) -> None:
        found = sides[0]
        ends = {side: _Prepared(self, side, side, found) for side in ("head", "tail")}
        if self.config.dropout:
            ends["head" if found == "tail" else "tail"].drop(self.config.dropout)
        positive = row_scores(self.config.score, ends["head"].compared, ends["tail"].compared, self.scale)
        self.positive += positive * (part / self.scale)
        value, of_positive = of_positives(self.config.loss, positive, self.share * part)
        self.loss += value.sum()
        fresh = set(ends)
        for side in sides:
            asked: Side = "head" if side == "tail" else "tail"
            of_positive += self._against_negatives(side, ends[asked], positive, found)
            fresh.discard(asked)
        factor, head, tail = row_gradients(
            self.config.score, of_positive, ends["head"].compared, ends["tail"].compared, self.scale
        )
        for side, other in (("head", head), ("tail", tail)):
            gradient = ends[side].gradient
            if side in fresh:
                torch.mul(factor, other, out=gradient)
            else:
                gradient.addcmul_(factor, other)
        for prepared in ends.values():
            prepared.back()

    def _against_negatives(self, side: Side, queries: _Prepared, positive: Tensor, found: Side) -> Tensor:
        """Adds the negatives of a side to loss and gradients; returns the gradient of the positives."""
        candidates = _Prepared(self, f"{side}_negatives", side, found)
        of_positive = torch.zeros_like(positive)
        share = self._share_of_negatives()
        if not candidates.compared.shape[1]:
            candidates.gradient.zero_()
            queries.gradient.zero_()
        narrow = self.config.products == "bf16"
        of_queries, of_candidates = queries.compared, candidates.compared
        if narrow:
            of_queries, of_candidates = narrow_queries(of_queries, self.scale), narrow_candidates(of_candidates)
        for chunks, edges, excluded, new in self._blocks(side):
            pair = of_queries[chunks, edges], of_candidates[chunks]
            into = queries.gradient[chunks, edges], candidates.gradient[chunks]
            if narrow:
                own = positive[chunks, edges], share[chunks, edges]
                value, of_positive[chunks, edges] = softmax_block(pair, *own, excluded, into, self.scale, new)
                self.loss += value
                continue
            scores, distances = block_scores(self.config.score, *pair, self.scale)
            if len(excluded):
                scores.view(-1).index_fill_(0, excluded, -torch.inf)
            value, of_positive[chunks, edges] = of_negatives(
                self.config.loss, scores, positive[chunks, edges], share[chunks, edges], self.config.margin
            )
            self.loss += value
            add_block_gradients(self.config.score, scores, distances, pair, into, self.scale, (True, new))
        candidates.back()
        return of_positive

    def _share_of_negatives(self) -> Tensor:
        share: Tensor = self.share
        if self.config.loss == "softmax":
            return share / 2
        weight = self.config.negative_weight if self.config.loss == "logistic" else 1.0
        return share * weight / self.count

    def _blocks(self, side: Side) -> Iterator[tuple[slice, slice, Tensor, bool]]:
        """Chunks and edges of a block, its scores that do not count, and whether its chunks come the first time."""
        chunks, edges = self.share.shape
        negatives = self.batch[f"{side}_negatives"].shape[1]
        if not negatives:
            return
        of_chunks = max(1, min(chunks, BLOCK // (edges * negatives)))
        of_edges = edges if of_chunks > 1 else min(edges, max(BLOCK // negatives, LEAST))
        excluded: Tensor = self.batch[f"{side}_excluded"]
        starts = [(c, e) for c in range(0, chunks, of_chunks) for e in range(0, edges, of_edges)]
        first = [(c * edges + e) * negatives for c, e in starts]
        ends = torch.searchsorted(excluded, torch.tensor([*first[1:], chunks * edges * negatives]).to(excluded))
        before = 0
        for (c, e), start, end in zip(starts, first, ends.tolist(), strict=True):
            yield slice(c, c + of_chunks), slice(e, e + of_edges), excluded[before:end] - start, e == 0
            before = end

    def _regularise(self) -> None:
        """Add the penalties of the edges' vectors, those of nodes and of relations."""
        for role in ("head", "tail"):
            value, gradient = self._penalty(self.rows.vectors[role])
            self.loss += value
            self.rows.add(role, gradient)
        used = {self.operators.place(self.first, end, found) for end in ("head", "tail") for found in ("head", "tail")}
        for place in sorted(place for place in used if place):
            value, gradient = self._penalty(self.operators.weights.detach()[(*place, self.relation)])
            self.loss += value
            into, dim = self.of_weights[place], gradient.shape[-1]
            relation = self.relation.expand(gradient.shape[:2]).reshape(-1)
            into.index_add_(0, relation, gradient.reshape(-1, dim))

    def _penalty(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Its sum by the edges' shares, and the gradient (chunks, edges, dimension)."""
        share = self.share.unsqueeze(-1)
        lengths = vectors.abs()
        if self.operators.operators[self.first].operator == "complex_diagonal":
            real, imaginary = vectors.chunk(2, dim=-1)
            lengths = torch.hypot(real, imaginary)
        value = ((self.config.l2 * lengths.square() + self.config.n3 * lengths**3) * share).sum()
        if lengths.shape != vectors.shape:
            lengths = torch.cat([lengths, lengths], dim=-1)
        return value, (2 * self.config.l2 + 3 * self.config.n3 * lengths) * vectors * share
