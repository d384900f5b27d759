"""The features of a request: the vectors that training would see, for posts that are only now to be ranked.

    with open_log(config) as log, open_features(log, Schema.read(examples)) as features:
        vectors = features.compute(candidates)

The log is what is stored up to now. Its time lines are made once; a request is then a few joins of its candidates and a
search for each key and window, with the same definitions and the same code as in training. So the vectors of an
impression are the same to the bit, whether they are computed for the example dataset or asked for at `served_at`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from tml.core.errors import DataError
from tml.data.examples import Schema
from tml.data.log import Log
from tml.data.tables import quote
from tml.features.config import FeaturesConfig
from tml.features.inputs import Inputs
from tml.features.selection import Vectors
from tml.features.static import MOMENT_VOCABULARIES

REQUIRED = ("user_id", "post_id", "served_at", "position")


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
        self.columns = [*REQUIRED, *(c for c in self.inputs.columns.of_impressions() if c not in REQUIRED)]
        described = log.connection.execute("DESCRIBE impressions").fetchall()
        types = {row[0]: row[1] for row in described}
        selected = [f"CAST({quote(column)} AS {types[column]}) AS {quote(column)}" for column in self.columns]
        self._relation = f"(SELECT row, {', '.join(selected)} FROM candidates)"

    def compute(self, candidates: pa.Table) -> Vectors:
        """The vectors of candidates, in their order.

        Args:
            candidates: `user_id`, `post_id`, `served_at` (now, UTC), `position`, and the columns of impressions that
                are features. A viewer or a post that the log does not know has no past.

        Raises:
            DataError: a column that is missing or of a type that the log's is not.
        """
        for column in self.columns:
            if column not in candidates.column_names:
                raise DataError(
                    f"candidates: no column {column}, needed are {', '.join(self.columns)}; "
                    f"found are {', '.join(candidates.column_names)}"
                )
        table = candidates.select(self.columns)
        place = self.columns.index("served_at")
        table = table.set_column(place, "served_at", _utc(table["served_at"]))
        table = table.append_column("row", pa.array(range(len(table)), pa.int64()))
        self._check_ids(table)
        self.log.connection.register("candidates", table)
        try:
            vectors, _ = self.inputs.compute(self._relation, {})
        finally:
            self.log.connection.unregister("candidates")
        return vectors

    def _check_ids(self, table: pa.Table) -> None:
        known = self.log.connection.execute("SELECT typeof(user_id), typeof(post_id) FROM impressions LIMIT 1")
        for column, kind in zip(("user_id", "post_id"), known.fetchall()[0], strict=True):
            if pa.types.is_integer(table[column].type) != (kind == "BIGINT"):
                raise DataError(
                    f"candidates: column {column}: found type {table[column].type}, allowed is the log's, {kind}"
                )


def _utc(times: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_timestamp(times.type):
        raise DataError(f"candidates: column served_at: found type {times.type}, allowed are timestamps")
    zoned = times.cast(pa.timestamp("us", tz="UTC")) if times.type.tz else times.cast(pa.timestamp("us"))
    return zoned.cast(pa.timestamp("us"))
