"""Reading an example dataset: every row once an epoch, an order that the seed decides, an exact position."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tml.core.errors import DataError, MissingStage
from tml.data import examples as module
from tml.data.examples import DiscreteColumn, ExampleReader, ExampleWriter, Part, Schema, vector_column

ROWS = 103


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of 103 rows in three shards of row groups of 8; the only continuous feature numbers the rows."""
    monkeypatch.setattr(module, "ROWS_PER_GROUP", 8)
    writer = ExampleWriter(tmp_path, "train")
    for span in np.split(np.arange(ROWS), [40, 41]):
        columns: dict[str, Any] = {
            "continuous": vector_column(span[:, None].astype(np.float32)),
            "binary": vector_column(np.ones((len(span), 2), np.float32)),
            "discrete": vector_column(np.ones((len(span), 1), np.int32)),
            "is_like": pa.array((span % 3 == 0).astype(np.float32)),
        }
        writer.write(pa.table(columns))
    part = Part("2026-01-01", "2026-01-02", ROWS, writer.shards, {"is_like": 35})
    discrete = [DiscreteColumn("posts.topic", ["a"])]
    Schema(["number"], ["one", "two"], discrete, {"is_like": {}}, {"train": part}, {}).write(tmp_path)
    return tmp_path


def numbers(batches: Any) -> list[list[int]]:
    return [batch["continuous"][:, 0].int().tolist() for batch in batches]


@pytest.mark.parametrize("pool_groups", [1, 3, 64])
def test_an_epoch_has_every_row_once_but_for_the_last_batch(dataset: Path, pool_groups: int) -> None:
    reader = ExampleReader(dataset, "train", 10, seed=1, pool_groups=pool_groups)
    assert reader.batches_per_epoch == 10
    first, second = (numbers(islice(iter(reader), 10)) for _ in range(2))
    for epoch in (first, second):
        assert len({row for batch in epoch for row in batch}) == 100
    assert first != second
    assert first != sorted(first)


@pytest.mark.parametrize("pool_groups", [1, 3, 64])
@pytest.mark.parametrize("position", [0, 1, 7, 10, 23])
def test_a_restored_position_continues_exactly(dataset: Path, pool_groups: int, position: int) -> None:
    def reader() -> ExampleReader:
        return ExampleReader(dataset, "train", 10, seed=1, pool_groups=pool_groups)

    one = reader()
    stream = iter(one)
    numbers(islice(stream, position))
    state = one.state_dict()
    other = reader()
    other.load_state_dict(state)
    assert numbers(islice(iter(other), 15)) == numbers(islice(stream, 15))


def test_the_seed_decides_the_order_and_labels_come_by_name(dataset: Path) -> None:
    batches = [next(iter(ExampleReader(dataset, "train", 16, seed=seed))) for seed in (1, 1, 2)]
    assert torch.equal(batches[0]["continuous"], batches[1]["continuous"])
    assert not torch.equal(batches[0]["continuous"], batches[2]["continuous"])
    assert torch.equal(batches[0]["is_like"], (batches[0]["continuous"][:, 0] % 3 == 0).float())
    assert batches[0]["discrete"].dtype == torch.int64


def test_what_is_wrong_with_a_dataset_is_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingStage, match="tml features"):
        ExampleReader(tmp_path / "nowhere", "train", 8, seed=0)
    with pytest.raises(DataError, match="no part 'test', allowed are train"):
        ExampleReader(dataset, "test", 8, seed=0)
    with pytest.raises(DataError, match="batch_size: found 104"):
        ExampleReader(dataset, "train", 104, seed=0)
    shard = dataset / "train" / "part-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"part-00002\.parquet: not a readable Parquet file"):
        ExampleReader(dataset, "train", 8, seed=0)
    shard.unlink()
    with pytest.raises(DataError, match=r"part-00002\.parquet: no such shard"):
        ExampleReader(dataset, "train", 8, seed=0)
    (dataset / "schema.json").write_text("{}")
    with pytest.raises(DataError, match="not the schema"):
        Schema.read(dataset)
