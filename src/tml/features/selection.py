"""What is selected of impressions beside their aggregates, as one SQL query, and how the vectors are laid out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from tml.data.tables import quote
from tml.features.aggregates import Aggregates
from tml.features.graph import BINARY, select_graph
from tml.features.lines import Array
from tml.features.static import MOMENT_VOCABULARIES, StaticColumns, select_static


@dataclass(frozen=True)
class Vectors:
    """The vectors of some impressions: `continuous` and `binary` float32, `discrete` int32, each (rows, width).

    `sequence` has the columns of what the viewers were shown last, by name, if that is asked for.
    """

    continuous: Array
    binary: Array
    discrete: Array
    sequence: Mapping[str, Array] = field(default_factory=dict)


class Selection:
    """The names of the vectors' elements in order, and the query of those that are no aggregates.

    Args:
        columns: the static columns.
        graph: the graph features.
        aggregates: they end the continuous vector.
        vocabularies: discrete column → its words.
    """

    def __init__(
        self,
        columns: StaticColumns,
        graph: Sequence[str],
        aggregates: Aggregates,
        vocabularies: Mapping[str, list[str]],
    ) -> None:
        self._graph_features = graph
        self._static = select_static(columns)
        selected, _ = select_graph(graph, "")
        self._first = [*self._static.continuous, *(name for name in selected if name not in BINARY)]
        self.continuous = [*self._first, *aggregates.names]
        self.binary = [*(name for name in selected if name in BINARY), *self._static.binary]
        self.discrete = {**MOMENT_VOCABULARIES, **vocabularies}

    def query(self, relation: str, others: Mapping[str, str], other_joins: str = "") -> str:
        """SQL of what `vectors` reads, and of others, in the order of a relation's column `row`."""
        graph, joins = select_graph(self._graph_features, relation)
        floats = {**self._static.continuous, **graph, **self._static.binary}
        selected = {
            **others,
            **{f"float {name}": f"CAST({sql} AS DOUBLE)" for name, sql in floats.items()},
            **{f"word {name}": f"CAST({sql} AS INTEGER)" for name, sql in self._static.discrete.items()},
        }
        return (
            f"SELECT {', '.join(f'{sql} AS {quote(name)}' for name, sql in selected.items())} FROM {relation} i "
            "LEFT JOIN post_side p ON p.post_id = i.post_id LEFT JOIN user_side u ON u.user_id = i.user_id"
            f"{self._static.joins}{joins}{other_joins} ORDER BY i.row"
        )

    def vectors(self, table: pa.Table) -> tuple[Vectors, Array]:
        """The vectors of a query's table, and the part of the continuous one that is still to be filled: aggregates."""
        continuous = np.empty((len(table), len(self.continuous)), np.float32)
        _fill(continuous, table, [f"float {name}" for name in self._first])
        binary = np.empty((len(table), len(self.binary)), np.float32)
        _fill(binary, table, [f"float {name}" for name in self.binary])
        discrete = np.empty((len(table), len(self.discrete)), np.int32)
        _fill(discrete, table, [f"word {name}" for name in self._static.discrete])
        return Vectors(continuous, binary, discrete), continuous[:, len(self._first) :]


def _fill(out: Array, table: pa.Table, names: list[str]) -> None:
    # What no float32 can hold is infinite here, and 0 to the ranker.
    with np.errstate(over="ignore"):
        for column, name in enumerate(names):
            out[:, column] = table[name].to_numpy()
