import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tml.core.errors import DataError
from tml.embeddings.files import Embeddings, read_embeddings, write_embeddings

VECTORS = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.mark.parametrize("ids", [[3, 1, 2], ["c", "a", "b"]])
def test_what_is_written_is_read_back_in_its_order(tmp_path, ids):
    write_embeddings(tmp_path / "user.parquet", ids, VECTORS)

    table = read_embeddings(tmp_path / "user.parquet", width=2)
    assert table.ids.to_pylist() == ids
    assert table.ids.type == pa.array(ids).type
    assert table.vectors.dtype == np.float32
    np.testing.assert_array_equal(table.vectors, VECTORS)
    schema = pq.read_schema(tmp_path / "user.parquet")
    assert schema.names == ["id", "vector"]
    assert schema.field("vector").type == pa.list_(pa.float32(), 2)


def test_equal_content_makes_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_embeddings(tmp_path / name, np.array([1, 2, 3]), VECTORS)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_folder_of_files_is_one_table(tmp_path):
    write_embeddings(tmp_path / "b.parquet", [3], VECTORS[2:])
    write_embeddings(tmp_path / "a.parquet", [1, 2], VECTORS[:2])
    table = read_embeddings(tmp_path)
    assert table.ids.to_pylist() == [1, 2, 3]
    np.testing.assert_array_equal(table.vectors, VECTORS)


def test_an_unknown_or_absent_id_gets_zeros():
    table = Embeddings(pa.array([10, 20, 30]), VECTORS)
    np.testing.assert_array_equal(table.lookup([30, 99, None, 10]), [[4, 5], [0, 0], [0, 0], [0, 1]])
    np.testing.assert_array_equal(table.lookup(np.array([20], np.int32)), [[2, 3]])
    assert table.lookup([]).shape == (0, 2)
    names = Embeddings(pa.array(["b", "c", "a"]), VECTORS)
    np.testing.assert_array_equal(names.lookup(["a", "z", None, "b"]), [[4, 5], [0, 0], [0, 0], [0, 1]])


def test_ids_of_another_type_are_refused():
    with pytest.raises(DataError, match="ids of type string, allowed is the table's type int64"):
        Embeddings(pa.array([1, 2, 3]), VECTORS).lookup(["1"])


def _written(path, ids, vectors):
    pq.write_table(pa.table({"id": ids, "vector": vectors}), path)
    return path


def _lists(values, width=2):
    return pa.array(values, pa.list_(pa.float32(), width))


def test_numbers_that_the_ids_type_lacks_are_unknown():
    table = Embeddings(pa.array([5, 7], pa.int32()), np.eye(2, dtype=np.float32))
    assert table.rows(pa.array([7, 1 << 40, None, -1], pa.int64())).tolist() == [1, -1, -1, -1]
    table = Embeddings(pa.array([5, (1 << 64) - 1], pa.uint64()), np.eye(2, dtype=np.float32))
    assert table.rows(pa.array([-1, 5], pa.int64())).tolist() == [-1, 0]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.parquet: no such embeddings file"):
        read_embeddings(tmp_path / "nowhere.parquet")
    with pytest.raises(DataError, match="no such embeddings file"):
        read_embeddings(tmp_path)


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(DataError, match=r"text\.parquet: not a readable Parquet file"):
        read_embeddings(tmp_path / "text.parquet")
    pq.write_table(pa.table({"id": [1], "value": [0.5]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="found the columns id, value, allowed are `id` and `vector`"):
        read_embeddings(tmp_path / "other.parquet")


def test_another_width_is_refused(tmp_path):
    write_embeddings(tmp_path / "user.parquet", [1, 2, 3], VECTORS)
    with pytest.raises(DataError, match="found vectors of width 2, allowed is 32"):
        read_embeddings(tmp_path / "user.parquet", width=32)
    write_embeddings(tmp_path / "wide.parquet", [4], np.ones((1, 3), np.float32))
    with pytest.raises(DataError, match="found ids of type int64 and width 3, allowed are those of user"):
        read_embeddings(tmp_path)


def test_a_duplicate_id_is_refused_both_ways(tmp_path):
    with pytest.raises(DataError, match="the id 7 is there twice"):
        write_embeddings(tmp_path / "user.parquet", [7, 1, 7], VECTORS)
    assert not list(tmp_path.iterdir())
    path = _written(tmp_path / "user.parquet", ["a", "a"], _lists([[0, 0], [1, 1]]))
    with pytest.raises(DataError, match="the id 'a' is there twice"):
        read_embeddings(path)


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        ([1, None], _lists([[0, 0], [1, 1]]), "`id` is null in 1 rows"),
        ([1.5, 2.5], _lists([[0, 0], [1, 1]]), "`id` is double, allowed are integers and strings"),
        ([1, 2], _lists([[0, 0], None]), "`vector` has nulls"),
        ([1, 2], _lists([[0, 0], [1, None]]), "`vector` has nulls"),
        ([1, 2], _lists([[0, 0], [1, float("nan")]]), "the vector of id 2 has a value that is not finite"),
        ([1, 2], pa.array([[0.0], [1.0]]), "allowed is a fixed-size list of float32"),
    ],
)
def test_what_is_no_vector_for_an_id_is_refused(tmp_path, ids, vectors, message):
    with pytest.raises(DataError, match=message):
        read_embeddings(_written(tmp_path / "user.parquet", ids, vectors))


def test_ids_and_vectors_must_be_as_many(tmp_path):
    with pytest.raises(DataError, match=r"found 2 ids and vectors of shape \(3, 2\)"):
        write_embeddings(tmp_path / "user.parquet", [1, 2], VECTORS)
