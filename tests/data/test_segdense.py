"""What published data says of itself, where its files are, and what becomes of its features and labels."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from reference import tf_example as reference
from reference.segdense_files import FEATURES, MINUTE, RENAMED, rows
from tml.core.config import load_config
from tml.core.errors import ConfigError, DataError, UserError
from tml.data.segdense import (
    InputsConfig,
    PreprocessConfig,
    SegdenseConfig,
    SegdenseSchemaConfig,
    find_files,
    generate,
    published_features,
    read_schema,
    write_schema,
)
from tml.data.segdense.columns import SegdenseColumns
from tml.data.segdense.config import ExplicitDateInputs, RectifyLabels
from tml.data.segdense.labels import SegdenseLabels
from tml.data.segdense.schema import FeatureNames
from tml.data.segdense.synthetic import DRIVERS, LABELS
from tml.data.segdense.synthetic import RENAMED as PUBLISHED_NAMES
from tml.data.tf_example import ExampleParser
from tml.data.tf_example_write import serialize
from tml.data.tfrecord import read_records

NAMES = FeatureNames(FEATURES, RENAMED)
NUMBERS = [3, 18, 2, 47]
where = "record {}".format

HOURS = {"data_root": "x", "start_datetime": "2022-10-01T05:00", "end_datetime": "2022-10-02"}

PUBLISHED_YAML = """
num_files_to_keep: null
inputs: null
explicit_datetime_inputs: null
explicit_date_inputs: {data_root: data, days: 2, end_date: 2022/10/02, num_missing_days_tol: 0, start_date: null}
seg_dense_schema:
  schema_path: schema.json
  features: [continuous, home_recap_2022_binary__segdense_vals]
  renamed_features: {continuous: home_recap_2022_cont__segdense_vals}
  mask_mantissa_features: null
preprocess:
  truncate_and_slice:
    continuous_feature_truncation: 2117
    binary_feature_truncation: null
    continuous_feature_mask_path: null
    binary_feature_mask_path: null
  downcast: {features: {continuous: bfloat16}}
  rectify_labels: null
  extract_features:
    - {target: first, source_tensor: continuous, source_index: 0}
  downsample_negatives: null
"""


def tensors(preprocess: Any = None, **schema: Any) -> dict[str, torch.Tensor]:
    """The inputs of four rows."""
    config = SegdenseSchemaConfig(schema_path=Path("schema.json"), renamed_features=RENAMED, **schema)
    columns = SegdenseColumns(NAMES, config, PreprocessConfig.model_validate(preprocess or {}))
    arrays = ExampleParser(columns.features).parse(list(serialize(rows(NUMBERS), FEATURES)))
    return columns.tensors(arrays, where)


CONTINUOUS = rows(NUMBERS)["stored.continuous"]


def test_the_published_yaml_with_its_nulls(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(PUBLISHED_YAML)
    config = load_config(SegdenseConfig, tmp_path / "data.yaml")
    assert config.explicit_date_inputs == ExplicitDateInputs(
        data_root=Path("data"), start_date=None, end_date=date(2022, 10, 2), days=2
    )
    again = SegdenseConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
    assert again == config
    assert config.preprocess.extract_features is not None
    assert config.preprocess.extract_features.extract_feature_table[0].index == 0


@pytest.mark.parametrize(
    ("cls", "tree", "message"),
    [
        (InputsConfig, {}, "exactly one of inputs, explicit_date_inputs, explicit_datetime_inputs"),
        (InputsConfig, {"explicit_date_inputs": {"data_root": "x", "days": 3}}, "two of start_date, end_date and days"),
        (
            InputsConfig,
            {"explicit_date_inputs": {"data_root": "x", "start_date": "2022-10-02", "end_date": "2022-10-01"}},
            "end_date 2022-10-01 is before",
        ),
        (
            InputsConfig,
            {"explicit_datetime_inputs": {**HOURS, "start_datetime": "2022-10-01T05:30"}},
            "allowed are whole hours",
        ),
        (
            PreprocessConfig,
            {"truncate_and_slice": {"binary_feature_truncation": 3, "binary_feature_mask_path": "m.npy"}},
            "one of binary_feature_truncation and binary_feature_mask_path is allowed, found both",
        ),
        (PreprocessConfig, {"downcast": {"features": {"x": "float64"}}}, "float64"),
        (
            ExplicitDateInputs,
            {"data_root": "x", "start_date": "9999-12-30", "days": 3},
            "days: found 3, a span that leaves",
        ),
        (ExplicitDateInputs, {"data_root": "x", "end_date": "2022-10-01", "days": 10**12}, "days: found 1000000000000"),
        (SegdenseSchemaConfig, {"schema_path": "s", "mask_mantissa_features": {"x": 24}}, "less than or equal to 23"),
    ],
)
def test_configs_that_cannot_be(cls: Any, tree: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        cls.model_validate(tree)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_files_by_glob_by_day_and_by_hour(tmp_path: Path) -> None:
    touch(tmp_path / "2022", "09/30/b", "09/30/a", "09/30/_SUCCESS", "10/02/c", "10/02/.d", "10/04/e")
    touch(tmp_path, "hours/2022/12/31/23/x", "hours/2023/01/01/01/y")

    def found(**tree: Any) -> str:
        return "".join(path.name for path in find_files(InputsConfig.model_validate(tree)))

    def by_day(**span: Any) -> str:
        return found(explicit_date_inputs={"data_root": tmp_path, **span})

    def by_hour(tolerated: int) -> str:
        span = {"start_datetime": "2022/12/31/23", "end_datetime": "2023-01-01 01", "num_missing_hours_tol": tolerated}
        return found(explicit_datetime_inputs={"data_root": tmp_path / "hours", **span})

    assert found(inputs=f"{tmp_path}/2022/**/*") == "abce"
    assert by_day(start_date="2022-09-30", end_date=date(2022, 10, 2), num_missing_days_tol=1) == "abc"
    assert by_day(start_date="2022/09/30", days=3, num_missing_days_tol=1) == "abc"
    assert by_day(end_date="2022-10-04", days=5, num_missing_days_tol=2) == "abce"
    assert by_hour(1) == "xy"
    with pytest.raises(
        DataError, match=r"no files for 2 of 5 days \(2022/10/01, 2022/10/03\), num_missing_days_tol allo"
    ):
        by_day(end_date="2022-10-04", days=5, num_missing_days_tol=1)
    with pytest.raises(DataError, match=r"for 1 of 3 hours \(2023/01/01/00\), num_missing_hours_tol allows 0"):
        by_hour(0)
    with pytest.raises(DataError, match=r"for 9 of 9 days \(2021/01/01, .*2021/01/05 and 4 more\)"):
        by_day(start_date="2021-01-01", days=9, num_missing_days_tol=9)
    for pattern in (f"{tmp_path}/*.gz", "", "/", "a**b"):
        with pytest.raises(DataError, match="inputs: found"):
            found(inputs=pattern)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "not a readable JSON file"),
        ("[]", "not a schema, allowed is"),
        ({"dtype": "float_list", "length": 1}, "schema.0.feature_name: found None"),
        (
            {"feature_name": "a", "dtype": "float", "length": 1},
            "schema.0.dtype: found 'float' for a, allowed are int64",
        ),
        ({"feature_name": "a", "dtype": "float_list", "length": 0}, "schema.0.length: found 0 for a"),
        ({"feature_name": "a", "dtype": "float_list", "length": True}, "schema.0.length: found True for a"),
        ({"feature_name": "a", "dtype": "float_list", "length": 10**12}, "schema.0.length: found 1000000000000 for a"),
        ({"feature_name": "\ud800", "dtype": "float_list", "length": 1}, r"schema.0.feature_name: found '\\ud800'"),
        ("[" * 100_000, "not a readable JSON file"),
        ([{"feature_name": "a", "dtype": "float_list", "length": 1}] * 2, "the feature 'a' twice"),
    ],
)
def test_schemas_that_cannot_be(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "schema.json"
    if content is not None:
        entries = content if isinstance(content, list) else [content]
        path.write_text(content if isinstance(content, str) else json.dumps({"schema": entries}))
    with pytest.raises(DataError, match=message):
        read_schema(path)


def test_a_schema_there_and_back(tmp_path: Path) -> None:
    write_schema(tmp_path / "schema.json", FEATURES)
    assert read_schema(tmp_path / "schema.json") == FEATURES


def test_vectors_are_truncated_or_sliced_by_a_mask(tmp_path: Path) -> None:
    batch = tensors({"truncate_and_slice": {"continuous_feature_truncation": 2, "binary_feature_truncation": 3}})
    np.testing.assert_array_equal(batch["continuous"], CONTINUOUS[:, :2])
    assert batch["binary"].shape == (4, 3)
    for mask in (np.array([1, 0, 1, 0, 0, 1], bool), np.array([5, 0])):
        np.save(tmp_path / "mask.npy", mask)
        batch = tensors({"truncate_and_slice": {"continuous_feature_mask_path": tmp_path / "mask.npy"}})
        np.testing.assert_array_equal(batch["continuous"], CONTINUOUS[:, mask])
        assert batch["continuous"].is_contiguous()
    for bad, message in (
        (np.ones(5, bool), "found 5 booleans, allowed are 6 booleans or positions from 0 to 5"),
        (np.array([6]), "found position 6"),
        (np.zeros(6, bool), "nothing to keep"),
        (np.ones((2, 3)), r"found an array \(2, 3\) of float64"),
    ):
        np.save(tmp_path / "mask.npy", bad)
        with pytest.raises(DataError, match=f"mask.npy: .*{message}"):
            tensors({"truncate_and_slice": {"continuous_feature_mask_path": tmp_path / "mask.npy"}})
    (tmp_path / "mask.npy").write_text("no array")
    with pytest.raises(DataError, match=r"mask\.npy: not a readable"):
        tensors({"truncate_and_slice": {"continuous_feature_mask_path": tmp_path / "mask.npy"}})
    with pytest.raises(ConfigError, match="continuous_feature_truncation: found 7, allowed are 1 to the 6"):
        tensors({"truncate_and_slice": {"continuous_feature_truncation": 7}})


def test_smaller_types_hold_what_they_are_given() -> None:
    small = tensors({"downcast": {"features": {"continuous": "bfloat16", "binary": "uint8", "words": "int16"}}})
    np.testing.assert_allclose(small["continuous"].float(), CONTINUOUS, rtol=2**-8)
    assert (small["continuous"].dtype, small["binary"].dtype, small["words"].dtype) == (
        torch.bfloat16,
        torch.uint8,
        torch.int16,
    )
    config = SegdenseSchemaConfig(schema_path=Path("s"), renamed_features=RENAMED)
    half = PreprocessConfig.model_validate({"downcast": {"features": {"continuous": "float16"}}})
    columns = SegdenseColumns(NAMES, config, half)
    arrays = ExampleParser(columns.features).parse(list(serialize(rows(NUMBERS), FEATURES)))
    arrays["stored.continuous"][0, :4] = [1e9, -1e9, np.inf, np.nan]  # type: ignore[index]
    assert columns.tensors(arrays, where)["continuous"][0, :3].tolist() == [65504, -65504, np.inf]
    with pytest.raises(DataError, match=r"record 0: downcast.features.discrete: found 300, which torch.int8 does not"):
        tensors({"downcast": {"features": {"discrete": "int8"}}})
    with pytest.raises(ConfigError, match="found int8, allowed for floats are bfloat16, float16, float32"):
        tensors({"downcast": {"features": {"continuous": "int8"}}})


@pytest.mark.parametrize("bits", [0, 1, 16, 23])
def test_low_bits_of_the_mantissa_are_zero(bits: int) -> None:
    def masked(value: float) -> float:
        """Towards zero to a multiple of 2^bits units in the last place of float32."""
        unit = 2.0 ** (np.floor(np.log2(abs(value))) - 23 + bits)
        return float(np.trunc(value / unit) * unit)

    found = tensors(mask_mantissa_features={"continuous": bits})["continuous"]
    np.testing.assert_array_equal(found, np.vectorize(masked)(CONTINUOUS.astype(float)))


def test_what_is_no_number_stays_none_without_its_low_bits() -> None:
    config = SegdenseSchemaConfig(
        schema_path=Path("schema.json"), renamed_features=RENAMED, mask_mantissa_features={"continuous": 23}
    )
    columns = SegdenseColumns(NAMES, config, PreprocessConfig())
    content = rows(NUMBERS)
    content["stored.continuous"][0] = [np.nan, np.inf, -np.inf, 0, 1.5, -3]
    found = columns.tensors(ExampleParser(columns.features).parse(list(serialize(content, FEATURES))), where)
    np.testing.assert_array_equal(found["continuous"][0], [np.nan, np.inf, -np.inf, 0, 1, -2])


def test_elements_are_extracted_before_vectors_lose_them() -> None:
    table = [
        {"name": "last", "source_tensor": "continuous", "index": 5},
        {"target": "hundred", "source_tensor": "discrete", "source_index": 1},
    ]
    batch = tensors(
        {
            "extract_features": table,
            "truncate_and_slice": {"continuous_feature_truncation": 2},
            "downcast": {"features": {"continuous": "bfloat16"}},
        },
        features=["continuous"],
    )
    np.testing.assert_array_equal(batch["last"], CONTINUOUS[:, 5:])
    np.testing.assert_array_equal(batch["hundred"][:, 0], np.array(NUMBERS) * 100)
    assert batch.keys() == {"continuous", "last", "hundred"}
    assert batch["continuous"].shape == (4, 2)
    for source, index in (("continuous", 6), ("words", 0), ("text", 0)):
        with pytest.raises(ConfigError, match=f"extract_features.x: found element {index} of {source}"):
            tensors({"extract_features": [{"name": "x", "source_tensor": source, "index": index}]})
    for twice in ([{"name": "discrete", "source_tensor": "continuous", "index": 0}], [table[0], table[0]]):
        with pytest.raises(ConfigError, match=r"extract_features.*: a batch has .* already"):
            tensors({"extract_features": twice})
    config = SegdenseSchemaConfig(schema_path=Path("schema.json"), features=("continuous",), renamed_features=RENAMED)
    like = PreprocessConfig.model_validate(
        {"extract_features": [{"name": "like", "source_tensor": "continuous", "index": 0}]}
    )
    with pytest.raises(ConfigError, match="a batch has like already"):
        SegdenseColumns(NAMES, config, like, frozenset(["like"]))


def test_names_that_the_schema_lacks_are_refused() -> None:
    for arguments, message in (
        ({"features": ["continous"]}, "features: found 'continous', .* as 'continuous'"),
        ({"preprocess": {"downcast": {"features": {"idd": "int8"}}}}, "downcast.features: found 'idd', .* as 'id'"),
        ({"mask_mantissa_features": {"id": 3}}, "mask_mantissa_features.id: found a int64_list"),
    ):
        with pytest.raises(ConfigError, match=message):
            tensors(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"renamed_features\.a: found 'b'"):
        FeatureNames(FEATURES, {"a": "b"})
    with pytest.raises(ConfigError, match="found 'id', which 'b' is already a name of"):
        FeatureNames(FEATURES, {"a": "id", "b": "id"})
    with pytest.raises(ConfigError, match="found 'id', but the schema has another feature 'like'"):
        FeatureNames(FEATURES, {"like": "id"})
    assert FeatureNames(FEATURES, {"like": "id", "id": "like"}).find("like", "").name == "id"
    for label in ("continuous", "text", "words"):
        with pytest.raises(ConfigError, match=f"labels: found {label}, .*allowed is one number"):
            SegdenseLabels(NAMES, [label])


@pytest.mark.parametrize("window", [0.5, 1, 3, 100])
def test_a_label_counts_only_within_the_window(window: float) -> None:
    rectify = RectifyLabels(
        label_rectification_window_in_minutes=window,
        served_timestamp_field="served",
        impressed_timestamp_field="seen",
        label_to_engaged_timestamp_field={"like": "liked_at"},
    )
    labels = SegdenseLabels(NAMES, ["like", "reply"], rectify)
    content = rows(range(120))
    content["liked_at"][:10] = 0  # unknown
    content["seen"][10:20] -= 5 * MINUTE  # before it was served
    for name in ("served", "seen", "liked_at"):
        content[name][20:26] = 0  # all unknown
    content["served"][35], content["seen"][35], content["liked_at"][35] = -(2**63), 2**63 - 1, 2**63 - 1
    found = labels.tensors(ExampleParser(labels.features).parse(list(serialize(content, FEATURES))), where)
    for row in range(120):
        served, seen, liked_at = (content[name][row, 0] for name in ("served", "seen", "liked_at"))
        counts = served > 0 and all(served <= time <= served + window * MINUTE for time in (seen, liked_at))
        assert found["like"][row] == (1 if row % 5 == 0 and counts else 0)
        assert found["reply"][row] == (row % 7 == 0)
    with pytest.raises(ConfigError, match="served_timestamp_field: found continuous"):
        SegdenseLabels(NAMES, ["like"], rectify.model_copy(update={"served_timestamp_field": "continuous"}))


def test_generated_files_have_the_published_shape_and_can_be_learned_from(tmp_path: Path) -> None:
    generate(tmp_path / "data", rows=600, seed=1, files=3, days=2)
    names = sorted(str(path.relative_to(tmp_path / "data")) for path in (tmp_path / "data").rglob("*.*"))
    assert names == [f"2022/10/{day}/part-0000{n}.tfrecord.gz" for n, day in enumerate(("01", "01", "02"))] + [
        "schema.json"
    ]
    assert read_schema(tmp_path / "data/schema.json") == published_features()
    files = [tmp_path / "data" / name for name in names[:3]]
    records = [record for path in files for _, record in read_records(path)]
    assert len(records) == 600
    shapes = {f.name: (np.float32 if f.dtype == "float_list" else np.int64, f.length) for f in published_features()}
    parsed = reference.parse(records, shapes)
    ours = ExampleParser(published_features()).parse(records)
    for name, values in parsed.items():
        np.testing.assert_array_equal(ours[name], values)  # type: ignore[arg-type]
    continuous = parsed[PUBLISHED_NAMES["continuous"]]
    assert 0.66 < (continuous == 0).mean() < 0.74
    assert len(np.unique(parsed["meta.tweet_id"])) == 600
    label = parsed[LABELS[4]][:, 0]
    inputs = np.log1p(continuous[:, :DRIVERS])
    model = LogisticRegression().fit(inputs[:400], label[:400])
    assert roc_auc_score(label[400:], model.predict_proba(inputs[400:])[:, 1]) > 0.75
    generate(tmp_path / "again", rows=600, seed=1, files=3, days=2)
    assert all((tmp_path / "again" / name).read_bytes() == (tmp_path / "data" / name).read_bytes() for name in names)
    with pytest.raises(UserError, match="found 3, 2, 10, allowed are"):
        generate(tmp_path / "none", rows=10, files=2, days=3)


def test_the_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    text = (Path(__file__).parents[2] / "docs/tfrecord.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code.replace("2_000", "500").replace("batch_size=500", "batch_size=250"), {})
    assert capsys.readouterr().out.count("'continuous': (250, 2117)") == 2
