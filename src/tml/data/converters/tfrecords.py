"""Published TFRecords to an example dataset that the ranker trains on, and example datasets back to TFRecords.

Published records are examples, not a log: their features are made. Vectors and embeddings go over as they are; what a
record's vectors hold has no names in the published schema, so elements are called `continuous.0` and so on.

The way back writes the published names, `train/` and `validation/` with gzip files, and the published form of schema.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tml.core.errors import DataError
from tml.core.files import whole_folder
from tml.core.progress import Bar, progress
from tml.data.config import PUBLISHED_PREFIX, TaskConfig
from tml.data.converters.writer import Converted
from tml.data.examples import DiscreteColumn, ExampleWriter, Part, Schema, vector_column, vector_values
from tml.data.segdense.schema import read_schema, write_schema
from tml.data.segdense.synthetic import RENAMED
from tml.data.shards import read_part
from tml.data.tf_example import ExampleParser
from tml.data.tf_example_columns import Array, Dtype, Feature, Where
from tml.data.tf_example_write import write_tfrecords
from tml.data.tfrecord import read_records
from tml.features.normalisation import ColumnStatistics

SCHEMA = "schema.json"
VECTORS = ("continuous", "binary", "discrete")
IDS = {"user_id": "meta.user_id", "post_id": "meta.tweet_id", "author_id": "meta.author_id"}
ROWS_A_SHARD, ROWS_A_BATCH = 16_384, 2_048
VALIDATION_SHARE = 5
"""Of files that lie in no folders by day, one in so many, the last ones, is held out."""

_DAY = re.compile(r"(\d{4})/(\d{2})/(\d{2})(?:/(\d{2}))?/[^/]+$")
_UNDATED = datetime(1970, 1, 1)


def convert_tfrecords(source: Path, out: Path) -> Converted:
    """Write an example dataset of a folder of published TFRecords.

    Args:
        source: holds `schema.json` and gzip or plain TFRecords: in `train/` and `validation/`, or in folders by day
            (`2022/10/01`), of which the last day is held out, or in one place, of which the last fifth is.
        out: the dataset.

    Raises:
        DataError: no schema, no records, no labels, nothing to hold out, or a damaged record, by file and number.
    """
    features = {feature.name: feature for feature in read_schema(source / SCHEMA)}
    shown = {name: features[stored] for name, stored in RENAMED.items() if stored in features}
    shown |= {name: features[name] for name in VECTORS if name in features and name not in shown}
    _check_kinds(source / SCHEMA, shown, features)
    labels = [name for name, f in features.items() if name.startswith(PUBLISHED_PREFIX) and f.length == 1]
    if not labels:
        raise DataError(f"{source / SCHEMA}: found no label, allowed are features named {PUBLISHED_PREFIX}…")
    parts = _split(source)
    discrete = _values_seen(parts["train"], shown["discrete"]) if "discrete" in shown else []
    ids = {key: features[stored] for key, stored in IDS.items() if stored in features}
    reader = _Reader(shown, ids, [features[name] for name in labels], discrete)
    statistics = ColumnStatistics(shown["continuous"].length if "continuous" in shown else 0)
    with whole_folder(out) as folder, progress("convert", unit="records") as bar:
        written = {
            name: _write_part(reader, files, ExampleWriter(folder, name), bar, statistics if name == "train" else None)
            for name, files in parts.items()
        }
        rows = {name: part.rows for name, part in written.items()}
        if empty := [name for name, count in rows.items() if not count]:
            raise DataError(f"{source}: found no record for {' and '.join(empty)}, allowed is one or more in each part")
        names = {name: [f"{name}.{i}" for i in range(shown[name].length)] for name in VECTORS if name in shown}
        Schema(
            continuous=names.get("continuous", []),
            binary=names.get("binary", []),
            discrete=[
                DiscreteColumn(name, [str(value) for value in seen.tolist()])
                for name, seen in zip(names.get("discrete", []), discrete, strict=True)
            ],
            tasks={
                name: TaskConfig(engagement=name.removeprefix(PUBLISHED_PREFIX)).model_dump(mode="json")
                for name in labels
            },
            parts=written,
            log={"rows": sum(part.rows for part in written.values())},
            embeddings={name: f.length for name, f in shown.items() if name not in VECTORS},
            statistics=statistics.result() if "continuous" in shown else {},
        ).write(folder)
    return Converted(out, rows, ("elements of vectors have no names in the published schema",), SCHEMA)


def _check_kinds(schema: Path, shown: Mapping[str, Feature], features: Mapping[str, Feature]) -> None:
    """Refuse features that do not fit the columns of an example dataset."""
    ids = [features[stored] for stored in IDS.values() if stored in features]
    for feature in (*shown.values(), *ids):
        whole = feature in ids or feature is shown.get("discrete")
        if feature.length < 1 or feature.dtype == "bytes_list" or (whole and feature.dtype != "int64_list"):
            raise DataError(
                f"{schema}: found {feature.name}, a {feature.dtype} of length {feature.length}, allowed are "
                f"{'integers' if whole else 'numbers'} of a fixed length"
            )


def convert_examples(source: Path, out: Path) -> Converted:
    """Write an example dataset as TFRecords of the published form: `schema.json`, `train/…`, `validation/…`.

    Raises:
        DataError: it is no example dataset, or has no vectors.
    """
    schema = Schema.read(source)
    features = _features(source, schema)
    rows, uncounted = {}, 0
    with whole_folder(out) as folder, progress("convert", sum(p.rows for p in schema.parts.values()), "rows") as bar:
        write_schema(folder / SCHEMA, list(features.values()))
        for part in schema.parts:
            written = 0
            for number, table in enumerate(read_part(source, part)):
                path = folder / part / f"part-{number:05d}.tfrecord.gz"
                written += write_tfrecords(path, _batches(table, schema, features), list(features.values()))
                uncounted += sum(int(np.isnan(table[task].to_numpy()).sum()) for task in schema.tasks)
                bar.advance(table.num_rows)
            rows[part] = written
    note = f"{uncounted:,} labels that do not count are left out of their records, where readers take them as 0"
    return Converted(out, rows, (note,) if uncounted else (), SCHEMA)


def _split(source: Path) -> dict[str, list[Path]]:
    """The files of training and of validation."""

    def inside(folder: Path) -> list[Path]:
        files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((".", "_")))
        return sorted(path for path in files if path.suffix not in (".json", ".yaml", ".npy"))

    if (source / "train").is_dir() and (source / "validation").is_dir():
        parts = {name: inside(source / name) for name in ("train", "validation")}
    else:
        files = inside(source)
        days = sorted({path.parent for path in files})
        cut = max(1, len(files) // VALIDATION_SHARE)
        last = [path for path in files if path.parent == days[-1]] if len(days) > 1 else files[-cut:]
        parts = {"train": [path for path in files if path not in set(last)], "validation": last}
    for name, files in parts.items():
        if not any(path.stat().st_size for path in files):
            raise DataError(
                f"{source}: found no TFRecords for {name}, allowed are folders train and validation, folders of two "
                "days or more, or two files or more"
            )
    return parts


def _values_seen(files: Iterable[Path], feature: Feature) -> list[Array]:
    """For each discrete column the values of training in rising order: its vocabulary."""
    parser = ExampleParser([feature])
    seen: list[set[int]] = [set() for _ in range(feature.length)]
    with progress("read vocabularies", unit="records") as bar:
        for _, records, where in _records(files):
            values = parser.parse(records, where)[feature.name]
            for column, found in zip(seen, np.asarray(values).T, strict=True):
                column.update(np.unique(found).tolist())
            bar.advance(len(records))
    return [np.array(sorted(column), np.int64) for column in seen]


def _records(files: Iterable[Path]) -> Iterator[tuple[Path, list[bytes], Any]]:
    for path in files:
        numbered = read_records(path)
        while taken := list(islice(numbered, ROWS_A_BATCH)):
            yield path, [record for _, record in taken], _Where(path, [number for number, _ in taken])


class _Where:
    """What a record is called in a message."""

    def __init__(self, path: Path, numbers: Sequence[int]) -> None:
        self.path, self.numbers = path, numbers

    def __call__(self, row: int) -> str:
        return f"{self.path}: record {self.numbers[row]}"


class _Reader:
    """Records to tables of examples."""

    def __init__(
        self,
        shown: Mapping[str, Feature],
        ids: Mapping[str, Feature],
        labels: Sequence[Feature],
        discrete: Sequence[Array],
    ) -> None:
        self.shown, self.ids, self.labels, self.discrete = shown, ids, labels, discrete
        self.parser = ExampleParser([*shown.values(), *ids.values(), *labels])
        self.rows = 0

    def tables(self, files: Iterable[Path]) -> Iterator[pa.Table]:
        """One table a batch of records."""
        for path, records, where in _records(files):
            yield self._table(self.parser.parse(records, where), len(records), _served_at(path), where)
            self.rows += len(records)

    def _table(self, arrays: Mapping[str, Any], rows: int, served_at: datetime, where: Where) -> pa.Table:
        stamp = pa.timestamp("us")
        zeros = np.zeros(rows, np.int64)
        keys = {key: arrays[feature.name][:, 0] for key, feature in self.ids.items()}
        columns: dict[str, Any] = {
            "impression_id": np.arange(self.rows, self.rows + rows),
            "session_id": keys.get("user_id", zeros),
            **{key: keys.get(key, zeros) for key in IDS},
            "served_at": pa.array([served_at] * rows, stamp),
            "created_at": pa.nulls(rows, stamp),
            "position": zeros,
        }
        for name, feature in self.shown.items():
            values = arrays[feature.name]
            values = self._places(values) if name == "discrete" else values.astype(np.float32)
            if name not in ("continuous", "discrete"):
                for row in np.flatnonzero(~np.isfinite(values).all(axis=1))[:1]:
                    raise DataError(f"{where(row)}: found NaN or infinity in {name}, allowed are finite numbers")
            columns[name] = vector_column(np.ascontiguousarray(values))
        for feature in self.labels:
            columns[feature.name] = (arrays[feature.name][:, 0] > 0).astype(np.float32)
        return pa.table(columns)

    def _places(self, values: Array) -> Array:
        """A value's place in its column's vocabulary and 1 more, 0 for one that training has not."""
        places = np.zeros(values.shape, np.int32)
        for i, seen in enumerate(self.discrete):
            if not len(seen):
                continue
            at = np.searchsorted(seen, values[:, i]).clip(max=len(seen) - 1)
            places[:, i] = np.where(seen[at] == values[:, i], at + 1, 0)
        return places


def _served_at(path: Path) -> datetime:
    """The day or hour that a file's folders say."""
    found = _DAY.search(path.as_posix())
    if not found:
        return _UNDATED
    try:
        year, month, day, hour = (int(number) for number in found.groups(default="0"))
        return datetime(year, month, day, hour)
    except ValueError:  # numbers of something else
        return _UNDATED


def _write_part(
    reader: _Reader, files: Sequence[Path], writer: ExampleWriter, bar: Bar, statistics: ColumnStatistics | None
) -> Part:
    positives = dict.fromkeys((feature.name for feature in reader.labels), 0)
    waiting: list[pa.Table] = []

    def write() -> None:
        if waiting:
            writer.write(pa.concat_tables(waiting).combine_chunks())
            waiting.clear()

    for table in reader.tables(files):
        if statistics and "continuous" in reader.shown:
            statistics.add(vector_values(table["continuous"]))
        for name in positives:
            positives[name] += int(table[name].to_numpy().sum())
        waiting.append(table)
        if sum(each.num_rows for each in waiting) >= ROWS_A_SHARD:
            write()
        bar.advance(table.num_rows)
    write()
    times = [_served_at(path) for path in files]
    end = max(times) + timedelta(days=1)
    return Part(min(times).isoformat(), end.isoformat(), sum(writer.shards.values()), writer.shards, positives)


def _features(source: Path, schema: Schema) -> dict[str, Feature]:
    """Column of the examples → the published feature."""
    (first,) = islice(read_part(source, next(iter(schema.parts))), 1)
    features = {}
    for name, width in schema.widths().items():
        kind: Dtype = "int64_list" if name in ("binary", "discrete") else "float_list"
        features[name] = Feature(RENAMED.get(name, name), kind, width)
    if not features:
        raise DataError(f"{source}: found no vectors, allowed is an example dataset with features")
    for key, stored in IDS.items():
        is_text = not pa.types.is_integer(first[key].type)
        features[key] = Feature(stored, "bytes_list" if is_text else "int64_list", 1)
    return features | {task: Feature(task, "int64_list", 1) for task in schema.tasks}


def _batches(table: pa.Table, schema: Schema, features: Mapping[str, Feature]) -> Iterator[dict[str, Array]]:
    vectors = schema.widths()
    for start in range(0, table.num_rows, ROWS_A_BATCH):
        piece = table.slice(start, ROWS_A_BATCH)
        batch: dict[str, Array] = {}
        for column, feature in features.items():
            if column in vectors:
                values = vector_values(piece[column])
                batch[feature.name] = values if feature.dtype == "float_list" else values.astype(np.int64)
            elif column in IDS:
                batch[feature.name] = _ids(piece[column], feature)
        yield from _by_labels(batch, piece, schema, features)


def _ids(column: pa.ChunkedArray, feature: Feature) -> Array:
    if feature.dtype == "int64_list":
        return np.asarray(column.fill_null(0), np.int64)[:, None]
    texts = [str(value).encode() if value is not None else b"" for value in column.to_pylist()]
    return np.array(texts, dtype=object)[:, None]


def _by_labels(
    batch: Mapping[str, Array], piece: pa.Table, schema: Schema, features: Mapping[str, Feature]
) -> Iterator[dict[str, Array]]:
    """The batch with its labels, cut where other labels count: one that does not is left out of its records."""
    labels = np.stack([piece[task].to_numpy() for task in schema.tasks], axis=1)
    counts = ~np.isnan(labels)
    changes = np.flatnonzero((counts[1:] != counts[:-1]).any(axis=1)) + 1
    for first, last in zip([0, *changes.tolist()], [*changes.tolist(), len(labels)], strict=True):
        rows = slice(first, last)
        own = {name: values[rows] for name, values in batch.items()}
        for i, task in enumerate(schema.tasks):
            if counts[first, i]:
                own[features[task].name] = labels[rows, [i]].astype(np.int64)
        yield own
