"""From an open log to an example dataset: aggregates, static columns, the moment and labels, a chunk at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from tml.core.errors import DataError
from tml.core.files import whole_folder
from tml.core.progress import Bar, progress
from tml.data.config import TaskConfig
from tml.data.examples import KEYS, DiscreteColumn, ExampleWriter, Part, Schema, vector_column, vector_values
from tml.data.log import Log
from tml.data.tables import quote
from tml.features.aggregates import Aggregates
from tml.features.config import FeaturesConfig, SplitConfig, resolve
from tml.features.labels import create_labels, select_labels
from tml.features.static import (
    MOMENT_BINARY,
    MOMENT_CONTINUOUS,
    MOMENT_DISCRETE,
    StaticColumns,
    create_vocabularies,
    moment,
    select_static,
    static_columns,
)

DEFAULT_KEYS = (
    ("user_id",),
    ("author_id",),
    ("post_id",),
    ("user_id", "author_id"),
    ("topic",),
    ("user_id", "topic"),
)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Span:
    """Part of the log: impressions from row `first` to `last`, both included."""

    name: str
    start: datetime
    end: datetime
    first: int
    last: int


def build_examples(
    log: Log,
    tasks: Mapping[str, TaskConfig],
    features: FeaturesConfig,
    split: SplitConfig,
    out: Path,
    seed: int,
    fingerprint: str,
) -> Schema:
    """Make the example dataset of a log.

    Args:
        log: the open log.
        tasks: task → the engagement that is its label.
        features: which features.
        split: which spans of time are `train` and `validation`.
        out: the dataset's folder, written whole or not at all.
        seed: decides which negatives training leaves out, where a task samples them.
        fingerprint: the log's, for the schema.

    Raises:
        DataError: a column that is not there, a span without impressions, a task without positives in training.
    """
    connection = log.connection
    spans = _spans(log, split)
    _check_engagements(log, tasks)
    aggregates = _aggregates(log, tasks, features)
    columns = static_columns(log, features)
    _create_served(log, aggregates, spans)
    create_labels(connection, tasks, inline=log.has("engagements", "row"))
    _check_positives(connection, tasks, spans[0])
    vocabularies = create_vocabularies(connection, columns, spans[0].first, spans[0].last, features.vocabulary_minimum)
    rows = sum(span.last - span.first + 1 for span in spans)
    with whole_folder(out) as folder, progress("features", total=rows, unit="impressions") as bar:
        bar.advance(0, "running totals")
        aggregates.create(connection, log.has("history"))
        parts = {}
        for span in spans:
            writer = _PartWriter(connection, tasks, aggregates, columns, seed, ExampleWriter(folder, span.name))
            parts[span.name] = writer.write(span, features.chunk_rows, bar)
        schema = Schema(
            continuous=MOMENT_CONTINUOUS
            + list(columns.continuous)
            + [n for key in aggregates.keys for n in aggregates.names(key)],
            binary=MOMENT_BINARY + list(columns.binary),
            discrete=[DiscreteColumn(name, words) for name, words in {**MOMENT_DISCRETE, **vocabularies}.items()],
            tasks={name: task.model_dump(mode="json") for name, task in tasks.items()},
            parts=parts,
            log={
                "fingerprint": fingerprint,
                "rows": log.rows,
                "duplicates": log.duplicates,
                "start": log.start.isoformat(),
                "end": log.end.isoformat(),
            },
        )
        schema.write(folder)
    return schema


class _PartWriter:
    """Computes and writes one part, a chunk of rows at a time."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        tasks: Mapping[str, TaskConfig],
        aggregates: Aggregates,
        columns: StaticColumns,
        seed: int,
        writer: ExampleWriter,
    ) -> None:
        self.connection, self.tasks, self.aggregates, self.columns = connection, tasks, aggregates, columns
        self.seed, self.writer = seed, writer

    def write(self, span: _Span, chunk_rows: int, bar: Bar) -> Part:
        positives = dict.fromkeys(self.tasks, 0)
        for first in range(span.first, span.last + 1, chunk_rows):
            last = min(first + chunk_rows - 1, span.last)
            table = self._chunk(first, last, bar)
            if span.name == "train":
                table = self._sample_negatives(table, first)
            self.writer.write(table)
            for task in self.tasks:
                positives[task] += int(np.nansum(table[task].to_numpy()))
        rows = span.last - span.first + 1
        return Part(span.start.isoformat(), span.end.isoformat(), rows, self.writer.shards, positives)

    def _chunk(self, first: int, last: int, bar: Bar) -> pa.Table:
        keys = self._table(
            f"SELECT {', '.join(map(quote, KEYS))} FROM served WHERE row BETWEEN {first} AND {last} ORDER BY row"
        )
        static = self._table(select_static(self.columns, first, last))
        labels = self._table(select_labels(self.tasks, first, last))
        binary = vector_values(static["binary"])
        discrete = vector_values(static["discrete"])
        continuous = [moment(keys)] + [vector_values(static["continuous"])] * bool(self.columns.continuous)
        share = (last - first + 1) / len(self.aggregates.keys)
        for key in self.aggregates.keys:
            continuous.append(vector_values(self._table(self.aggregates.select(key, first, last))["features"]))
            bar.advance(share, ".".join(key))
        vectors = {"continuous": np.hstack(continuous), "binary": binary, "discrete": discrete}
        for name, values in vectors.items():
            keys = keys.append_column(name, vector_column(np.ascontiguousarray(values)))
        for task in self.tasks:
            keys = keys.append_column(task, labels[task])
        return keys

    def _sample_negatives(self, table: pa.Table, first: int) -> pa.Table:
        """Take the labels of the negatives that are not kept out of training: NaN does not count."""
        for number, (name, task) in enumerate(self.tasks.items()):
            if task.negative_sampling_rate < 1:
                labels = table[name].to_numpy().copy()
                drawn = np.random.default_rng([self.seed, first, number]).random(len(labels))
                labels[(labels == 0) & (drawn >= task.negative_sampling_rate)] = np.nan
                table = table.set_column(table.column_names.index(name), name, pa.array(labels))
        return table

    def _table(self, query: str) -> pa.Table:
        return self.connection.sql(query).to_arrow_table()


def _spans(log: Log, split: SplitConfig) -> list[_Span]:
    def at(instant: datetime | float) -> datetime:
        return resolve(instant, log.start, log.end)

    train_start, validation_start = at(split.train_start), at(split.validation_start)
    train_end = at(split.train_end) if split.train_end is not None else validation_start
    # The end is exclusive, and the log's last impression belongs to it where no end is given.
    validation_end = at(split.validation_end) if split.validation_end is not None else datetime.max
    spans = []
    for name, start, end in (("train", train_start, train_end), ("validation", validation_start, validation_end)):
        found = log.connection.execute(
            "SELECT min(row), max(row) FROM impressions WHERE served_at >= ? AND served_at < ?", [start, end]
        ).fetchone()
        if found is None or found[0] is None:
            raise DataError(
                f"split: found no impression from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} for {name}, "
                f"the log goes from {log.start:%Y-%m-%d %H:%M} to {log.end:%Y-%m-%d %H:%M}"
            )
        spans.append(_Span(name, start, min(end, max(log.end, start)), *found))
    if train_end > validation_start:
        raise DataError(
            f"split: found that training ends {train_end:%Y-%m-%d %H:%M}, allowed is an end not later than the "
            f"start of validation, {validation_start:%Y-%m-%d %H:%M}"
        )
    return spans


def train_start(log: Log, split: SplitConfig) -> datetime:
    """When training starts, UTC without an offset: what TwHIN learns from lies before it."""
    return resolve(split.train_start, log.start, log.end)


def _aggregates(log: Log, tasks: Mapping[str, TaskConfig], features: FeaturesConfig) -> Aggregates:
    if features.engagements is None:
        types = tuple(dict.fromkeys(task.engagement for task in tasks.values()))
    else:
        types = features.engagements
    available = [*log.tables["posts"], *log.tables.get("users", []), "user_id"]
    if features.keys is None:
        keys: tuple[tuple[str, ...], ...] = tuple(
            key for key in DEFAULT_KEYS if all(column in available for column in key)
        )
    else:
        keys = features.keys
        for key in keys:
            for column in key:
                if column not in available:
                    raise DataError(
                        f"features.keys: unknown column {column!r}, found are {', '.join(dict.fromkeys(available))}"
                    )
    return Aggregates(keys, types, features.windows, features.smoothing)


def _create_served(log: Log, aggregates: Aggregates, spans: list[_Span]) -> None:
    """Make `served`: the impressions that become examples, with the columns of their post and user that keys need."""
    columns = {column for key in aggregates.keys for column in key} | {"author_id", "created_at"}
    of_post = [c for c in log.tables["posts"] if c in columns and c != "post_id"]
    of_user = [c for c in log.tables.get("users", []) if c in columns and c not in of_post and c != "user_id"]
    users = "users" if log.has("users") else "(SELECT DISTINCT user_id FROM impressions)"
    run = log.connection.execute
    run(f"CREATE OR REPLACE TEMP VIEW post_columns AS SELECT {', '.join(map(quote, ['post_id', *of_post]))} FROM posts")
    user_columns = ", ".join(map(quote, ["user_id", *of_user]))
    run(f"CREATE OR REPLACE TEMP VIEW user_columns AS SELECT {user_columns} FROM {users}")
    run(
        "CREATE OR REPLACE TEMP TABLE served AS SELECT i.row, i.impression_id, i.session_id, i.user_id, i.post_id, "
        "i.served_at, i.position, p.* EXCLUDE (post_id), u.* EXCLUDE (user_id) FROM impressions i "
        "LEFT JOIN post_columns p USING (post_id) LEFT JOIN user_columns u USING (user_id) "
        f"WHERE i.row BETWEEN {spans[0].first} AND {spans[-1].last} ORDER BY i.row"
    )


def _check_engagements(log: Log, tasks: Mapping[str, TaskConfig]) -> None:
    found = log.engagement_types()
    for name, task in tasks.items():
        if task.engagement not in found:
            raise DataError(
                f"tasks.{name}.engagement: found {task.engagement!r}, which never occurs in the log; "
                f"its engagement types are {', '.join(found) or 'none'}"
            )


def _check_positives(connection: duckdb.DuckDBPyConnection, tasks: Mapping[str, TaskConfig], span: _Span) -> None:
    sums = ", ".join(f"coalesce(sum({quote(name)}), 0)" for name in tasks)
    counts = connection.execute(f"SELECT {sums} FROM labels WHERE row BETWEEN {span.first} AND {span.last}").fetchone()
    none = [name for name, count in zip(tasks, counts or (), strict=True) if count == 0]
    if none:
        raise DataError(
            f"tasks: found no positives for {', '.join(none)} in training, from {span.start:%Y-%m-%d %H:%M} to "
            f"{span.end:%Y-%m-%d %H:%M}; take them out of tasks or train on a longer span"
        )
