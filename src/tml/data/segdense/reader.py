"""Batches of published data as tensors: streaming, shuffled, split over ranks, from a position that can be restored."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from tml.core.config import fingerprint
from tml.core.errors import ConfigError, DataError
from tml.data.prefetch import items_ahead
from tml.data.segdense.columns import SegdenseColumns
from tml.data.segdense.config import SegdenseConfig
from tml.data.segdense.inputs import find_files
from tml.data.segdense.labels import SegdenseLabels
from tml.data.segdense.schema import FeatureNames, read_schema
from tml.data.segdense.stream import Position, Record, RecordCursor, RecordStream
from tml.data.tf_example import ExampleParser
from tml.data.tf_example_columns import Array, Where
from tml.data.tfrecord import Skipped

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class _State:
    """Where reading is.

    Attributes:
        position: in the stream of records.
        batches: given so far.
        skipped: all that was passed over; `broken` of it are records that are no tf.Examples.
        negatives_read, negatives_kept: rows without a positive label, where negatives are sampled.
        counts: there, of each label: positives read, negatives read, positives kept, negatives kept.
    """

    position: Position = field(default_factory=Position)
    batches: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    broken: Skipped = field(default_factory=Skipped)
    negatives_read: int = 0
    negatives_kept: int = 0
    counts: dict[str, list[int]] = field(default_factory=dict)


class SegdenseReader:
    """Batches of TFRecords, epoch after epoch; the last one of an epoch goes on with the next epoch's records.

    Every record is given once an epoch, over all ranks. Only the last batch of the last epoch may be short, and one in
    which a broken record was passed over.

    Args:
        config: files, schema, preprocessing.
        labels: features that are labels; they become (rows,) float32 under their names, 0 or 1.
        batch_size: rows a batch, of this rank.
        seed: decides the order.
        rank, world_size: whose share of how many.
        epochs: how often all is read; None has no end. A reader that has come to its end stays there.
        prefetch_batches: how many batches a thread makes in advance.

    Raises:
        ConfigError: a name that the schema lacks, or something that cannot be done to a feature.
        DataError: no files, or a schema or a mask that cannot be read.

    Example:
        reader = SegdenseReader(SegdenseConfig(inputs="data/*.gz", seg_dense_schema={"schema_path": "schema.json"}),
                                labels=["recap.engagement.is_favorited"], batch_size=1024, seed=0)
        batch = next(iter(reader))
    """

    def __init__(
        self,
        config: SegdenseConfig,
        labels: Sequence[str],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        epochs: int | None = None,
        prefetch_batches: int = 4,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ConfigError(
                f"batch_size, rank: found {batch_size}, {rank}, allowed are 1 and more, 0 to {world_size - 1}"
            )
        self.batch_size, self.seed, self.prefetch_batches = batch_size, seed, prefetch_batches
        names = FeatureNames(read_schema(config.seg_dense_schema.schema_path), config.seg_dense_schema.renamed_features)
        rectify, self.sampling = config.preprocess.rectify_labels, config.preprocess.downsample_negatives
        self.labels = SegdenseLabels(names, labels, rectify)
        self.choosing = SegdenseLabels(names, self.sampling.engagements_list if self.sampling else (), rectify)
        self.columns = SegdenseColumns(
            names, config.seg_dense_schema, config.preprocess, frozenset(f.name for f in self.labels.labels.values())
        )
        if self.sampling and self.sampling.num_engagements not in (None, len(labels)):
            found = self.sampling.num_engagements
            raise ConfigError(
                f"downsample_negatives.num_engagements: found {found}, but there are {len(labels)} labels"
            )
        self.rows_to_read = batch_size * (self.sampling.batch_multiplier if self.sampling else 1)
        shuffled = config.examples_shuffle_buffer_size
        self.stream = RecordStream(
            find_files(config)[: config.num_files_to_keep],
            seed,
            rank,
            world_size,
            block=shuffled or self.rows_to_read,
            is_shuffled=shuffled > 0,
            epochs=epochs,
            on_error=config.on_error,
        )
        self._of = self._fingerprint()
        self._state = _State()

    @property
    def skipped(self) -> Skipped:
        """The damaged records and files that were passed over so far, those of the block read last included."""
        return self._state.skipped

    @property
    def negative_rate(self) -> float:
        """The share of negatives that sampling has kept so far; probabilities are to be corrected for it."""
        return self._state.negatives_kept / self._state.negatives_read if self._state.negatives_read else 1.0

    @property
    def sampling_counts(self) -> dict[str, tuple[int, int, int, int]]:
        """Of each label: positives read, negatives read, positives kept, negatives kept; empty without sampling.

        A row without any positive is sampled; a negative of one label may be a positive of another and is then kept.
        So each label has a rate of its own.
        """
        return {label: (a, b, c, d) for label, (a, b, c, d) in self._state.counts.items()}

    def state_dict(self) -> dict[str, Any]:
        """The position behind the batch given last, as plain values."""
        return {**asdict(self._state), "of": self._of}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue behind the batch at which the state was taken.

        Raises:
            DataError: the state is of a reader of other files, seed, ranks or batch sizes.
        """
        if state.get("of") != self._of:
            raise DataError("the position in the data is one of other files, seed, rank, batch or buffer size")
        position = {**state["position"], "skipped": Skipped(**state["position"]["skipped"])}
        self._state = _State(
            Position(**position),
            state["batches"],
            Skipped(**state["skipped"]),
            Skipped(**state["broken"]),
            state["negatives_read"],
            state["negatives_kept"],
            state["counts"],
        )

    def __iter__(self) -> Iterator[Batch]:
        with closing(items_ahead(self._batches(self._state), self.prefetch_batches)) as batches:
            for batch, state in batches:
                self._state = state
                if batch:
                    yield batch

    def _batches(self, state: _State) -> Generator[tuple[Batch | None, _State], None, None]:
        """Every batch behind a state, and the state behind it; None where all records of one were passed over.

        The last is None, too, with what was passed over behind the last record.
        """
        cursor = RecordCursor(self.stream, state.position)
        features = {f.name: f for f in (*self.labels.features, *self.columns.features)}
        to_choose = dict.fromkeys((*self.choosing.features, *self.labels.features))
        parser, chooser = ExampleParser(list(features.values())), ExampleParser(list(to_choose))
        broken = replace(state.broken)
        tolerated = broken if self.stream.on_error == "skip" else None
        is_new, row_in_epoch = not state.batches, state.position.epoch
        while records := cursor.take(self.rows_to_read):
            read, kept, counts = 0, 0, state.counts
            if self.sampling:
                arrays = chooser.parse([record.data for record in records], _where(records), tolerated)
                records = [records[row] for row in chooser.rows]
                is_positive = self.choosing.positive(arrays, _where(records))
                rows, kept = _choose(is_positive, self.batch_size, np.random.default_rng([self.seed, state.batches]))
                read = len(records) - int(is_positive.sum())
                labels = self.labels.tensors(arrays, _where(records))
                counts = {label: _counted(values.numpy(), rows, counts.get(label)) for label, values in labels.items()}
                records = [records[row] for row in rows]
            arrays = parser.parse([record.data for record in records], _where(records), tolerated)
            where = _where([records[row] for row in parser.rows])
            batch = {**self.columns.tensors(arrays, where), **self.labels.tensors(arrays, where)}
            state = _State(
                cursor.position,
                state.batches + 1,
                cursor.skipped + broken,
                replace(broken),
                state.negatives_read + read,
                state.negatives_kept + kept,
                counts,
            )
            if parser.rows:
                is_new, row_in_epoch = False, state.position.epoch
            elif state.position.epoch > row_in_epoch + 1:  # a whole epoch; without end there might be no end
                raise self._nothing(broken)
            yield batch if parser.rows else None, state
        if is_new and broken.records:
            raise self._nothing(broken)
        yield None, replace(state, position=cursor.position, skipped=cursor.skipped + broken)

    def _nothing(self, broken: Skipped) -> DataError:
        return DataError(f"inputs: found no record that can be read in {len(self.stream.files)} files; {broken.first}")

    def _fingerprint(self) -> str:
        files = [(path.name, path.stat().st_size) for path in self.stream.files]
        stream = self.stream
        return fingerprint(
            files, self.seed, stream.rank, stream.world_size, self.rows_to_read, self.batch_size, stream.block
        )


def _where(records: Sequence[Record]) -> Where:
    return lambda row: records[row].where


def _choose(is_positive: Array, count: int, generator: np.random.Generator) -> tuple[Array, int]:
    """`count` rows: all positives, or a sample where there are more, and a sample of negatives; the number of these."""
    positives, negatives = np.flatnonzero(is_positive), np.flatnonzero(~is_positive)
    if len(positives) > count:
        positives = generator.choice(positives, count, replace=False)
    sampled = generator.choice(negatives, min(count - len(positives), len(negatives)), replace=False)
    return np.sort(np.concatenate([positives, sampled])), len(sampled)


def _counted(label: Array, kept: Array, before: Sequence[int] | None) -> list[int]:
    """Positives and negatives read, and those of the rows that are kept, on top of what was counted before."""
    positives, positives_kept = int(label.sum()), int(label[kept].sum())
    found = [positives, len(label) - positives, positives_kept, len(kept) - positives_kept]
    return [a + b for a, b in zip(found, before or [0] * 4, strict=True)]
