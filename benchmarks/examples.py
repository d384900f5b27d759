"""Reading an example dataset of the published width: 2,117 continuous, 59 binary, 320 discrete, 3 of 200, 13 labels.

    examples.read               shuffled batches of 1,024 out of Parquet, in bytes of the values as they are stored
    examples.read_per_core      the same in a second of one core, whatever else the machine does meanwhile
    examples.read_vs_decode     its rate over that of decoding the same row groups and doing nothing with them, by as
                                many threads: the limit of whatever reads Parquet
    examples.read_vs_training   rows read a second over rows a second that the published model is trained on, from a
                                batch in memory
    examples.memory.NGB         the most memory that a process of its own takes for an epoch of N GB, decoded; in pools
                                of 128 MB, so that both datasets are many; 260 MB of it are Python and torch
    examples.memory_growth      that of the larger dataset over that of the smaller

The continuous features are 90 % zeros, the rest counts and rates. Files are in the system's cache when they are read.
A reader is timed over three epochs, from its first batch to the end of its threads.

python benchmarks/examples.py [--short]
"""

import argparse
import itertools
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _machine import print_figure, print_machine, seconds

from tml.data.examples import DiscreteColumn, ExampleWriter, Part, Schema, vector_column
from tml.data.reader import ExampleReader

BATCH = 1024
EMBEDDINGS = ("user_embedding", "user_eng_embedding", "author_embedding")
CONTINUOUS, BINARY, DISCRETE, WIDTH, TASKS = 2117, 59, 320, 200, 13
ROW_BYTES = 4 * (CONTINUOUS + BINARY + DISCRETE + len(EMBEDDINGS) * WIDTH + TASKS)
SHARD_ROWS = 10 * BATCH
EPOCHS = 3
SMALL_POOL = 128 * 2**20


def features(rng: np.random.Generator, rows: int) -> npt.NDArray[np.float32]:
    """Mostly zeros, as counts of engagements are."""
    values = np.where(rng.random((rows, CONTINUOUS)) < 0.7, rng.geometric(0.3, (rows, CONTINUOUS)), rng.random())
    return np.where(rng.random((rows, CONTINUOUS)) < 0.1, values, 0).astype(np.float32)


def table(rng: np.random.Generator, rows: int) -> pa.Table:
    columns: dict[str, Any] = {
        "continuous": vector_column(features(rng, rows)),
        "binary": vector_column((rng.random((rows, BINARY)) < 0.2).astype(np.float32)),
        "discrete": vector_column(rng.integers(0, 100, (rows, DISCRETE)).astype(np.int32)),
    }
    columns |= {name: vector_column(rng.standard_normal((rows, WIDTH), np.float32)) for name in EMBEDDINGS}
    columns |= {f"task_{i}": (rng.random(rows) < 0.05).astype(np.float32) for i in range(TASKS)}
    return pa.table(columns)


def write_dataset(folder: Path, gigabytes: float) -> None:
    """One shard of random rows, and copies of it, since drawing and writing would take longer than all the rest."""
    shards = max(1, round(gigabytes * 1e9 / ROW_BYTES / SHARD_ROWS))
    writer = ExampleWriter(folder, "train")
    writer.write(table(np.random.default_rng(0), SHARD_ROWS))
    (first,) = writer.shards
    names = [first] + [f"train/copy-{number:05d}.parquet" for number in range(1, shards)]
    for name in names[1:]:
        shutil.copyfile(folder / first, folder / name)
    Schema(
        continuous=[f"continuous_{i}" for i in range(CONTINUOUS)],
        binary=[f"binary_{i}" for i in range(BINARY)],
        discrete=[DiscreteColumn(f"discrete_{i}", []) for i in range(DISCRETE)],
        tasks={f"task_{i}": {} for i in range(TASKS)},
        parts={"train": Part("", "", shards * SHARD_ROWS, dict.fromkeys(names, SHARD_ROWS), {})},
        log={},
        embeddings=dict.fromkeys(EMBEDDINGS, WIDTH),
    ).write(folder)


def decode(folder: Path, executor: ThreadPoolExecutor) -> None:
    """The same row groups and columns, decoded and dropped."""

    def one(item: tuple[Path, int]) -> int:
        file = pq.ParquetFile(item[0], page_checksum_verification=True)
        return int(file.read_row_group(item[1], use_threads=False).num_rows)

    paths = sorted((folder / "train").iterdir())
    groups = pq.read_metadata(paths[0]).num_row_groups  # the shards are copies
    sum(executor.map(one, itertools.product(paths, range(groups))))


def speed(gigabytes: float, runs: int) -> float:
    """Print the rates; returns the median rows a second."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "examples"
        write_dataset(folder, gigabytes)
        ours, cores, limit = [], [], []
        with ThreadPoolExecutor(torch.get_num_threads()) as executor:
            decode(folder, executor)
            for _ in range(runs):
                reader = ExampleReader(folder, "train", BATCH, seed=0, epochs=EPOCHS)
                before = time.process_time()
                ours.append(seconds(lambda: deque(reader, maxlen=0)) / EPOCHS)  # noqa: B023 - it is called at once
                cores.append((time.process_time() - before) / EPOCHS)
                limit.append(seconds(lambda: decode(folder, executor)))
    print_figure("examples.read", [reader.rows * ROW_BYTES / 1e6 / took for took in ours], "MB/s", True)
    print_figure("examples.read_per_core", [reader.rows * ROW_BYTES / 1e6 / took for took in cores], "MB/s", True)
    print_figure("examples.read_vs_decode", [b / a for a, b in zip(ours, limit, strict=True)], "ratio", True)
    return reader.rows / statistics.median(ours)


def against_training(rows_a_second: float, runs: int) -> None:
    """A training step of the published model, as it trains by default, on a batch that is there."""
    from _published import published_ranker, random_batch
    from train_step import ours

    from tml.core.memory import keep_freed_memory

    keep_freed_memory()
    batch = random_batch(BATCH)
    with ours(published_ranker(), "auto") as (step, _):
        step(batch)
        took = [seconds(lambda: step(batch)) for _ in range(runs)]
    print_figure("examples.read_vs_training", [rows_a_second / (BATCH / t) for t in took], "ratio", True)


def memory(sizes: Iterable[float]) -> None:
    """The peak of a process that reads a dataset, for each size."""
    peaks = []
    for gigabytes in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "examples"
            write_dataset(folder, gigabytes)
            command = [sys.executable, __file__, "--read", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout))
        print_figure(f"examples.memory.{gigabytes:g}GB", [peaks[-1]], "MB", False)
    print_figure("examples.memory_growth", [peaks[-1] / peaks[0]], "ratio", False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="few runs on small datasets")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        deque(ExampleReader(arguments.read, "train", BATCH, seed=0, pool_bytes=SMALL_POOL, epochs=1), maxlen=0)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3))
        return
    print_machine()
    # First, while this process is small: Linux counts the peak of a process from that of the one that started it.
    memory((1, 2) if arguments.short else (1, 8))
    rows_a_second = speed(1, 3) if arguments.short else speed(2, 5)
    against_training(rows_a_second, 2 if arguments.short else 5)


if __name__ == "__main__":
    main()
