"""What an example dataset says of itself is true of its shards."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tml.data.config import LogConfig, TaskConfig
from tml.data.examples import Schema, vector_values
from tml.data.log import open_log
from tml.data.shards import read_part
from tml.features.build import build_examples
from tml.features.config import FeaturesConfig, SplitConfig


@pytest.fixture(scope="module")
def examples(simulated: LogConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build") / "examples"
    tasks = {
        "is_favorited": TaskConfig(engagement="favorited"),
        "sampled": TaskConfig(engagement="favorited", negative_sampling_rate=0.2),
    }
    features = FeaturesConfig(keys=(("user_id",), ("topic",)), chunk_rows=700)
    with open_log(simulated) as log:
        build_examples(log, tasks, features, SplitConfig(), folder, seed=5, fingerprint="abc")
    return folder


def whole(folder: Path, part: str) -> pa.Table:
    return pa.concat_tables(read_part(folder, part))


def test_the_schema_counts_rows_shards_and_positives(examples: Path) -> None:
    schema = Schema.read(examples)
    for name, part in schema.parts.items():
        table = whole(examples, name)
        assert (part.rows, sum(part.shards.values())) == (len(table), len(table))
        assert set(list(part.shards.values())[:-1]) == {700}
        assert part.positives == {task: int(np.nansum(table[task].to_numpy())) for task in schema.tasks}
        served = table["served_at"].to_pylist()
        assert served == sorted(served)


def test_the_schema_has_the_statistics_of_training(examples: Path) -> None:
    schema = Schema.read(examples)
    values = vector_values(whole(examples, "train")["continuous"]).astype(np.float64)
    logarithm = np.sign(values) * np.log1p(np.abs(values))
    for name, expected in {
        "mean": values.mean(axis=0),
        "deviation": values.std(axis=0),
        "maximum": values.max(axis=0),
        "zeros": (values == 0).mean(axis=0),
        "log_mean": logarithm.mean(axis=0),
        "log_deviation": logarithm.std(axis=0),
        "log_minimum": logarithm.min(axis=0),
    }.items():
        np.testing.assert_allclose(schema.statistics[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_negatives_are_sampled_in_training_alone_and_the_rate_is_said(examples: Path) -> None:
    train, validation = whole(examples, "train"), whole(examples, "validation")
    assert Schema.read(examples).tasks["sampled"]["negative_sampling_rate"] == 0.2
    assert validation["sampled"].equals(validation["is_favorited"])
    sampled, labels = train["sampled"].to_numpy(), train["is_favorited"].to_numpy()
    kept = ~np.isnan(sampled)
    assert kept[labels == 1].all()
    assert kept[labels == 0].mean() == pytest.approx(0.2, abs=0.02)
    np.testing.assert_array_equal(sampled[kept], labels[kept])
