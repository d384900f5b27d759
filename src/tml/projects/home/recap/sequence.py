"""What the viewer was shown last, read in the light of the post that is ranked: target attention.

Each of the last posts s is a vector of the post, of what became of it, and of how long ago it was; the post t that is
ranked is a vector out of the same tables. A post's vector v is a trained one of its id, found by hash, and where a file
has vectors of posts (TwHIN's) a linear map of that one, which stays as it is. With H heads of width d/H,

    e_s = [v(s), o(s) + a(s)]                 a_hs = softmax over s of (q_h(t) · k_h(e_s) / √(d/H) + b_h(age of s))
    out = layer norm of [v(t), concat over h of Σ_s a_hs · w_h(e_s), mean over s of w(e_s)]

as in the Deep Interest Network (Zhou et al., KDD 2018, arXiv 1706.06978), with the scaled dot products of attention
(Vaswani et al. 2017) in place of its small network. o is linear in the bits of the engagements; ages are buckets of
log2(minutes + 1), with one more for an age that is not known.

A viewer is what they saw, so that a viewer without a past in training has vectors, too: unlike a viewer's id, this does
not remember single examples.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tml.data.examples import SEQUENCE
from tml.data.id_numbers import NO_ID
from tml.projects.home.recap.input_config import LargeTableConfig, SequenceAttentionConfig
from tml.projects.home.recap.large_embeddings import HashedTable

AGES = 16
"""Buckets of the age; the last one is for ages that are not known."""
POSTS, OUTCOMES, SECONDS = SEQUENCE
ROWS, TARGET_ROW = "sequence_rows", "sequence_target_row"
"""The rows of the file's vectors: of the posts of the sequence, and of the post that is ranked."""


class SequenceAttention(nn.Module):
    """A batch to (batch, sum of `fields`).

    Args:
        config: sizes.
        engagements: how many bits an outcome has.
        vectors: rows and width of the file's vectors, row 0 for a post without one; None for no file.
        generator: draws the initial weights.

    Attributes:
        columns: what it reads of (batch,) beside the sequence's own.
        lists: what it reads of (batch, length).
        fields: the widths of its parts: the post that is ranked, the attended, the mean.
    """

    bits: Tensor
    vectors: Tensor

    def __init__(
        self,
        config: SequenceAttentionConfig,
        engagements: int,
        vectors: tuple[int, int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        width = config.embedding_dim
        self.columns: tuple[str, ...] = ("post_id",)
        self.lists: tuple[str, ...] = SEQUENCE
        self.fields = (width, width, width)
        self.heads = config.num_heads
        self.posts = HashedTable(
            LargeTableConfig(
                name="post_id",
                num_embeddings=config.num_embeddings,
                embedding_dim=width,
                drop_probability=config.drop_probability,
            ),
            generator,
        )
        self.projection: nn.Linear | None = None
        if vectors is not None:
            self.columns, self.lists = (*self.columns, TARGET_ROW), (*self.lists, ROWS)
            self.register_buffer("vectors", torch.zeros(vectors))
            self.projection = nn.Linear(vectors[1], width, bias=False)
            nn.init.xavier_uniform_(self.projection.weight, generator=generator)
        self.outcome = nn.Linear(engagements, width)
        self.age = nn.Parameter(torch.empty(AGES, width))
        self.age_bias = nn.Parameter(torch.zeros(AGES, self.heads))
        nn.init.normal_(self.age, std=0.1, generator=generator)
        self.query, self.key, self.value = (
            nn.Linear(width, width),
            nn.Linear(2 * width, width),
            nn.Linear(2 * width, width),
        )
        for linear in (self.outcome, self.query, self.key, self.value):
            nn.init.xavier_uniform_(linear.weight, generator=generator)
            nn.init.zeros_(linear.bias)
        self.norm = nn.LayerNorm(sum(self.fields))
        self.register_buffer("bits", 1 << torch.arange(engagements), persistent=False)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """`sequence_posts`, `sequence_outcomes`, `sequence_ages` (batch, length) and `post_id` (batch,)."""
        posts, seconds = batch[POSTS], batch[SECONDS]
        there = posts != NO_ID
        target = self._posts(batch["post_id"], batch.get(TARGET_ROW))
        bucket = torch.log2(seconds.clamp(min=0) / 60 + 1).long().clamp(max=AGES - 2)
        bucket = torch.where(seconds < 0, AGES - 1, bucket)
        engaged = (batch[OUTCOMES].unsqueeze(-1) & self.bits) != 0
        told = self.outcome(engaged.to(seconds.dtype)) + F.embedding(bucket, self.age)
        events = torch.cat([self._posts(posts, batch.get(ROWS)), told], dim=2)

        rows, length, width = len(posts), posts.shape[1], target.shape[1]
        part = width // self.heads
        query = self.query(target).view(rows, self.heads, part, 1)
        key, value = (
            linear(events).view(rows, length, self.heads, part).transpose(1, 2) for linear in (self.key, self.value)
        )
        scores = (key @ query).squeeze(3) / math.sqrt(part) + F.embedding(bucket, self.age_bias).transpose(1, 2)
        weights = scores.masked_fill(~there.unsqueeze(1), -1e4).softmax(dim=2) * there.unsqueeze(1)
        attended = (weights.unsqueeze(2) @ value).reshape(rows, width)
        each = there / there.sum(dim=1, keepdim=True).clamp(min=1)
        mean = (each[:, None, None].to(value.dtype) @ value).reshape(rows, width)
        outputs: Tensor = self.norm(torch.cat([target, attended, mean], dim=1))
        return outputs

    def _posts(self, ids: Tensor, rows: Tensor | None) -> Tensor:
        vectors: Tensor = self.posts(ids)
        if self.projection is None:
            return vectors
        assert rows is not None
        both: Tensor = vectors + self.projection(self.vectors[rows])
        return both

    @torch.no_grad()
    def initialise(self, vectors: Tensor) -> None:
        """Take over the file's vectors, (rows - 1, width), at one length: √width, as of a layer norm's output."""
        length = vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
        self.vectors[1:] = vectors / length * math.sqrt(vectors.shape[1])
