"""How tables that are larger than memory are cut into partitions.

Row r of a table is in partition r mod P, at place r div P, so that rows of like age or degree are spread. P is prime, so
a period in the numbers of rows is spread, too. A partition has its rows of all tables that are cut; small ones are not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tml.core.errors import ConfigError

RESIDENT = 4
"""Partitions that are trained together."""
WHOLE = 0.25
"""Share of the memory that tables which are not cut may take."""


@dataclass(frozen=True)
class Partitions:
    """How tables are cut.

    Attributes:
        sizes: the number of rows of each table that is cut, by name.
        count: the number of partitions.
        resident: how many of them are in memory to be trained.
    """

    sizes: Mapping[str, int]
    count: int
    resident: int = RESIDENT

    def places(self, name: str) -> int:
        """Rows of a table in a partition, at most."""
        return -(-self.sizes[name] // self.count)

    def draw(self, name: str, shape: tuple[int, ...], among: Sequence[int], rng: np.random.Generator) -> Any:
        """Draw rows of a table that is cut uniformly from some partitions, int64."""
        partition = np.asarray(among)[rng.integers(0, len(among), shape)]
        rows = rng.integers(0, self.places(name), shape) * self.count + partition
        # Not every partition has a last place.
        return np.where(rows < self.sizes[name], rows, rows - self.count)


def cut_tables(sizes: Mapping[str, int], row_bytes: Mapping[str, int], memory: int) -> Partitions | None:
    """Choose which tables are cut, and how finely, so that what is in memory fits; None where all tables do.

    Args:
        sizes: the number of rows of each table.
        row_bytes: bytes of a row and its optimizer's state.
        memory: bytes that may be used.

    Raises:
        ConfigError: so little memory that a partition would have no row.
    """
    needs = {name: rows * row_bytes[name] for name, rows in sizes.items()}
    if sum(needs.values()) <= memory:
        return None
    whole, cut = 0, dict(sizes)
    for name in sorted(needs, key=needs.__getitem__):
        if whole + needs[name] > WHOLE * memory:
            break
        whole += needs[name]
        del cut[name]
    total = sum(needs[name] for name in cut)
    count = max(RESIDENT + 2, math.ceil(total * (RESIDENT + 1) / (memory - whole)))
    while any(count % factor == 0 for factor in range(2, math.isqrt(count) + 1)):
        count += 1
    least = min(cut.values())
    if count > least:
        raise ConfigError(
            f"embeddings.memory: found {memory:,} bytes, which would cut {least:,} rows into {count:,} partitions, "
            f"allowed is at least {math.ceil(total * (RESIDENT + 1) / least) + whole:,} bytes"
        )
    return Partitions(cut, count)
