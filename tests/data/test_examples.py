"""The format of an example dataset: what is written is read again, and a schema that is none is one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tml.core.errors import DataError, MissingStage
from tml.data.examples import ExampleWriter, Schema, to_tensors, vector_column, vector_values


def test_a_schema_is_read_as_it_was_written(dataset: Path, tmp_path: Path) -> None:
    schema = Schema.read(dataset)
    assert schema.widths() == {"continuous": 1, "binary": 2, "discrete": 1, "author_embedding": 1}
    schema.write(tmp_path)
    assert Schema.read(tmp_path) == schema


def test_what_is_wrong_with_a_schema_is_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingStage, match="tml features"):
        Schema.read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no part 'test', allowed are train"):
        Schema.read(dataset).part("test")
    path = dataset / "schema.json"
    for wrong in ("{}", "[]", path.read_text().replace('"rows": 103', '"rows": "many"'), "[" * 100_000):
        path.write_text(wrong)
        with pytest.raises(DataError, match=r"schema\.json: not the schema"):
            Schema.read(dataset)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
@example(b'{"continuous": 1}')
def test_random_bytes_are_no_schema(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "schema.json").write_bytes(content)
    with pytest.raises(DataError, match="not the schema"):
        Schema.read(tmp_path)


def write_one(folder: Path, table: pa.Table, group_bytes: int) -> pq.ParquetFile:
    writer = ExampleWriter(folder, "train", group_bytes)
    writer.write(table)
    assert writer.shards == {"train/part-00000.parquet": table.num_rows}
    return pq.ParquetFile(folder / "train" / "part-00000.parquet")


def test_a_row_group_holds_so_many_bytes(tmp_path: Path) -> None:
    table = pa.table({"continuous": vector_column(np.zeros((1000, 25), np.float32))})
    file = write_one(tmp_path, table, 6_400)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [64] * 15 + [40]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((50, 3)).astype(np.float32)
    values[3, 1], values[4, 2] = np.nan, np.inf
    nullable: Any = pa.array([[1.0, None], [2.0, 3.0]] * 25, pa.list_(pa.float32(), 2))
    table = pa.table({"continuous": vector_column(values), "user_id": ["a", None] * 25, "other": nullable})
    read = write_one(tmp_path, table, 400).read()
    np.testing.assert_array_equal(vector_values(read["continuous"]), values)
    assert read["user_id"].equals(table["user_id"])
    assert read["other"].to_pylist() == nullable.to_pylist()
    assert vector_values(read["continuous"].slice(0, 0)).shape == (0, 3)


@pytest.mark.parametrize("chunks", [0, 1, 2])
def test_tensors_are_the_columns_by_name(dataset: Path, chunks: int) -> None:
    schema = Schema.read(dataset)
    table = pq.read_table(dataset / "train" / "part-00000.parquet")
    table = pa.concat_tables([table.slice(2, 5), table.slice(9, 20)][:chunks]) if chunks else table.slice(0, 0)
    batch = to_tensors(table, schema)
    assert list(batch) == ["continuous", "binary", "discrete", "author_embedding", "is_like"]
    numbers = torch.tensor(table["user_id"].to_pylist(), dtype=torch.int64)
    assert batch["discrete"].dtype == torch.int64
    assert torch.equal(batch["continuous"], numbers[:, None].float())
    assert torch.equal(batch["binary"], torch.ones(len(numbers), 2))
    assert torch.equal(batch["discrete"], numbers[:, None] % 2)
    assert torch.equal(batch["author_embedding"], numbers[:, None].float())
    assert torch.equal(batch["is_like"], (numbers % 3 == 0).float())


def test_a_label_that_is_null_does_not_count(dataset: Path) -> None:
    schema = Schema.read(dataset)
    table = pq.read_table(dataset / "train" / "part-00000.parquet").slice(0, 3)
    labels = pa.array([None, 0.0, 1.0], pa.float32())
    batch = to_tensors(table.set_column(table.column_names.index("is_like"), "is_like", labels), schema)
    assert batch["is_like"][0].isnan()
    assert batch["is_like"][1:].tolist() == [0, 1]
