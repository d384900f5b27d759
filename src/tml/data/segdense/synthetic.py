"""Files of the published shape with random content of which something can be learned.

Seven in ten of the continuous values are 0, as of features that count what rarely happens: each feature has a density
of its own, and what is not 0 is a count or a rate. The probability of every label follows a few of the counts, all
among the first `DRIVERS`, so that it survives the published slicing: logit = base + weights · log(1 + counts).
"""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from tml.core.errors import ConfigError
from tml.core.files import require_replaceable, whole_folder
from tml.core.progress import Bar, progress
from tml.data.config import PUBLISHED_ENGAGEMENTS, PUBLISHED_PREFIX
from tml.data.segdense.schema import write_schema
from tml.data.tf_example_columns import Array, Feature
from tml.data.tf_example_write import write_tfrecords

RENAMED = {
    "continuous": "home_recap_2022_cont__segdense_vals",
    "binary": "home_recap_2022_binary__segdense_vals",
    "discrete": "home_recap_2022_discrete__segdense_vals",
    "user_embedding": "user.timelines.twhin_user_follow_embeddings.twhin_user_follow_embeddings",
    "user_eng_embedding": "user.timelines.twhin_user_engagement_embeddings.twhin_user_engagement_embeddings",
    "author_embedding": "original_author.timelines.twhin_author_follow_embeddings.twhin_author_follow_embeddings",
}
"""The published `renamed_features`."""

LABELS = tuple(
    f"{PUBLISHED_PREFIX}{name}"
    for name in (*PUBLISHED_ENGAGEMENTS, "bookmarked", "shared", "tweet_detail_dwelled_15_sec")
)
"""The thirteen published labels."""

CONTINUOUS, BINARY, DISCRETE, EMBEDDING = 6000, 512, 320, 200
KEYS = ("meta.user_id", "meta.author_id", "meta.tweet_id")
SCHEMA = "schema.json"
DRIVERS = 8
FIRST_DAY = date(2022, 10, 1)

_ROWS_A_BATCH = 256
_BASE_RATES = (0.05, 0.01, 0.008, 0.01, 0.15, 0.003, 0.01, 0.03, 0.005, 0.002, 0.006, 0.004, 0.08)


def published_features() -> tuple[Feature, ...]:
    """The published schema."""
    lengths = {"continuous": CONTINUOUS, "binary": BINARY, "discrete": DISCRETE}
    vectors = [
        Feature(stored, "int64_list" if name in ("binary", "discrete") else "float_list", lengths.get(name, EMBEDDING))
        for name, stored in RENAMED.items()
    ]
    return (*vectors, *(Feature(name, "int64_list", 1) for name in (*KEYS, *LABELS)))


def generate(folder: Path, rows: int, seed: int = 0, files: int = 4, days: int = 1) -> None:
    """Write `schema.json` and gzip TFRecords in a folder for every day, from 1 October 2022 on, whole or not at all.

    Args:
        folder: takes `schema.json` and `2022/10/01/part-00000.tfrecord.gz` and so on; what was there is replaced.
        rows: in all.
        seed: decides the content.
        files: in all, the rows spread evenly over them and they over the days.
        days: at most as many as files.

    Raises:
        ConfigError: more days than files, or more files than rows.
        DataError: a folder with anything else in it than earlier data of this form.
    """
    if not 1 <= days <= files <= rows:
        raise ConfigError(f"days, files, rows: found {days}, {files}, {rows}, allowed are 1 and more, in rising order")
    require_replaceable(folder, [SCHEMA, "2*"], [SCHEMA])
    content = _Content(seed)
    bounds = np.linspace(0, rows, files + 1).astype(int)
    with whole_folder(folder) as partial, progress("generate", rows, "rows") as bar:
        write_schema(partial / SCHEMA, published_features())
        for number, count in enumerate(np.diff(bounds).tolist()):
            day = FIRST_DAY + timedelta(days=number * days // files)
            path = partial / f"{day:%Y/%m/%d}" / f"part-{number:05d}.tfrecord.gz"
            batches = content.batches(np.random.default_rng([seed, number]), count, bar)
            write_tfrecords(path, batches, published_features())


class _Content:
    """What the columns of one data set have in common."""

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.density = generator.beta(0.8, 1.87, CONTINUOUS).astype(np.float32)
        self.density[:DRIVERS] = 0.8
        self.is_count = generator.random(CONTINUOUS) < 0.5
        self.is_count[:DRIVERS] = True
        self.binary_rate = generator.beta(0.5, 2, BINARY)
        self.vocabulary = np.where(generator.random(DISCRETE) < 0.05, 5000, generator.integers(2, 100, DISCRETE))
        self.weights = generator.normal(0, 0.8, (DRIVERS, len(LABELS)))
        self.base = np.log(np.array(_BASE_RATES) / (1 - np.array(_BASE_RATES)))

    def batches(self, generator: np.random.Generator, rows: int, bar: Bar) -> Iterator[dict[str, Array]]:
        for start in range(0, rows, _ROWS_A_BATCH):
            count = min(_ROWS_A_BATCH, rows - start)
            yield self._batch(generator, count)
            bar.advance(count)

    def _batch(self, generator: np.random.Generator, rows: int) -> dict[str, Array]:
        continuous = self._continuous(generator, rows)
        drivers = np.log1p(continuous[:, :DRIVERS]) - 1
        probability = 1 / (1 + np.exp(-(self.base + drivers @ self.weights)))
        labels = generator.random(probability.shape) < probability
        vectors: dict[str, Any] = {
            "continuous": continuous,
            "binary": (generator.random((rows, BINARY)) < self.binary_rate).astype(np.int64),
            "discrete": generator.integers(0, self.vocabulary, (rows, DISCRETE)),
        }
        for name in ("user_embedding", "user_eng_embedding", "author_embedding"):
            vectors[name] = generator.standard_normal((rows, EMBEDDING), np.float32) / np.float32(EMBEDDING**0.5)
        batch = {RENAMED[name]: values for name, values in vectors.items()}
        for name, most in zip(KEYS, (2**31, 2**60, 2**60), strict=True):
            batch[name] = generator.integers(1, most, (rows, 1))
        return batch | {name: labels[:, [i]].astype(np.int64) for i, name in enumerate(LABELS)}

    def _continuous(self, generator: np.random.Generator, rows: int) -> Array:
        values = np.zeros((rows, CONTINUOUS), np.float32)
        is_there = generator.random((rows, CONTINUOUS), np.float32) < self.density
        row, column = np.nonzero(is_there)
        counts = np.ceil(np.exp(generator.standard_normal(len(row), np.float32) * 1.2))
        rates = counts / generator.integers(50, 400, len(row))
        values[row, column] = np.where(self.is_count[column], counts, np.minimum(rates, 1))
        return values
