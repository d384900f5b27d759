"""How long a training at the published size waits for its data, as a share of its time, in each of four parts of it.

    data_wait.tfrecord   of published TFRecords, gzip, with the published slices
    data_wait.parquet    of an example dataset of the same rows

The model, its optimizer and the readers are those of a training; the first steps are left out.

python benchmarks/data_wait.py [--short]
"""

import argparse
import tempfile
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from _machine import print_figure, print_machine
from _published import CONFIG, SHAPES, published_config, published_ranker

from tml.data.converters import convert_log
from tml.data.reader import ExampleReader
from tml.data.segdense import generate
from tml.projects.home.recap.optimizer import build_optimizer
from tml.projects.home.recap.published_data import PublishedInputs

ROWS, WARM_UP, PARTS = 12_000, 3, 4


def waits(batches: Iterable[dict], steps: int) -> list[float]:
    """The share of the time, in each part of the steps, that went into waiting for batches."""
    objective = published_ranker()
    optimizer, scheduler = build_optimizer(objective, CONFIG.optimizer)
    took = []
    start = time.perf_counter()
    for batch in islice(batches, steps + WARM_UP):
        waited = time.perf_counter() - start
        optimizer.zero_grad()
        objective(batch)[0].backward()
        optimizer.step()
        scheduler.step()
        end = time.perf_counter()
        took.append((waited, end - start))
        start = end
    parts = [took[WARM_UP + part :: PARTS] for part in range(PARTS)]
    return [sum(waited for waited, _ in part) / sum(step for _, step in part) for part in parts]


def sliced(batch: dict) -> dict:
    """A batch of an example dataset as the published slices leave it."""
    batch["continuous"] = batch["continuous"][:, : SHAPES.continuous]
    batch["binary"] = batch["binary"][:, : SHAPES.binary]
    return batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer steps")
    steps = 12 if parser.parse_args().short else 60
    print_machine()
    with tempfile.TemporaryDirectory() as folder:
        data, examples = Path(folder) / "data", Path(folder) / "examples"
        generate(data, ROWS, files=8, days=4)
        config = published_config(data)
        for rows in (128, 1024):
            train_data = config.train_data.model_copy(update={"global_batch_size": rows})
            reader = PublishedInputs(config).reader(train_data)
            print_figure(f"data_wait.tfrecord_at_{rows}", waits(reader, steps), "share of time", False)
        convert_log("tfrecords", data, examples)
        for rows in (128, 1024):
            batches = map(sliced, ExampleReader(examples, "train", rows, seed=0))
            print_figure(f"data_wait.parquet_at_{rows}", waits(batches, steps), "share of time", False)


if __name__ == "__main__":
    main()
