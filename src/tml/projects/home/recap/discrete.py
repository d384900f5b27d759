"""Small embeddings: a trained vector for each value of each discrete column.

Columns whose vectors have the same width share one table, with the columns' values one after another. A rule of thumb
for the width is a root of the number n of values, factor · n^power (TensorFlow's guide advises the fourth root): two
values need fewer dimensions than ten thousand.
"""

import math

import torch
from torch import Tensor, nn

from tml.core.errors import ConfigError
from tml.projects.home.recap.input_config import SmallEmbeddingsConfig


class SmallEmbeddings(nn.Module):
    """Discrete columns (batch, D) of int64 to (batch, D * width).

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


class MixedEmbeddings(nn.Module):
    """The discrete vector (batch, D) to the vectors of the columns that have a table, narrow ones first.

    Args:
        sizes: for each column that has a table the number of its values.
        widths: for each of them the width of its vectors.
        generator: draws the initial vectors.

    Attributes:
        fields: the widths of the vectors in the order in which they are put out.
    """

    def __init__(self, sizes: dict[int, int], widths: dict[int, int], generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.groups = nn.ModuleDict()
        self.fields: tuple[int, ...] = ()
        for width in sorted(set(widths.values())):
            columns = [column for column in sizes if widths[column] == width]
            self.groups[str(width)] = SmallEmbeddings(tuple(sizes[column] for column in columns), width, generator)
            self.register_buffer(f"columns_{width}", torch.tensor(columns), persistent=False)
            self.fields += (width,) * len(columns)

    def forward(self, discrete: Tensor) -> Tensor:
        """Discrete (batch, D) of int64 to (batch, sum of `fields`)."""
        parts = [table(discrete[:, self.get_buffer(f"columns_{width}")]) for width, table in self.groups.items()]
        return torch.cat(parts, dim=1)


def build_small_embeddings(
    config: SmallEmbeddingsConfig,
    sizes: tuple[int, ...],
    generator: torch.Generator | None = None,
    without: int | None = None,
) -> tuple[nn.Module | None, tuple[int, ...]]:
    """The module for the discrete vector, None where no column is left, and the widths of what it puts out.

    Args:
        config: which columns, and how wide.
        sizes: the number of values of each column of the dataset.
        generator: draws the initial vectors.
        without: a column that is left out, whatever the config says.

    Raises:
        ConfigError: a table for a column that the dataset lacks.
    """
    tables = {table.index: table for table in config.tables or ()}
    absent = [index for index in tables if index >= len(sizes)]
    if absent:
        raise ConfigError(
            f"small_embeddings.tables: found the index {absent[0]}, allowed is less than the {len(sizes)} discrete "
            "columns"
        )
    chosen = {index: table.num_embeddings or sizes[index] for index, table in tables.items()}
    chosen = chosen or dict(enumerate(sizes))
    if without is not None:
        chosen.pop(without, None)
    if not chosen:
        return None, ()
    widths = {
        index: (tables[index].embedding_dim if index in tables else None) or width_of(config, size)
        for index, size in chosen.items()
    }
    if not tables and len(chosen) == len(sizes) and len(set(widths.values())) == 1:
        width = widths[0]
        return SmallEmbeddings(sizes, width, generator), (width,) * len(sizes)
    mixed = MixedEmbeddings(chosen, widths, generator)
    return mixed, mixed.fields


def width_of(config: SmallEmbeddingsConfig, size: int) -> int:
    """The width of the vectors of a column with so many values.

    Example:
        >>> width_of(SmallEmbeddingsConfig(dimension_rule={"factor": 2, "power": 0.25}), 10_000)
        20
    """
    rule = config.dimension_rule
    if rule is None:
        return config.embedding_dim
    # A power that is a whole number but for rounding is that number.
    wanted: float = round(rule.factor * float(size) ** rule.power, 9)
    return min(rule.largest, math.ceil(wanted))
