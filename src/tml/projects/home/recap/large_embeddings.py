"""Large embeddings: trained vectors for the ids of users, posts and authors, found by hash.

    row(id) = 1 + mix(id) mod (rows - 1)          mix: the finaliser of SplitMix64 (Steele, Lea & Flood 2014)

No list of ids is needed and a new id has a row at once; some ids share a row. Row 0 is the unknown's: of no id, of an
id that training saw too rarely (`min_count`), and, in training, of an id dropped at random. That trains it, and keeps
the model from leaning on vectors that only remember the few examples of their id: what makes such models overfit from
the second pass over the data on.

The gradient of a table is sparse: the rows of a batch.
"""

from collections.abc import Iterable, Mapping

import pyarrow as pa
import torch
from torch import Tensor, nn

from tml.data.id_numbers import NO_ID, id_numbers
from tml.embeddings.local import sparse_table
from tml.projects.home.recap.input_config import LargeEmbeddingsConfig, LargeTableConfig

SCALE = 0.1
"""The mean length of a vector at the start: a row seen rarely says little."""


def mix(ids: Tensor) -> Tensor:
    """Spread ids over all int64, one to one.

    Example:
        >>> mix(torch.tensor([1, 2])).tolist()
        [6238072747940578789, -2606959012126976886]
    """
    x = ids
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ _shifted(x, shift)) * (factor - 2**64)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    # int64 shifts keep the sign; SplitMix64 is of numbers without one.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def read_rows(table: nn.Embedding, rows: Tensor) -> Tensor:
    """Rows of a table. `torch.compile` leaves this part out: it has no code for sparse gradients (torch 2.13)."""
    vectors: Tensor = table(rows)
    return vectors


class HashedTable(nn.Module):
    """One table: ids (batch,) of int64 to vectors (batch, dim)."""

    known: Tensor

    def __init__(self, config: LargeTableConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.name, self.rows, self.out_width = config.name, config.num_embeddings, config.embedding_dim
        self.column, self.min_count, self.drop_probability = config.column, config.min_count, config.drop_probability
        self.table = sparse_table(self.rows, self.out_width, generator or torch.default_generator, SCALE)
        with torch.no_grad():
            self.table.weight[0].zero_()
        self.register_buffer("known", torch.ones(self.rows, dtype=torch.bool))

    def row_of(self, ids: Tensor) -> Tensor:
        """The row that each id hashes to, whether it is known or not; 0 for `NO_ID`."""
        rows = 1 + (mix(ids) & (2**63 - 1)) % (self.rows - 1)
        return torch.where(ids == NO_ID, 0, rows)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (batch,) of int64 to vectors (batch, dim)."""
        rows = self.row_of(ids)
        rows = torch.where(self.known[rows], rows, 0)
        if self.training and self.drop_probability:
            rows = torch.where(torch.rand(rows.shape, device=rows.device) < self.drop_probability, 0, rows)
        vectors: Tensor = read_rows(self.table, rows)
        return vectors


class LargeEmbeddings(nn.Module):
    """All tables: a batch's columns of ids to (batch, sum of `fields`).

    Attributes:
        columns: which columns of ids a batch needs; `NO_ID` where there is none.
        fields: the widths of the tables' vectors.
    """

    def __init__(self, config: LargeEmbeddingsConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({table.name: HashedTable(table, generator) for table in config.tables})
        self.columns = tuple(dict.fromkeys(table.column for table in config.tables))
        self.fields = tuple(table.embedding_dim for table in config.tables)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The vectors of a batch's ids, (batch, sum of `fields`)."""
        return torch.cat([table(batch[table.column]) for table in self._all()], dim=1)

    @property
    def needs_counts(self) -> bool:
        """Whether a table gives rare ids no vector of their own."""
        return any(table.min_count for table in self._all())

    @torch.no_grad()
    def keep_frequent(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Count the ids of the training examples, and give those below `min_count` the unknown's vector.

        Ids are counted by row, so what is rare may be kept for another id on its row.
        """
        counts = {table.name: torch.zeros(table.rows, dtype=torch.int64) for table in self._all()}
        for batch in batches:
            for table in self._all():
                counts[table.name] += torch.bincount(table.row_of(batch[table.column]).cpu(), minlength=table.rows)
        for table in self._all():
            table.known.copy_(counts[table.name] >= table.min_count)

    def _all(self) -> list[HashedTable]:
        return [table for table in self.tables.values() if isinstance(table, HashedTable)]


def id_tensor(column: pa.Array | pa.ChunkedArray, name: str) -> Tensor:
    """A column of ids as int64, null as `NO_ID`; see `tml.data.id_numbers`."""
    return torch.from_numpy(id_numbers(column, name))
