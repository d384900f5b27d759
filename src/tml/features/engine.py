"""What computes an example dataset: an engine has a log whose SQL it runs, and gives the examples of any of its rows.

The definitions are the same for every engine: the SQL of features and labels, and the arithmetic on totals.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import pyarrow as pa

from tml.data.config import TaskConfig
from tml.data.examples import KEYS
from tml.data.log import Log
from tml.data.tables import quote
from tml.features.config import FeaturesConfig
from tml.features.inputs import Inputs
from tml.features.labels import LATEST_IMPRESSIONS, select_labels
from tml.features.selection import Selection, Vectors
from tml.features.spark.session import require_spark
from tml.features.split import Span

_KEY_SOURCES = {"author_id": "p", "created_at": "p"}
KEY_COLUMNS = {name: f"{_KEY_SOURCES.get(name, 'i')}.{quote(name)}" for name in KEYS}
"""SQL of the columns that say which impression an example is."""


class Engine(Protocol):
    """Computes examples.

    Attributes:
        log: the log, with a connection that runs DuckDB's SQL.
        latest: SQL of which impression an engagement belongs to.
    """

    log: Log
    latest: str

    def prepare(self, vocabularies: Mapping[str, list[str]]) -> Selection:
        """Do what is done once; the table `labels` is there. The names of what `examples` gives."""

    def examples(self, first: int, last: int) -> tuple[Vectors, pa.Table]:
        """The vectors of the impressions from row `first` to `last`, and a table of their keys and labels.

        What is asked for lies after what was asked for before.
        """


class DuckDBEngine:
    """DuckDB, and time lines in NumPy."""

    latest = LATEST_IMPRESSIONS

    def __init__(self, log: Log, tasks: Mapping[str, TaskConfig], config: FeaturesConfig, folder: Path) -> None:
        self.log, self._tasks, self._config, self._folder = log, tasks, config, folder
        self._inputs: Inputs | None = None

    def prepare(self, vocabularies: Mapping[str, list[str]]) -> Selection:
        """Make the time lines."""
        self._inputs = Inputs(self.log, self._config, vocabularies, self._folder)
        return self._inputs.selection

    def examples(self, first: int, last: int) -> tuple[Vectors, pa.Table]:
        """Query a chunk and search it in the time lines."""
        assert self._inputs is not None
        relation = f"(FROM impressions WHERE row BETWEEN {first} AND {last})"
        vectors, table = self._inputs.compute(relation, KEY_COLUMNS)
        labels = self.log.connection.sql(select_labels(self._tasks, first, last)).to_arrow_table()
        for task in self._tasks:
            table = table.append_column(task, labels[task])
        return vectors, table


@contextmanager
def open_engine(
    log: Log, tasks: Mapping[str, TaskConfig], config: FeaturesConfig, spans: Sequence[Span], out: Path
) -> Iterator[Engine]:
    """The engine that a config names, for the length of a block.

    Args:
        log: the open log.
        tasks: task → the engagement that is its label.
        config: the features, nothing left at null.
        spans: what will be asked for.
        out: where the dataset goes; Spark's tables lie beside it for the while.
    """
    if config.engine == "duckdb":
        with TemporaryDirectory(prefix="tml-") as folder:
            yield DuckDBEngine(log, tasks, config, Path(folder))
        return
    require_spark()
    # Spark is imported where it is asked for, since it is an extra.
    from tml.features.spark.engine import open_spark_engine

    with open_spark_engine(log, tasks, config, spans, out) as engine:
        yield engine
