"""The features of a request: the vectors that training would see, for posts that are only now to be ranked.

    with open_log(config) as log, open_features(log, Schema.read(examples)) as features:
        vectors = features.compute(candidates)

The log is what is stored up to now. Its time lines are made once; a request is then a few joins of its candidates and a
search for each key and window, with the same definitions and the same code as in training. So the vectors of an
impression are the same to the bit, whether they are computed for the example dataset or asked for at `served_at`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from tml.core.errors import DataError
from tml.data.examples import Schema
from tml.data.faults import first_line
from tml.data.log import Log
from tml.data.tables import quote
from tml.data.values import EARLIEST_YEAR, LATEST_YEAR
from tml.features.config import FeaturesConfig
from tml.features.inputs import Inputs
from tml.features.selection import Vectors
from tml.features.static import MOMENT_VOCABULARIES

REQUIRED = ("user_id", "post_id", "served_at", "position")
IDS = ("user_id", "post_id")
_NARROW = ("TINYINT", "SMALLINT", "INTEGER", "UTINYINT", "USMALLINT", "UINTEGER")


@contextmanager
def open_features(log: Log, schema: Schema) -> Iterator["RequestFeatures"]:
    """Prepare the features of an example dataset for requests, for the length of a block.

    Args:
        log: the open log, with all that is known up to now.
        schema: of the dataset that the model was trained on.

    Raises:
        DataError: the schema does not say how its features are made, or the log lacks a column of theirs.
    """
    with TemporaryDirectory(prefix="tml-") as folder:
        yield RequestFeatures(log, schema, Path(folder))


class RequestFeatures:
    """Computes the vectors of candidates; not for two threads at once. `open_features` makes it."""

    def __init__(self, log: Log, schema: Schema, folder: Path) -> None:
        if not schema.features:
            raise DataError(
                "schema.json: found nothing about how the features are made, allowed is an example dataset of "
                "`tml features`"
            )
        config = FeaturesConfig.model_validate(schema.features)
        words = {column.name: column.vocabulary for column in schema.discrete if column.name not in MOMENT_VOCABULARIES}
        self.log = log
        self.inputs = Inputs(log, config, words, folder)
        self.columns = [*REQUIRED, *(c for c in self.inputs.of_impressions() if c not in REQUIRED)]
        described = log.connection.execute("DESCRIBE impressions").fetchall()
        types = {row[0]: row[1] for row in described}
        selected = [f"{_cast(column, types[column])} AS {quote(column)}" for column in self.columns]
        self._ids = {column: types[column] for column in IDS}
        self._relation = f"(SELECT row, {', '.join(selected)} FROM candidates)"

    def compute(self, candidates: pa.Table) -> Vectors:
        """The vectors of candidates, in their order.

        Args:
            candidates: `user_id`, `post_id`, `served_at` (now, UTC), `position`, and the columns of impressions that
                are features or keys. A viewer or a post that the log does not know has no past.

        Raises:
            DataError: a column that is missing, lacks a value, or is of a type that the log's is not.
        """
        for column in self.columns:
            if column not in candidates.column_names:
                raise DataError(
                    f"candidates: no column {column}, needed are {', '.join(self.columns)}; "
                    f"found are {', '.join(candidates.column_names)}"
                )
        table = candidates.select(self.columns)
        self._check(table)
        table = table.append_column("row", pa.array(range(len(table)), pa.int64()))
        self.log.connection.register("candidates", table)
        try:
            vectors, _ = self.inputs.compute(self._relation, {})
        except (duckdb.ConversionException, duckdb.OutOfRangeException) as error:
            raise DataError(
                f"candidates: found a value that the log's columns cannot hold ({first_line(error)}), allowed are "
                "values of the types of the log's impressions"
            ) from None
        finally:
            self.log.connection.unregister("candidates")
        return vectors

    def _check(self, table: pa.Table) -> None:
        for column in (*IDS, "served_at"):
            if table[column].null_count:
                raise DataError(f"candidates: column {column}: found no value, allowed is one in every row")
        for column, kind in self._ids.items():
            found = table[column].type
            is_text = pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
            if not (pa.types.is_integer(found) if kind == "BIGINT" else is_text):
                raise DataError(f"candidates: column {column}: found type {found}, allowed is the log's, {kind}")
        _check_times(table["served_at"])


def _cast(column: str, kind: str) -> str:
    """SQL of a candidate's column as the log has it."""
    if column == "served_at":
        # As the log's own times are read: without a zone they are UTC, and nanoseconds are rounded.
        return f"CAST(CAST({column} AS TIMESTAMPTZ) AT TIME ZONE 'UTC' AS TIMESTAMP)"
    # The log's integers may be of a type that holds no more than the log has; a wide one says the same.
    return f"CAST({quote(column)} AS {'BIGINT' if kind in _NARROW else kind})"


def _check_times(times: pa.ChunkedArray) -> None:
    if not pa.types.is_timestamp(times.type):
        raise DataError(f"candidates: column served_at: found type {times.type}, allowed are timestamps")
    first, last = (pa.scalar(datetime(year, 1, 1), times.type) for year in (EARLIEST_YEAR, LATEST_YEAR))
    outside = times.filter(pc.or_(pc.less(times, first), pc.greater(times, last)))
    if len(outside):
        raise DataError(
            f"candidates: column served_at: found {outside[0].value} {times.type.unit} since 1970, "
            f"allowed are the years {EARLIEST_YEAR} to {LATEST_YEAR}"
        )
