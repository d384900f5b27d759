"""The vectors of impressions, for training and for serving alike: prepared once for a log, computed for any of them.

SQL joins an impression with its post, its viewer and their follows; aggregates come from the time lines of the keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from tml.data.log import Log
from tml.data.tables import quote
from tml.features.aggregates import Aggregates
from tml.features.config import FeaturesConfig
from tml.features.events import create_lines
from tml.features.graph import BINARY, create_following, graph_features, select_graph
from tml.features.lines import Array, Folder
from tml.features.sides import check_pack, create_sides
from tml.features.static import MOMENT_VOCABULARIES, load_vocabularies, select_static, static_columns


@dataclass(frozen=True)
class Vectors:
    """The vectors of some impressions: `continuous` and `binary` float32, `discrete` int32, each (rows, width)."""

    continuous: Array
    binary: Array
    discrete: Array


class Inputs:
    """Computes the vectors of impressions of one log.

    Args:
        log: the open log; tables of this class's own are made in its database.
        config: the features, nothing left at null.
        vocabularies: discrete column → its words.
        folder: an empty folder for the time lines; it must stay as long as this is used.
    """

    def __init__(self, log: Log, config: FeaturesConfig, vocabularies: Mapping[str, list[str]], folder: Path) -> None:
        self.log, self.config = log, config
        self.columns = static_columns(log, config)
        self.aggregates = Aggregates.of(config.aggregates or (), config.smoothing)
        load_vocabularies(log.connection, self.columns, vocabularies)
        self._codes = create_sides(log, self.aggregates.columns, self.columns)
        check_pack(self._codes, list(self.aggregates.keys))
        self._graph_features = graph_features(log, config)
        create_following(log)
        self._instants, self._lines = create_lines(log, self.aggregates, self._codes, Folder(folder))
        self._static = select_static(self.columns)
        graph, _ = self._graph("")
        self._graph_continuous = [name for name in graph if name not in BINARY]
        self._graph_binary = [name for name in graph if name in BINARY]
        self.continuous = [*self._static.continuous, *self._graph_continuous, *self.aggregates.names]
        self.binary = [*self._graph_binary, *self._static.binary]
        self.discrete = {**MOMENT_VOCABULARIES, **vocabularies}

    def compute(self, relation: str, others: Mapping[str, str]) -> tuple[Vectors, pa.Table]:
        """The vectors of the impressions of a relation, in the order of its column `row`.

        Args:
            relation: SQL of a table with `row`, `user_id`, `post_id`, `served_at`, `position` and the static columns
                of impressions; rows of one viewer, post or author are quicker when they are in the order of time.
            others: what else is wanted, name → SQL over an impression `i`, its post `p` and its viewer `u`.

        Returns:
            The vectors, and a table of the others.
        """
        table = self.log.connection.sql(self._query(relation, others)).to_arrow_table()
        first = [*self._static.continuous, *self._graph_continuous]
        continuous = np.empty((len(table), len(self.continuous)), np.float32)
        _fill(continuous, table, [f"float {name}" for name in first])
        self.aggregates.compute(
            self._lines,
            {key: table[f"pack {number}"].to_numpy() for number, key in enumerate(self.aggregates.keys)},
            self._instants,
            table["time"].to_numpy(),
            continuous[:, len(first) :],
        )
        binary = np.empty((len(table), len(self.binary)), np.float32)
        _fill(binary, table, [f"float {name}" for name in self.binary])
        discrete = np.empty((len(table), len(self.discrete)), np.int32)
        _fill(discrete, table, [f"word {name}" for name in self._static.discrete])
        return Vectors(continuous, binary, discrete), table.select(list(others))

    def _query(self, relation: str, others: Mapping[str, str]) -> str:
        graph, joins = self._graph(relation)
        floats = {**self._static.continuous, **graph, **self._static.binary}
        packs = [f"coalesce({self._codes.pack(key)}, -1)" for key in self.aggregates.keys]
        selected = {
            **others,
            **{f"float {name}": f"CAST({sql} AS DOUBLE)" for name, sql in floats.items()},
            **{f"word {name}": f"CAST({sql} AS INTEGER)" for name, sql in self._static.discrete.items()},
            **{f"pack {number}": sql for number, sql in enumerate(packs)},
            "time": "epoch_us(i.served_at)",
        }
        return (
            f"SELECT {', '.join(f'{sql} AS {quote(name)}' for name, sql in selected.items())} FROM {relation} i "
            "LEFT JOIN post_side p ON p.post_id = i.post_id LEFT JOIN user_side u ON u.user_id = i.user_id"
            f"{self._static.joins}{joins} ORDER BY i.row"
        )

    def _graph(self, relation: str) -> tuple[dict[str, str], str]:
        return select_graph(self._graph_features, relation)


def _fill(out: Array, table: pa.Table, names: list[str]) -> None:
    # What no float32 can hold is infinite here, and 0 to the ranker.
    with np.errstate(over="ignore"):
        for column, name in enumerate(names):
            out[:, column] = table[name].to_numpy()
