"""The loss of a batch with its gradients in closed form.

Autograd would keep every matrix of scores until backward, and write gradients to memory several times over. Here a part
of the batch at a time, a few chunks, is read, prepared, scored and turned into gradients, all while it is still in the
processor's cache; what remains is one gradient row for each row read.

For each question ("which tail?", "which head?") the ends of the edges are prepared, which is the operator and for
cosines the division by the length; then come the scores of the negatives, in blocks where even one chunk has very many,
the edges' own scores, and the way back through what was prepared. Without reciprocal relations and dropout both
questions share what is prepared.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.losses import LogisticNegatives, of_negatives, of_positives
from tml.projects.twhin.narrow import narrow_candidates, narrow_queries, softmax_block
from tml.projects.twhin.negatives import ROLES, SIDES, Batch
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
    """The vectors of a batch, and room for their gradients.

    Attributes:
        read: the vectors of some chunks of a role, (chunks, n, dimension).
        gradients: by role, to be filled, (chunks, n, dimension).
    """

    read: Callable[[str, slice], Tensor]
    gradients: dict[str, Tensor]


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
        self.first = int(batch["relation"][0, 0])
        self.of_weights = torch.zeros_like(operators.weights)
        weight = batch["weight"].to(rows.gradients["head"].dtype)
        self.share = weight / weight.sum().clamp_min(1e-30)
        self.of_negatives = self._share_of_negatives()
        self.loss, self.positive = self.share.new_zeros(()), torch.zeros_like(self.share)
        chunks, edges = self.share.shape
        negatives = {side: batch[f"{side}_negatives"].shape[1] for side in SIDES}
        # An accelerator has no such caches, and each call costs it more.
        block = BLOCK if self.share.device.type == "cpu" else BLOCK << 6
        of_part = max(1, block // (edges * max(1, *negatives.values())))
        # Threads divide the chunks of a part among themselves.
        of_part -= of_part % min(of_part, torch.get_num_threads())
        self.of_block = {s: edges if of_part > 1 else max(block // max(n, 1), LEAST) for s, n in negatives.items()}
        self.excluded = {side: self._excluded(side, of_part) for side in SIDES}
        self.logistic = {s: LogisticNegatives(self.of_negatives, self.share.numel() * n) for s, n in negatives.items()}
        for start in range(0, chunks, of_part):
            _Part(self, slice(start, start + of_part)).run()
        for of_side in self.logistic.values():
            self.loss += of_side.loss()

    def _share_of_negatives(self) -> Tensor:
        share: Tensor = self.share
        if self.config.loss == "softmax":
            return share / 2
        weight = self.config.negative_weight if self.config.loss == "logistic" else 1.0
        count: Tensor = self.batch["count"].clamp(min=1)
        return share * weight / count

    def _excluded(self, side: Side, of_part: int) -> Iterator[Tensor]:
        """For each block, in their order, which of its scores count nothing."""
        chunks, edges = self.share.shape
        negatives, excluded = self.batch[f"{side}_negatives"].shape[1], self.batch[f"{side}_excluded"]
        blocks = range(0, chunks, of_part), range(0, edges, self.of_block[side])
        starts = [(chunk * edges + edge) * negatives for chunk in blocks[0] for edge in blocks[1]]
        ends = torch.searchsorted(excluded, torch.tensor([*starts[1:], chunks * edges * negatives]).to(excluded))
        before = 0
        for start, end in zip(starts, ends.tolist(), strict=True):
            yield excluded[before:end] - start
            before = end


class _Part:
    """Some chunks of a batch."""

    def __init__(self, step: LossOfBatch, chunks: slice) -> None:
        self.step, self.chunks, self.config = step, chunks, step.config
        self.relation: Tensor = step.batch["relation"][chunks]
        self.share, self.of_negatives, self.positive = (
            of_batch[chunks] for of_batch in (step.share, step.of_negatives, step.positive)
        )
        self.scale = 1 / self.config.temperature
        self.vectors = {role: step.rows.read(role, chunks) for role in ROLES}
        self.gradients = {role: gradient[chunks] for role, gradient in step.rows.gradients.items()}
        self.written: set[str] = set()

    def run(self) -> None:
        """Add the part's loss and gradients to the batch's."""
        questions: list[tuple[Side, ...]] = [("tail", "head")]
        if self.config.reciprocal or self.config.dropout:
            questions = [("tail",), ("head",)]
        for sides in questions:
            self._ask(sides, 1 / len(questions))
        if self.config.l2 or self.config.n3:
            self._regularise()

    def add(self, role: str, gradient: Tensor) -> None:
        """Count a gradient towards that of a role."""
        if role not in self.written:
            if gradient is not self.gradients[role]:
                self.gradients[role].copy_(gradient)
            self.written.add(role)
        else:
            self.gradients[role].add_(gradient)

    def _ask(self, sides: tuple[Side, ...], part: float) -> None:
        found = sides[0]
        ends = {side: _Prepared(self, side, side, found) for side in SIDES}
        if self.config.dropout:
            ends["head" if found == "tail" else "tail"].drop(self.config.dropout)
        positive = row_scores(self.config.score, ends["head"].compared, ends["tail"].compared, self.scale)
        self.positive += positive * (part / self.scale)
        value, of_positive = of_positives(self.config.loss, positive, self.share * part)
        self.step.loss += value.sum()
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

    def _against_negatives(self, side: Side, queries: "_Prepared", positive: Tensor, found: Side) -> Tensor:
        """Adds the negatives of a side to loss and gradients; returns the gradient of the positives."""
        candidates = _Prepared(self, f"{side}_negatives", side, found)
        of_positive = torch.zeros_like(positive)
        if not candidates.compared.shape[1]:
            queries.gradient.zero_()
            return of_positive
        narrow = self.config.products == "bf16"
        of_queries, of_candidates = queries.compared, candidates.compared
        if narrow:
            of_queries, of_candidates = narrow_queries(of_queries, self.scale), narrow_candidates(of_candidates)
        size = self.step.of_block[side]
        for start in range(0, positive.shape[1], size):
            edges, new, excluded = slice(start, start + size), start == 0, next(self.step.excluded[side])
            pair = of_queries[:, edges], of_candidates
            into = queries.gradient[:, edges], candidates.gradient
            own = positive[:, edges], self.of_negatives[:, edges]
            if narrow:
                value, of_positive[:, edges] = softmax_block(pair, *own, excluded, into, self.scale, new)
                self.step.loss += value
                continue
            scores, distances = block_scores(self.config.score, *pair, self.scale)
            if len(excluded):
                scores.view(-1).index_fill_(0, excluded, -torch.inf)
            if self.config.loss == "logistic":
                self.step.logistic[side].to_gradient_(scores, own[1])
            else:
                value, of_positive[:, edges] = of_negatives(self.config.loss, scores, *own, self.config.margin)
                self.step.loss += value
            add_block_gradients(self.config.score, scores, distances, pair, into, self.scale, (True, new))
        candidates.back()
        return of_positive

    def _regularise(self) -> None:
        """Add the penalties of the edges' vectors, those of nodes and of relations."""
        for role in ("head", "tail"):
            value, gradient = self._penalty(self.vectors[role])
            self.step.loss += value
            self.add(role, gradient)
        operators, first = self.step.operators, self.step.first
        used = {operators.place(first, end, found) for end in SIDES for found in SIDES}
        for place in sorted(place for place in used if place):
            value, gradient = self._penalty(operators.weights.detach()[(*place, self.relation)])
            self.step.loss += value
            into, dim = self.step.of_weights[place], gradient.shape[-1]
            relation = self.relation.expand(gradient.shape[:2]).reshape(-1)
            into.index_add_(0, relation, gradient.reshape(-1, dim))

    def _penalty(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Its sum by the edges' shares, and the gradient (chunks, edges, dimension)."""
        share = self.share.unsqueeze(-1)
        lengths = vectors.abs()
        if self.step.operators.operators[self.step.first].operator == "complex_diagonal":
            real, imaginary = vectors.chunk(2, dim=-1)
            lengths = torch.hypot(real, imaginary)
        value = ((self.config.l2 * lengths.square() + self.config.n3 * lengths**3) * share).sum()
        if lengths.shape != vectors.shape:
            lengths = torch.cat([lengths, lengths], dim=-1)
        return value, (2 * self.config.l2 + 3 * self.config.n3 * lengths) * vectors * share


class _Prepared:
    """Vectors of a role as they are compared, and the way back."""

    def __init__(self, part: _Part, role: str, end: Side, found: Side) -> None:
        self.part, self.role = part, role
        operators, relation, first = part.step.operators, part.relation, part.step.first
        self.raw = part.vectors[role]
        self.place = operators.place(first, end, found)
        self.kind = operators.operators[first].operator
        self.weights = None if self.place is None else F.embedding(relation, operators.weights[self.place])
        self.transformed = self.raw if self.weights is None else transform(self.kind, self.raw, self.weights)
        self.compared = unit(self.transformed) if part.config.score == "cosine" else self.transformed
        self.mask: Tensor | None = None
        # The gradient is made where that of the rows belongs, unless something is there already.
        place = part.gradients[role]
        self.gradient = torch.empty_like(place) if role in part.written else place

    def drop(self, share: float) -> None:
        """Set a share of the numbers to 0 and make the others larger."""
        self.mask = torch.empty_like(self.compared).bernoulli_(1 - share).div_(1 - share)
        self.plain, self.compared = self.compared, self.compared * self.mask

    def back(self) -> None:
        """From the gradient of what is compared to that of the rows and the relations."""
        gradient = self.gradient
        if self.mask is not None:
            gradient.mul_(self.mask)
        if self.part.config.score == "cosine":
            gradient = unit_gradient_(gradient, self.compared if self.mask is None else self.plain, self.transformed)
        if self.weights is not None and self.place is not None:
            gradient, of_weights = transform_gradient(self.kind, gradient, self.raw, self.weights)
            into = self.part.step.of_weights[self.place]
            into.index_add_(0, self.part.relation.reshape(-1), of_weights.reshape(-1, into.shape[1]))
        self.part.add(self.role, gradient)
