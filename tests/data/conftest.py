"""A small example dataset whose rows are numbered, so that a test can say which of them it has seen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tml.data.examples import DiscreteColumn, ExampleWriter, Part, Schema, vector_column

ROWS = 103
Make = Callable[..., Path]


def table(numbers: Any) -> pa.Table:
    """Row n has n in `continuous`, in the embedding and the user, and the label of whether 3 divides it; 28 bytes."""
    n = np.asarray(numbers)
    return pa.table(
        {
            "user_id": pa.array(n),
            "continuous": vector_column(n[:, None].astype(np.float32)),
            "binary": vector_column(np.ones((len(n), 2), np.float32)),
            "discrete": vector_column(n[:, None].astype(np.int32) % 2),
            "author_embedding": vector_column(n[:, None].astype(np.float32)),
            "is_like": pa.array((n % 3 == 0).astype(np.float32)),
        }
    )


def write_dataset(folder: Path, rows: int = ROWS, shards: tuple[int, ...] = (40, 41), group: int = 8) -> Path:
    """Write `rows` rows in shards that end at these rows, in row groups of `group`."""
    writer = ExampleWriter(folder, "train", group_bytes=group * table([0]).nbytes)
    for span in np.split(np.arange(rows), [end for end in shards if end < rows]):
        writer.write(table(span))
    part = Part("2026-01-01", "2026-01-02", rows, writer.shards, {"is_like": -(-rows // 3)})
    discrete = [DiscreteColumn("posts.topic", ["a"])]
    schema = Schema(["number"], ["one", "two"], discrete, {"is_like": {}}, {"train": part}, {}, {"author_embedding": 1})
    schema.write(folder)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """103 rows in three shards of 40, 1 and 62, in row groups of 8."""
    return write_dataset(tmp_path / "examples")


@pytest.fixture(scope="session")
def shared_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, made once. Read only."""
    return write_dataset(tmp_path_factory.mktemp("shared") / "examples")


@pytest.fixture
def make_dataset(tmp_path: Path) -> Make:
    """Writes a dataset of a name: `make_dataset("name", rows=…)`."""
    return lambda name, **sizes: write_dataset(tmp_path / name, **sizes)
