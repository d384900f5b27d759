"""From a batch's columns to one vector an example.

**Double norm log** tames counts and rates that span many orders of magnitude:

    x ↦ 0 where x is not finite
      ↦ sign(x)·log(1 + |x|)
      ↦ batch norm, clipped to ±5
      ↦ layer norm over the row, together with the binary features

Each pre-trained embedding gets a layer norm of its own; each discrete column a small table of trained vectors, whose
row 0 stands for an unknown value and for every index outside the table. All of it is concatenated.

The published layer norm adds an epsilon of 0 to the variance: a row of equal values gives 0/0. An epsilon below
`EPSILON_FLOOR` is raised to it. That is under float32's resolution for a row with a variance near one, as rows have
after a batch norm, and gives a row of equal values a finite output and gradient.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tml.core.errors import DataError
from tml.projects.home.recap.config import (
    BatchNormConfig,
    DoubleNormLogConfig,
    InputShapes,
    ModelConfig,
)

EPSILON_FLOOR = 1e-8


class UnbiasedBatchNorm(nn.BatchNorm1d):
    """Batch norm whose running statistics carry nothing of the values they start from.

    Running averages begin at an arbitrary value, whose share after n batches is (1 - momentum)^n: 0.08 after 250
    batches at the published momentum of 0.01. A short run would be evaluated with a variance that no batch had. Here
    they begin at zero and are divided by 1 - (1 - momentum)^n when used, as in Adam. In training it is
    `torch.nn.BatchNorm1d`.
    """

    def __init__(self, width: int, config: BatchNormConfig) -> None:
        super().__init__(width, affine=config.affine, momentum=config.momentum)
        self.decay = math.log1p(-config.momentum)

    def reset_running_stats(self) -> None:
        """Forget every batch."""
        super().reset_running_stats()
        if self.running_var is not None:
            self.running_var.zero_()

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (batch, width) to outputs of the same shape."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        if self.training:
            return super().forward(inputs)
        batches = self.num_batches_tracked
        share = -torch.expm1(batches.clamp(min=1) * self.decay)
        variance = torch.where(batches > 0, self.running_var / share, 1.0)
        mean = self.running_mean / share
        return F.batch_norm(inputs, mean, variance, self.weight, self.bias, training=False, eps=self.eps)


class DoubleNormLog(nn.Module):
    """Continuous (batch, C) and binary (batch, B) features to (batch, C + B)."""

    def __init__(self, config: DoubleNormLogConfig, continuous: int, binary: int) -> None:
        super().__init__()
        self.clip = config.clip_magnitude
        self.batch_norm = UnbiasedBatchNorm(continuous, config.batch_norm_config)
        self.layer_norm = nn.LayerNorm(continuous + binary, eps=max(config.layer_norm_config.epsilon, EPSILON_FLOOR))

    def forward(self, continuous: Tensor, binary: Tensor) -> Tensor:
        """Continuous may hold NaN and infinities, which count as 0."""
        finite = torch.nan_to_num(continuous, nan=0.0, posinf=0.0, neginf=0.0)
        logs = torch.copysign(torch.log1p(finite.abs()), finite)
        clipped = self.batch_norm(logs).clamp(-self.clip, self.clip)
        outputs: Tensor = self.layer_norm(torch.cat([clipped, binary], dim=1))
        return outputs


class SmallEmbeddings(nn.Module):
    """Discrete columns (batch, D) of int64 to (batch, D * width): one table with the columns' values one after another.

    Args:
        sizes: the number of values of each column; 0 is the unknown value.
        width: the width of each vector.
        generator: draws the initial vectors, from a narrow normal distribution: a value seen rarely stays near zero.
    """

    offsets: Tensor
    sizes: Tensor

    def __init__(self, sizes: tuple[int, ...], width: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(sizes), width)
        nn.init.normal_(self.table.weight, std=0.05, generator=generator)
        ends = torch.tensor(sizes).cumsum(0)
        self.register_buffer("sizes", torch.tensor(sizes), persistent=False)
        self.register_buffer("offsets", ends - self.sizes, persistent=False)

    def forward(self, discrete: Tensor) -> Tensor:
        """An index below 0 or beyond its column's size is read as 0."""
        known = torch.where((discrete >= 0) & (discrete < self.sizes), discrete, 0)
        vectors: Tensor = self.table(known + self.offsets)
        return vectors.flatten(start_dim=1)


class Featurization(nn.Module):
    """A batch to (batch, `out_width`): double norm log, then the embeddings in order of `shapes`, then the discrete.

    Raises:
        DataError: when a batch lacks an input or has it in another width.
    """

    def __init__(self, config: ModelConfig, shapes: InputShapes, generator: torch.Generator | None = None) -> None:
        super().__init__()
        double_norm_log = config.featurization_config.double_norm_log_config
        assert double_norm_log is not None
        self.dense = DoubleNormLog(double_norm_log, shapes.continuous, shapes.binary)
        self.embedding_norms = nn.ModuleDict({name: nn.LayerNorm(width) for name, width in shapes.embeddings.items()})
        self.widths = {"continuous": shapes.continuous, "binary": shapes.binary, **shapes.embeddings}
        self.out_width = sum(self.widths.values())
        self.discrete: SmallEmbeddings | None = None
        if config.small_embeddings and shapes.discrete:
            width = config.small_embeddings.embedding_dim
            self.discrete = SmallEmbeddings(shapes.discrete, width, generator)
            self.widths["discrete"] = len(shapes.discrete)
            self.out_width += len(shapes.discrete) * width

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The batch's inputs as one tensor (batch, out_width)."""
        self._check(batch)
        parts = [self.dense(batch["continuous"], batch["binary"])]
        parts += [norm(batch[name]) for name, norm in self.embedding_norms.items()]
        if self.discrete is not None:
            parts.append(self.discrete(batch["discrete"]))
        return torch.cat(parts, dim=1)

    def _check(self, batch: Mapping[str, Tensor]) -> None:
        for name, width in self.widths.items():
            if name not in batch:
                raise DataError(f"batch: found no {name!r}, the model needs {', '.join(self.widths)}")
            if batch[name].shape[1:] != (width,):
                found = tuple(batch[name].shape)
                raise DataError(f"batch: {name}: found the shape {found}, the model needs (batch, {width})")
