"""The vectors of impressions, for training and for serving alike: prepared once for a log, computed for any of them.

SQL joins an impression with its post, its viewer and their follows; aggregates come from the time lines of the keys.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from tml.data.log import Log
from tml.features.aggregates import Aggregates
from tml.features.config import FeaturesConfig
from tml.features.events import create_lines
from tml.features.graph import create_following, graph_features
from tml.features.lines import Folder
from tml.features.selection import Selection, Vectors
from tml.features.sequence import ShownBefore
from tml.features.sides import check_pack, create_sides, key_column
from tml.features.static import load_vocabularies, static_columns


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
        keyed = self.aggregates.columns
        keyed += ["user_id"] * (config.sequence is not None and "user_id" not in keyed)
        self._codes = create_sides(log, keyed, self.columns)
        check_pack(self._codes, list(self.aggregates.keys))
        create_following(log)
        self._instants, self._lines = create_lines(log, self.aggregates, self._codes, Folder(folder))
        self._shown: ShownBefore | None = None
        if config.sequence is not None:
            self._shown = ShownBefore(log, config.sequence, self._codes.pack(["user_id"]))
        self.selection = Selection(self.columns, graph_features(log, config), self.aggregates, vocabularies)

    def of_impressions(self) -> list[str]:
        """The columns of impressions that a relation must have beside the usual ones."""
        keyed = [key_column(self.log, name) for name in self.aggregates.columns]
        of_keys = [column for table, column in keyed if table == "impressions"]
        return list(dict.fromkeys([*self.columns.of_impressions(), *of_keys]))

    def compute(self, relation: str, others: Mapping[str, str]) -> tuple[Vectors, pa.Table]:
        """The vectors of the impressions of a relation, in the order of its column `row`.

        Args:
            relation: SQL of a table with `row`, `user_id`, `post_id`, `served_at`, `position` and
                `of_impressions`; rows of one viewer, post or author are quicker when they are in the order of time.
            others: what else is wanted, name → SQL over an impression `i`, its post `p` and its viewer `u`.

        Returns:
            The vectors, and a table of the others.
        """
        keys = list(self.aggregates.keys)
        packs = {f"pack {number}": f"coalesce({self._codes.pack(key)}, -1)" for number, key in enumerate(keys)}
        if self._shown is not None:
            packs["viewer"] = f"coalesce({self._codes.pack(['user_id'])}, -1)"
        wanted = {**others, **packs, "time": "epoch_us(i.served_at)"}
        query = self.selection.query(relation, wanted, self._codes.joins)
        table = self.log.connection.sql(query).to_arrow_table()
        vectors, aggregates = self.selection.vectors(table)
        self.aggregates.compute(
            self._lines,
            {key: table[f"pack {number}"].to_numpy() for number, key in enumerate(keys)},
            self._instants,
            table["time"].to_numpy(),
            aggregates,
        )
        if self._shown is not None:
            sequence = self._shown.columns(table["viewer"].to_numpy(), table["time"].to_numpy())
            vectors = replace(vectors, sequence=sequence)
        return vectors, table.select(list(others))
