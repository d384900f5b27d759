"""Position debias: where a post was served explains engagement in training, and a ranking does without it.

What stands first is engaged with more, whatever it is. With the position as an input the model need not read that into
the features of the posts which ranked well in the past; but a ranking that is being made has no positions yet. So each
position has a trained vector, and there is one more, the neutral one, for an unknown position. In training the position
is dropped at random, which trains the neutral vector to stand for the mean of all positions; a ranking uses it for
every post. Dropping an input in training so that a model can do without it is after Volkovs et al. 2017 (DropoutNet).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tml.projects.home.recap.input_config import PositionDebiasConfig

UNKNOWN = -1
"""Stands in a batch for no position."""


class PositionDebias(nn.Module):
    """A batch to (batch, `out_width`): the vector of each example's position."""

    def __init__(self, config: PositionDebiasConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.last, self.drop_probability = config.max_position, config.drop_probability
        self.index, self.out_width = config.position_feature_index, config.num_dims
        # Row 0 is the neutral one, then position 0, 1, …
        self.table = nn.Embedding(config.max_position + 2, config.num_dims)
        nn.init.normal_(self.table.weight, std=0.05, generator=generator)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """`position` (batch,) of int64, or the discrete column whose 0 is the unknown and 1 the first position.

        A batch without `position`, and a position below 0, are unknown.
        """
        if self.index is not None:
            position = batch["discrete"][:, self.index] - 1
        elif "position" in batch:
            position = batch["position"]
        else:
            return self.table.weight[:1].expand(len(batch["continuous"]), -1)
        rows = position.clamp(UNKNOWN, self.last) + 1
        if self.training and self.drop_probability:
            rows = torch.where(torch.rand(rows.shape, device=rows.device) < self.drop_probability, 0, rows)
        vectors: Tensor = self.table(rows)
        return vectors
