"""Published TFRecords on one core, against plain protocol buffers and against decompression alone.

The records have the published shape (6,000 + 600 floats, 512 + 320 + 16 integers, 27 kB) and seven in ten of the
continuous values are 0, since random floats alone would not compress; the files are gzip at zlib's level 6, which
TensorFlow writes. The plain reader is Python's gzip, the same checksums, and google.protobuf (its C library) with each
feature's values taken over as an array, which is the quickest way that it has. Times are of the processor, the files
in memory.

There are two ratios. `read_vs_protobuf` is from file to arrays, each side with its own decompression, which is most of
the time of both; `parse_vs_protobuf` is from records that are decompressed already, and says what the parser alone
gains.

python benchmarks/tfrecord.py [--short]
"""

import argparse
import gzip
import itertools
import os
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import torch
from _machine import print_figure, print_machine
from isal import isal_zlib

from tml.data.segdense import SegdenseConfig, SegdenseReader, generate, published_features
from tml.data.segdense.synthetic import LABELS, RENAMED
from tml.data.tf_example import ExampleParser
from tml.data.tfrecord import read_records, write_records

# The tests have a reader of the same messages that shares no code with this package.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference import tf_example as plain

BATCH = 500


def batches(records: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The records in batches."""
    records = iter(records)
    while batch := list(itertools.islice(records, BATCH)):
        yield batch


def seconds(work: Callable[[], object]) -> float:
    """How long a core works on one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def read(path: Path) -> None:
    """The file as arrays, by this package."""
    parse(record for _, record in read_records(path))


def parse(records: Iterable[bytes]) -> None:
    """Records as arrays, by this package."""
    parser = ExampleParser(published_features())
    for batch in batches(records):
        parser.parse(batch)


def parse_plainly(records: Iterable[bytes]) -> None:
    """Records as arrays, by google.protobuf."""
    features = published_features()
    shapes = {f.name: (np.float32 if f.dtype == "float_list" else np.int64, f.length) for f in features}
    for batch in batches(records):
        plain.parse(batch, shapes)


def read_plainly(path: Path) -> None:
    """The file as arrays, by gzip and google.protobuf."""
    parse_plainly(records_plainly(path))


def records_plainly(path: Path) -> Iterator[bytes]:
    """The records, checksums checked."""
    with gzip.open(path) as file:
        while header := file.read(12):
            record, crc = file.read(struct.unpack("<Q", header[:8])[0]), struct.unpack("<I", file.read(4))[0]
            found = google_crc32c.value(record)
            assert ((found >> 15 | found << 17) + 0xA282EAD8) & 0xFFFFFFFF == crc
            yield record


def read_batches(folder: Path) -> None:
    """The file as batches of tensors with the published slices, without a thread that works ahead."""
    config = SegdenseConfig.model_validate(
        {
            "inputs": f"{folder}/*.gz",
            "seg_dense_schema": {"schema_path": folder / "schema.json", "renamed_features": RENAMED},
            "preprocess": {
                "truncate_and_slice": {"continuous_feature_truncation": 2117, "binary_feature_truncation": 59}
            },
        }
    )
    for _ in SegdenseReader(config, LABELS, BATCH, seed=0, epochs=1, prefetch_batches=0):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="few records and runs")
    rows, runs = (500, 5) if parser.parse_args().short else (4_000, 15)
    print_machine()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wrote = seconds(lambda: generate(folder / "made", rows, files=1))
        print_figure("segdense.generated_rows_per_second", [rows / wrote], "1/s", True)
        records = [record for _, record in read_records(next(folder.glob("made/**/*.gz")))]
        (folder / "schema.json").write_bytes((folder / "made/schema.json").read_bytes())
        path = folder / "part.gz"
        write_records(path, records, "none")
        packed = gzip.compress(path.read_bytes(), 6)
        path.write_bytes(packed)
        print_figure("tfrecord.compression", [sum(map(len, records)) / len(packed)], "ratio", True)
        measure(folder, path, records, packed, runs)


def measure(folder: Path, path: Path, records: list[bytes], packed: bytes, runs: int) -> None:
    """Time every way of reading in turn, and print rates and ratios."""
    ways: dict[str, Callable[[], object]] = {
        "read": lambda: read(path),
        "read plainly": lambda: read_plainly(path),
        "parse": lambda: parse(records),
        "parse plainly": lambda: parse_plainly(records),
        "batches": lambda: read_batches(folder),
        "isal": lambda: isal_zlib.decompress(packed, wbits=31),
        "zlib": lambda: zlib.decompress(packed, wbits=31),
        "write": lambda: write_records(folder / "again", records),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            took[name].append(seconds(way))
    for name, way in (("read", "read"), ("reader", "batches"), ("plain_read", "read plainly"), ("write", "write")):
        print_figure(f"tfrecord.{name}_records_per_second", [len(records) / t for t in took[way]], "1/s", True)
    for name, slow, fast in (
        ("read_vs_protobuf", "read plainly", "read"),
        ("parse_vs_protobuf", "parse plainly", "parse"),
        ("share_of_decompression_rate", "isal", "read"),
        ("isal_vs_zlib", "zlib", "isal"),
    ):
        ratios = [a / b for a, b in zip(took[slow], took[fast], strict=True)]
        print_figure(f"tfrecord.{name}", ratios, "ratio", True)


if __name__ == "__main__":
    main()
