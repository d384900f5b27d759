"""Row groups in the order of time; damage of every kind is named, or skipped and counted, and never a crash."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.conftest import ROWS, table
from tml.core.errors import DataError
from tml.data.examples import vector_column
from tml.data.shards import Shards, read_part

SHARD = "train/part-00002.parquet"


def users(tables: Any) -> list[int]:
    return [user for table in tables for user in table["user_id"].to_pylist()]


def test_row_groups_come_in_the_order_of_time(dataset: Path) -> None:
    assert users(read_part(dataset, "train")) == list(range(ROWS))
    (first, *_) = read_part(dataset, "train", ["is_like", "user_id"])
    assert first.column_names == ["is_like", "user_id"]


@pytest.mark.parametrize("skip", [0, 1, 8, 39, 40, 41, 102, 103])
def test_rows_at_the_start_are_left_out(dataset: Path, skip: int) -> None:
    assert users(read_part(dataset, "train", skip_rows=skip)) == list(range(skip, ROWS))


def rewritten(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    """Write the shard anew in row groups of 8, changed."""
    return lambda path: pq.write_table(change(pq.read_table(path)), path, row_group_size=8)


def with_column(name: str, values: Any) -> Callable[[Path], None]:
    return rewritten(lambda t: t.set_column(t.column_names.index(name), name, values))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def in_row(name: str, value: float) -> Callable[[Path], None]:
    """A value in row 20 of the shard, which is in its row group 2."""

    def change(t: pa.Table) -> pa.Table:
        column = t[name].combine_chunks()
        is_vector = pa.types.is_fixed_size_list(column.type)
        values = np.array(column.flatten() if is_vector else column).reshape(len(t), -1)
        values[20, -1] = value
        return t.set_column(
            t.column_names.index(name), name, vector_column(values) if is_vector else pa.array(values[:, 0])
        )

    return rewritten(change)


rows = ROWS - 41
DAMAGE = {
    "missing": (Path.unlink, ": no such shard, but the schema names it", rows),
    "cut off": (cut, ": not readable as Parquet", rows),
    "empty": (lambda path: path.write_bytes(b""), ": not readable as Parquet", rows),
    "rows": (rewritten(lambda t: t.slice(1)), ": found 61 rows, the schema says 62", rows),
    "no column": (rewritten(lambda t: t.drop_columns("is_like")), ": found no column is_like", rows),
    "id type": (
        with_column("user_id", pa.array([str(i) for i in range(rows)])),
        "found user_id of type string, allowed is int64 as in part-00000.parquet",
        rows,
    ),
    "label type": (with_column("is_like", pa.array(["yes"] * rows)), "is_like of type string, allowed is float", rows),
    "vector type": (
        with_column("continuous", vector_column(np.zeros((rows, 1), np.float64))),
        r"continuous of type .*double.*allowed is fixed_size_list.element: float.* as in part-00000",
        rows,
    ),
    "width": (
        with_column("binary", vector_column(np.zeros((rows, 3), np.float32))),
        "binary of type .*, allowed is a fixed-size list of 2 float32",
        rows,
    ),
    "null": (
        with_column("discrete", pa.array([None] + [[1]] * (rows - 1), pa.list_(pa.int32(), 1))),
        "row group 0: found 1 nulls in discrete, allowed are none",
        8,
    ),
    "NaN": (in_row("binary", np.nan), "row group 2: found NaN or infinity in binary", 8),
    "infinity": (in_row("author_embedding", np.inf), "row group 2: found NaN or infinity in author_embedding", 8),
    "infinite label": (in_row("is_like", np.inf), "row group 2: found inf in is_like, allowed are 0 to 1 and NaN", 8),
    "label of 9": (in_row("is_like", 9), "row group 2: found 9.0 in is_like, allowed are 0 to 1 and NaN", 8),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_or_skipped_and_counted(dataset: Path, kind: str) -> None:
    damage, sentence, rows_lost = DAMAGE[kind]
    damage(dataset / SHARD)
    with pytest.raises(DataError, match=f"part-00002.parquet.*{sentence}"):
        list(read_part(dataset, "train"))
    shards = Shards(dataset, "train", on_error="skip")
    read = users(shards.tables())
    assert list(shards.skipped.values()) == [rows_lost]
    assert "part-00002.parquet" in next(iter(shards.skipped))
    expected = range(41) if rows_lost == rows else [user for user in range(ROWS) if not 41 + 16 <= user < 41 + 24]
    assert read == list(expected) if kind != "null" else len(read) == ROWS - 8


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_continuous_features_may_be_anything(dataset: Path, value: float) -> None:
    in_row("continuous", value)(dataset / SHARD)
    assert users(read_part(dataset, "train")) == list(range(ROWS))


def test_a_label_may_be_nan(dataset: Path) -> None:
    in_row("is_like", np.nan)(dataset / SHARD)
    assert users(read_part(dataset, "train")) == list(range(ROWS))


def test_with_every_shard_damaged_there_is_nothing_to_read(dataset: Path) -> None:
    for path in (dataset / "train").iterdir():
        cut(path)
    with pytest.raises(DataError, match="found no row that can be read"):
        Shards(dataset, "train", on_error="skip")


damage_to_bytes = st.one_of(
    st.tuples(st.just("random"), st.binary(max_size=200)),
    st.tuples(st.just("framed"), st.binary(max_size=200)),
    st.tuples(st.just("cut"), st.floats(0, 1)),
    *[
        st.tuples(st.just(place), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4))
        for place in ("pages", "footer")
    ],
)


def damaged(content: bytes, kind: str, how: Any) -> bytes:
    """Random bytes, or a shard that is cut off at a share of its length, or has other bytes in its pages or footer."""
    if kind == "random":
        return bytes(how)
    if kind == "framed":
        return b"PAR1" + bytes(how) + b"PAR1"
    if kind == "cut":
        return content[: int(how * (len(content) - 1))]
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    first, last = (0, footer - 1) if kind == "pages" else (footer, len(content) - 1)
    changed = bytearray(content)
    for place, byte in how:
        changed[first + int(place * (last - first))] = byte
    return bytes(changed)


@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage_to_bytes)
def test_damaged_bytes_are_refused_and_never_read_as_something_else(dataset: Path, damage: tuple[str, Any]) -> None:
    path, whole = dataset / SHARD, dataset / "whole"
    if not whole.exists():
        whole.write_bytes(path.read_bytes())
    path.write_bytes(damaged(whole.read_bytes(), *damage))
    try:
        found = pa.concat_tables(read_part(dataset, "train")).to_pydict()
    except DataError as error:
        found = str(error)
    assert "part-00002.parquet" in found or found == table(range(ROWS)).to_pydict()
