"""From an open log to an example dataset: features and labels, a chunk of impressions at a time."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from tml.core.files import whole_folder
from tml.core.progress import Bar, progress
from tml.data.config import TaskConfig
from tml.data.examples import KEYS, DiscreteColumn, ExampleWriter, Part, Schema, vector_column
from tml.data.log import Log
from tml.features.config import FeaturesConfig, SplitConfig, resolve
from tml.features.engine import Engine, open_engine
from tml.features.labels import check_positives, check_tasks, create_labels, sample_negatives
from tml.features.normalisation import ColumnStatistics
from tml.features.resolve import resolve_features
from tml.features.split import Span, spans_of
from tml.features.static import create_vocabularies, static_columns


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
    spans = spans_of(log, split)
    check_tasks(log, tasks)
    config = resolve_features(log, tasks, features)
    columns = static_columns(log, config)
    train = spans[0]
    with open_engine(log, tasks, config, spans, out) as engine:
        create_labels(engine.log, tasks, engine.latest)
        check_positives(engine.log.connection, tasks, train)
        vocabularies = create_vocabularies(engine.log, columns, train.first, train.last, config.vocabulary_minimum)
        with (
            whole_folder(out) as folder,
            progress("features", total=sum(span.rows for span in spans), unit="impressions") as bar,
        ):
            bar.advance(0, "what happened before")
            selection = engine.prepare(vocabularies)
            statistics = ColumnStatistics(len(selection.continuous))
            parts = {}
            for span in spans:
                writer = _PartWriter(engine, tasks, config.chunk_rows, seed, ExampleWriter(folder, span.name))
                parts[span.name] = writer.write(span, bar, statistics if span.name == "train" else None)
            schema = Schema(
                continuous=selection.continuous,
                binary=selection.binary,
                discrete=[DiscreteColumn(name, words) for name, words in selection.discrete.items()],
                tasks={name: task.model_dump(mode="json") for name, task in tasks.items()},
                parts=parts,
                log={
                    "fingerprint": fingerprint,
                    "rows": log.rows,
                    "duplicates": log.duplicates,
                    "start": log.start.isoformat(),
                    "end": log.end.isoformat(),
                },
                sequence={} if config.sequence is None else config.sequence.model_dump(mode="json"),
                features=config.definitions(),
                statistics=statistics.result(),
            )
            schema.write(folder)
    return schema


class _PartWriter:
    """Computes one part a chunk of rows at a time, and writes each while the next is computed."""

    def __init__(
        self, engine: Engine, tasks: Mapping[str, TaskConfig], chunk_rows: int, seed: int, writer: ExampleWriter
    ) -> None:
        self.engine, self.tasks, self.chunk_rows, self.seed, self.writer = engine, tasks, chunk_rows, seed, writer

    def write(self, span: Span, bar: Bar, statistics: ColumnStatistics | None) -> Part:
        positives = dict.fromkeys(self.tasks, 0)
        writing: Future[None] | None = None
        with ThreadPoolExecutor(1) as thread:
            for first in range(span.first, span.last + 1, self.chunk_rows):
                last = min(first + self.chunk_rows - 1, span.last)
                table, continuous = self._chunk(first, last)
                if span.name == "train":
                    table = sample_negatives(table, self.tasks, self.seed, first)
                for task in self.tasks:
                    positives[task] += int(np.nansum(table[task].to_numpy()))
                if writing is not None:
                    writing.result()
                writing = thread.submit(self._write, table, continuous, statistics)
                bar.advance(last - first + 1, span.name)
            if writing is not None:
                writing.result()
        return Part(span.start.isoformat(), span.end.isoformat(), span.rows, self.writer.shards, positives)

    def _write(self, table: pa.Table, continuous: np.ndarray, statistics: ColumnStatistics | None) -> None:
        self.writer.write(table)
        if statistics is not None:
            statistics.add(continuous)

    def _chunk(self, first: int, last: int) -> tuple[pa.Table, np.ndarray]:
        """The examples of some rows, and their continuous vector again as an array."""
        vectors, found = self.engine.examples(first, last)
        table = found.select(list(KEYS))
        for name in ("continuous", "binary", "discrete"):
            table = table.append_column(name, vector_column(getattr(vectors, name)))
        for name, values in vectors.sequence.items():
            table = table.append_column(name, vector_column(values))
        for task in self.tasks:
            table = table.append_column(task, found[task])
        return table, vectors.continuous


def train_start(log: Log, split: SplitConfig) -> datetime:
    """When training starts, UTC without an offset: what TwHIN learns from lies before it."""
    return resolve(split.train_start, log.start, log.end)
