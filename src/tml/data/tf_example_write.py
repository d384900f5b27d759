"""Arrays to serialised tf.Examples, in the bytes that protocol buffers' own writers make of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tml.core.errors import DataError
from tml.data.tf_example_columns import VARIABLE, Array, Feature, Ragged
from tml.data.tf_example_wire import KINDS, entry_header
from tml.data.tfrecord import Compression, write_records
from tml.data.varints import encode, varint

_header = lru_cache(maxsize=1 << 16)(entry_header)


def write_tfrecords(
    path: Path,
    batches: Iterable[Mapping[str, Array | Ragged]],
    features: Sequence[Feature],
    compression: Compression = "gzip",
) -> int:
    """Write batches as one TFRecord file of tf.Examples, whole or not at all, one batch in memory at a time.

    Args:
        path: the file; its folder is made where it is not there.
        batches: name → array (rows, length), or `Ragged` where the length is variable. A feature that a batch lacks
            is left out of its records, which readers take as 0.
        features: the schema; their order is the order in the records.
        compression: `gzip` or `none`.

    Returns:
        How many records were written.

    Raises:
        DataError: a batch has a feature that the schema lacks, or one of another kind or length.
    """
    return write_records(path, (record for batch in batches for record in serialize(batch, features)), compression)


def serialize(batch: Mapping[str, Array | Ragged], features: Sequence[Feature]) -> Iterator[bytes]:
    """The rows of a batch as serialised tf.Examples.

    Example:
        >>> list(serialize({"id": np.array([[300]])}, [Feature("id", "int64_list", 1)]))
        [b'\\n\\x0f\\n\\r\\n\\x02id\\x12\\x07\\x1a\\x05\\n\\x03\\xac\\x02']
    """
    unknown = batch.keys() - {feature.name for feature in features}
    if unknown:
        raise DataError(f"batch: found the feature {min(unknown)!r}, which the schema does not have")
    entries = [_entries(batch[feature.name], feature) for feature in features if feature.name in batch]
    for row in zip(*entries, strict=True):
        record = b"".join(row)
        yield b"\x0a" + varint(len(record)) + record


def _entries(values: Array | Ragged, feature: Feature) -> Iterator[bytes]:
    """The map entry of one feature for every row."""
    flat, offsets = values if isinstance(values, Ragged) else _as_ragged(values, feature)
    name = feature.name.encode()
    if feature.dtype == "bytes_list":
        for start, end in pairwise(offsets.tolist()):
            content = b"".join(b"\x0a" + varint(len(string)) + string for string in flat[start:end])
            yield _bytes_entry(name, content)
        return
    if feature.dtype == "float_list":
        data, at = np.ascontiguousarray(flat, "<f4").view(np.uint8).data, 4 * offsets
    else:
        encoded, starts = encode(flat.astype(np.int64, copy=False))
        data, at = memoryview(encoded), starts[offsets]
    kind = KINDS.index(feature.dtype)
    bounds = at.tolist()
    for start, end in pairwise(bounds):
        yield _header(name, kind, end - start) + data[start:end]


def _as_ragged(values: Array, feature: Feature) -> Ragged:
    allowed: dict[str, Any] = {"int64_list": "iub", "float_list": "f", "bytes_list": "OS"}
    if feature.length == VARIABLE or values.shape[1:] != (feature.length,):
        length = "Ragged" if feature.length == VARIABLE else f"(rows, {feature.length})"
        raise DataError(f"batch: feature {feature.name}: found an array {values.shape}, allowed is {length}")
    if values.dtype.kind not in allowed[feature.dtype]:
        raise DataError(f"batch: feature {feature.name}: found {values.dtype} values, allowed is {feature.dtype}")
    return Ragged(values.reshape(-1), np.arange(len(values) + 1) * feature.length)


def _bytes_entry(name: bytes, content: bytes) -> bytes:
    value = b"\x0a" + varint(len(content)) + content
    body = b"\x0a" + varint(len(name)) + name + b"\x12" + varint(len(value)) + value
    return b"\x0a" + varint(len(body)) + body
