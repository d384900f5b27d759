"""Published TFRecords to examples and back: every value again, by readers that are not the converters'."""

import gzip
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tml.core.errors import DataError
from tml.data.converters import convert_log
from tml.data.examples import KEYS, Schema, vector_values
from tml.data.reader import ExampleReader
from tml.data.segdense.schema import read_schema, write_schema
from tml.data.segdense.synthetic import LABELS, RENAMED, generate
from tml.data.shards import read_part
from tml.data.tf_example import ExampleParser
from tml.data.tf_example_columns import Feature
from tml.data.tf_example_write import write_tfrecords
from tml.data.tfrecord import read_records


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "data"
    generate(folder, rows=60, seed=4, files=4, days=2)
    return folder


@pytest.fixture(scope="module")
def examples(published: Path) -> Path:
    out = published.parent / "examples"
    converted = convert_log("tfrecords", published, out)
    assert converted.rows == {"train": 30, "validation": 30}
    assert converted.result == out / "schema.json"
    return out


def parsed(folder: Path, files: list[Path]) -> dict[str, Any]:
    parser = ExampleParser(read_schema(folder / "schema.json"))
    return parser.parse([record for path in files for _, record in read_records(path)])


def test_examples_hold_what_the_records_do(published: Path, examples: Path) -> None:
    schema = Schema.read(examples)
    assert list(schema.tasks) == list(LABELS)
    assert schema.embeddings == dict.fromkeys(("user_embedding", "user_eng_embedding", "author_embedding"), 200)
    for part, day in (("train", "2022/10/01"), ("validation", "2022/10/02")):
        records = parsed(published, sorted((published / day).iterdir()))
        table = pa.concat_tables(read_part(examples, part))
        assert table["served_at"].to_pylist() == [datetime.strptime(day, "%Y/%m/%d")] * 30
        for name in ("continuous", "binary", *schema.embeddings):
            assert np.array_equal(vector_values(table[name]), records[RENAMED[name]]), name
        assert table["user_id"].to_pylist() == records["meta.user_id"][:, 0].tolist()
        assert table["post_id"].to_pylist() == records["meta.tweet_id"][:, 0].tolist()
        for label in LABELS:
            assert table[label].to_pylist() == records[label][:, 0].tolist()
            assert schema.parts[part].positives[label] == records[label].sum()
        stored = vector_values(table["discrete"])
        for column, discrete in zip(schema.discrete, range(stored.shape[1]), strict=True):
            for place, value in zip(stored[:, discrete], records[RENAMED["discrete"]][:, discrete], strict=True):
                known = str(value) in column.vocabulary
                assert place == (column.vocabulary.index(str(value)) + 1 if known else 0)
                assert known or part == "validation"


def test_the_reader_of_examples_takes_them(examples: Path) -> None:
    batch = next(iter(ExampleReader(examples, "train", 10, seed=0)))
    assert batch["continuous"].shape == (10, 6000)
    assert batch["user_embedding"].shape == (10, 200)


def test_there_and_back_again(published: Path, examples: Path, tmp_path: Path) -> None:
    converted = convert_log("examples", examples, tmp_path / "back")
    assert converted.rows == {"train": 30, "validation": 30}
    assert {f.name for f in read_schema(converted.result)} == {f.name for f in read_schema(published / "schema.json")}
    records = parsed(published, sorted((published / "2022/10/01").iterdir()))
    again = parsed(tmp_path / "back", sorted((tmp_path / "back/train").iterdir()))
    for name, values in records.items():
        if name != RENAMED["discrete"]:
            assert np.array_equal(again[name], values), name
    table = pa.concat_tables(read_part(examples, "train"))
    assert np.array_equal(again[RENAMED["discrete"]], vector_values(table["discrete"]))
    twice = convert_log("tfrecords", tmp_path / "back", tmp_path / "twice")
    assert twice.rows == converted.rows
    assert set(KEYS) <= set(pq.read_schema(next((tmp_path / "twice/train").glob("*.parquet"))).names)


def test_labels_that_do_not_count_and_text_ids_go_back(simulated: Any, tmp_path: Path) -> None:
    from tml.data.config import TaskConfig
    from tml.data.log import open_log
    from tml.features.build import build_examples
    from tml.features.config import FeaturesConfig, SplitConfig

    tasks = {"is_favorited": TaskConfig(engagement="favorited", negative_sampling_rate=0.5)}
    with open_log(simulated) as log:
        build_examples(log, tasks, FeaturesConfig(keys=[["user_id"]]), SplitConfig(), tmp_path / "e", 0, "")
    converted = convert_log("examples", tmp_path / "e", tmp_path / "out")
    table = pa.concat_tables(read_part(tmp_path / "e", "train"))
    labels = table["is_favorited"].to_numpy()
    left_out = int(np.isnan(labels).sum())
    assert left_out > 0
    assert converted.notes[0].startswith(f"{left_out:,} labels that do not count")
    records = parsed(tmp_path / "out", sorted((tmp_path / "out/train").iterdir()))
    assert records["is_favorited"][:, 0].tolist() == np.nan_to_num(labels).tolist()
    assert np.array_equal(records[RENAMED["continuous"]], vector_values(table["continuous"]))
    assert records["meta.user_id"][:, 0].tolist() == table["user_id"].to_pylist()


def test_what_cannot_be_converted_is_one_sentence(published: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"schema\.json: no such file"):
        convert_log("tfrecords", tmp_path, tmp_path / "out")
    write_schema(tmp_path / "schema.json", [Feature("continuous", "float_list", 2)])
    with pytest.raises(DataError, match=r"found no label, allowed are features named recap\.engagement\.is_"):
        convert_log("tfrecords", tmp_path, tmp_path / "out")
    features = [Feature("continuous", "float_list", 2), Feature(LABELS[0], "int64_list", 1)]
    write_schema(tmp_path / "schema.json", features)
    with pytest.raises(DataError, match="found no TFRecords for train, allowed are folders train and validation"):
        convert_log("tfrecords", tmp_path, tmp_path / "out")
    batch = {"continuous": np.zeros((3, 2), np.float32), LABELS[0]: np.ones((3, 1), np.int64)}
    for number in range(2):
        write_tfrecords(tmp_path / f"{number}.gz", [batch], features)
    assert convert_log("tfrecords", tmp_path, tmp_path.parent / "flat").rows == {"train": 3, "validation": 3}
    content = bytearray((published / "2022/10/01").glob("*.gz").__next__().read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "0.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"0\.gz: "):
        convert_log("tfrecords", tmp_path, tmp_path.parent / "broken")
    assert not (tmp_path.parent / "broken").exists()
    with pytest.raises(DataError, match="schema"):
        convert_log("examples", tmp_path, tmp_path.parent / "broken")


def test_records_that_make_no_examples(published: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(published, source)
    (source / "2022/10/02").rename(source / "2022/10/99")  # no day
    assert convert_log("tfrecords", source, tmp_path / "out").rows == {"train": 30, "validation": 30}
    schema = source / "schema.json"
    text = schema.read_text()
    schema.write_text(text.replace('"length": 320', '"length": -1'))
    with pytest.raises(DataError, match=r"schema\.json: found \S*discrete\S*, a int64_list of length -1"):
        convert_log("tfrecords", source, tmp_path / "out")
    schema.write_text(text)
    for path in (source / "2022/10/01").iterdir():
        path.write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match="found no record for train"):
        convert_log("tfrecords", source, tmp_path / "out")


def test_an_embedding_that_is_not_finite_is_named(published: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(published, source)
    path = sorted((source / "2022/10/01").iterdir())[0]
    features = read_schema(source / "schema.json")
    batch = dict(parsed(published, [path]))
    batch[RENAMED["user_embedding"]][3, 5] = np.nan
    write_tfrecords(path, [batch], features)
    with pytest.raises(DataError, match=rf"{path.name}: record 3: found NaN or infinity in user_embedding"):
        convert_log("tfrecords", source, tmp_path / "out")
