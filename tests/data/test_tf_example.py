"""tf.Examples against protocol buffers' own library: what it writes we read, what we write it reads, byte for byte."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import tf_example as reference
from tml.core.errors import DataError
from tml.data.tf_example import ExampleParser
from tml.data.tf_example_columns import VARIABLE, Feature, Ragged
from tml.data.tf_example_write import serialize
from tml.data.tfrecord import Skipped
from tml.data.varints import decode, encode, varint

NAMES = {"f": "float_list", "i": "int64_list", "b": "bytes_list"}
SCHEMA = [Feature(name, dtype, VARIABLE) for name, dtype in NAMES.items()]  # type: ignore[arg-type]
KINDS = dict(zip(NAMES.values(), "fib", strict=True))

floats = st.lists(st.floats(width=32), max_size=5).map(lambda values: np.array(values, np.float32))
ints = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 200), max_size=5)
int_arrays = ints.map(lambda values: np.array(values, np.int64))
contents = st.fixed_dictionaries({}, optional={"f": floats, "i": int_arrays, "b": st.lists(st.binary(max_size=5))})


def rows_of(parsed: dict[str, Any]) -> list[dict[str, Any]]:
    """Each row's values; floats as bits, so that NaN equals itself."""
    rows: list[dict[str, Any]] = []
    for row in range(len(parsed["f"].offsets) - 1):
        spans = {n: v.values[v.offsets[row] : v.offsets[row + 1]] for n, v in parsed.items()}
        rows.append({n: (v.view(np.int32) if n == "f" else v).tolist() for n, v in spans.items()})
    return rows


def by_protobuf(record: bytes) -> dict[str, Any] | None:
    """What the library makes of a record; None where it says that it is no message."""
    try:
        features = reference.Example.FromString(record).features.feature
    except DecodeError:
        return None
    found: dict[str, Any] = {"f": [], "i": [], "b": []}
    for name in found.keys() & features.keys():
        kind = features[name].WhichOneof("kind")
        if kind is not None:
            if KINDS[kind] != name:
                raise DataError("another kind")
            values = getattr(features[name], kind).value
            found[name] = np.asarray(values).view(np.int32).tolist() if name == "f" else list(values)
    return found


def both(records: list[bytes]) -> None:
    """Assert that what the library accepts is read as it reads it, in a batch, and that the rest raises nothing odd.

    Of the rest some is accepted: a broken list that another one of the same feature replaces is not looked at.
    """
    for record in records:
        try:
            if by_protobuf(record) is None:
                ExampleParser(SCHEMA).parse([record])
        except DataError:
            continue
    try:
        valid = [(record, found) for record in records if (found := by_protobuf(record)) is not None]
    except DataError:
        with pytest.raises(DataError, match="allowed is"):
            ExampleParser(SCHEMA).parse(records, skipped=Skipped())
        return
    assert rows_of(ExampleParser(SCHEMA).parse([record for record, _ in valid])) == [found for _, found in valid]


@settings(deadline=None)
@given(st.lists(contents, max_size=6))
def test_what_the_library_writes_is_read_equal(batch: list[dict[str, Any]]) -> None:
    records = [reference.make_example(values).SerializeToString() for values in batch]
    assert None not in map(by_protobuf, records)
    both(records)


def tag(field: int, wire: int) -> bytes:
    return varint(field << 3 | wire)


def block(field: int, content: bytes) -> bytes:
    return tag(field, 2) + varint(len(content)) + content


@st.composite
def odd_records(draw: Any) -> bytes:
    """Valid and nearly valid examples as no ordinary writer writes them: unpacked, repeated, with unknown fields."""
    group = tag(7, 3) + tag(1, 3) + tag(1, 4) + tag(2, 0) + b"\1" + tag(7, 4)
    valid = [
        tag(9, 0) + varint(7),
        tag(9, 1) + bytes(8),
        tag(9, 5) + bytes(4),
        block(9, b"xyz"),
        tag(1, 0) + b"\1",
        group,
    ]
    long = [tag(9, 0) + b"\x80" * 9 + b"\1", tag(9, 0) + b"\x80" * 10 + b"\1"]
    broken = [tag(7, 3) + tag(6, 4), tag(0, 0) + b"\1", tag(9, 6), b"\xff", tag(9, 4)]
    unknown = st.sampled_from([*valid, *long, *broken])
    odd = st.sampled_from([b""] * 12) | unknown

    def numbers(kind: int) -> bytes:
        if kind == 1:
            return block(1, draw(st.binary(max_size=3)))
        one = draw(st.binary(min_size=4, max_size=4)) if kind == 2 else varint(draw(st.integers(0, 2**64 - 1)))
        return tag(1, 5 if kind == 2 else 0) + one if draw(st.booleans()) else block(1, one * draw(st.integers(0, 3)))

    def feature() -> bytes:
        kind = draw(st.integers(1, 3))
        lists = b"".join(numbers(kind) + draw(odd) for _ in range(draw(st.integers(0, 2))))
        return block(kind, lists) + draw(odd)

    def entry() -> bytes:
        name = draw(st.sampled_from([b"f", b"i", b"b", b"other", b"\xff"]))
        parts = [block(1, name), *(block(2, feature()) for _ in range(draw(st.integers(0, 2))))]
        # No unknown field inside the entry itself: Python's library takes such an entry as unknown as a whole.
        return block(1, b"".join(draw(st.permutations(parts)))) + draw(odd)

    groups = [b"".join(entry() for _ in range(draw(st.integers(0, 3)))) for _ in range(draw(st.integers(0, 2)))]
    return b"".join(block(1, group) + draw(odd) for group in groups)


@settings(deadline=None)
@given(st.lists(odd_records(), max_size=4))
def test_odd_records_mean_what_the_library_says(records: list[bytes]) -> None:
    both(records)


@settings(deadline=None)
@given(st.lists(contents, min_size=1, max_size=4), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=3))
def test_mutated_records_mean_what_the_library_says(batch: list[Any], changes: list[tuple[int, int]]) -> None:
    records = [bytearray(reference.make_example(values).SerializeToString()) for values in batch]
    for at, byte in changes:
        record = records[at % len(records)]
        if record:
            record[at // len(records) % len(record)] = byte
    both([bytes(record) for record in records])


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=3))
def test_any_bytes_mean_what_the_library_says(records: list[bytes]) -> None:
    both(records)


FIXED = [
    Feature("binary", "int64_list", 4),
    Feature("continuous", "float_list", 3, keep=2),
    Feature("id", "int64_list", 1),
    Feature("text", "bytes_list", 1),
]


def fixed_batch(rows: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "binary": rng.integers(-1, 130, (rows, 4)),
        "continuous": rng.normal(size=(rows, 3)).astype(np.float32),
        "id": rng.integers(0, 2 ** rng.integers(1, 63, (rows, 1))),
        "text": np.array([[b"x" * (row % 3)] for row in range(rows)], object),
    }


def by_row(batch: dict[str, Any]) -> list[Any]:
    rows = range(len(batch["id"]))
    values = [{n: list(v[row]) if n == "text" else v[row] for n, v in batch.items()} for row in rows]
    return [reference.make_example(each) for each in values]


def test_fixed_lengths_become_arrays_and_the_library_writes_the_same_bytes() -> None:
    batch = fixed_batch(50)
    records = list(serialize(batch, FIXED))
    assert records == [each.SerializeToString(deterministic=True) for each in by_row(batch)]
    parsed = ExampleParser(FIXED).parse(records)
    assert {name: values.dtype for name, values in parsed.items()} == {  # type: ignore[union-attr]
        "binary": np.int64,
        "continuous": np.float32,
        "id": np.int64,
        "text": object,
    }
    for name, values in parsed.items():
        np.testing.assert_array_equal(values, batch[name][:, : 2 if name == "continuous" else None])


def test_a_variable_number_of_values_is_written_and_read() -> None:
    offsets = np.array([0, 2, 2, 5])
    values = {"f": np.arange(5, dtype=np.float32), "i": np.arange(5) * 100, "b": np.array([b"a"] * 5, object)}
    records = list(serialize({name: Ragged(each, offsets) for name, each in values.items()}, SCHEMA))
    for name, (found, bounds) in ExampleParser(SCHEMA).parse(records).items():
        assert bounds.tolist() == offsets.tolist()
        assert found.tolist() == values[name].tolist()


def test_any_order_and_missing_and_unknown_features() -> None:
    rng = np.random.default_rng(1)
    rows = by_row(fixed_batch(40))
    for row in rows:
        row.features.feature["not read"].bytes_list.value.append(b"x" * int(rng.integers(300)))
        for name in rng.permutation([feature.name for feature in FIXED])[: rng.integers(3)]:
            del row.features.feature[name]
    records = []
    for row in rows:  # an entry is a message of its own; one after the other in any order is the same message
        entries = [(name, row.features.feature[name]) for name in sorted(row.features.feature)]
        order = rng.permutation(len(entries))
        features = [reference.make_example({}).features for _ in entries]
        for alone, (name, value) in zip(features, (entries[i] for i in order), strict=True):
            alone.feature[name].CopyFrom(value)
        body = b"".join(alone.SerializeToString() for alone in features)
        records.append(block(1, body))
    parsed = ExampleParser(FIXED).parse(records)
    for number, row in enumerate(rows):
        there = row.features.feature
        for feature in FIXED:
            found = list(parsed[feature.name][number])  # type: ignore[index]
            missing = [b"" if feature.dtype == "bytes_list" else 0] * feature.width
            value = getattr(there[feature.name], feature.dtype).value if feature.name in there else missing
            assert found == list(value)[: feature.width]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"continuous": np.zeros(2, np.float32)}, "feature continuous: found 2 values, allowed is float_list of 3 v"),
        ({"continuous": np.zeros(3, np.int64)}, "feature continuous: found int64_list of 3 values, allowed is float"),
        ({"binary": np.zeros(3, np.int64)}, "feature binary: found 3 values, allowed is int64_list of 4 values"),
        ({"binary": np.array([300, 1, 1])}, "feature binary: found 3 values, allowed is int64_list of 4 values"),
        ({"binary": np.zeros(0, np.int64)}, "feature binary: found 0 values, allowed is int64_list of 4 values"),
        ({"id": [b"17"]}, "feature id: found bytes_list of 1 values, allowed is int64_list of 1 values"),
        ({"text": [b"a", b"b"]}, "feature text: found 2 values, allowed is bytes_list of 1 values"),
    ],
)
@pytest.mark.parametrize("skipped", [None, Skipped()])
def test_another_kind_or_length_than_the_schema_says(values: Any, message: str, skipped: Skipped | None) -> None:
    good = next(serialize(fixed_batch(1), FIXED))
    records = [good, good, reference.make_example(values).SerializeToString(), good]
    with pytest.raises(DataError, match=f"day/part-3: record 2: {message}"):
        ExampleParser(FIXED).parse(records, "day/part-3: record {}".format, skipped)


@pytest.mark.parametrize(
    "record",
    [
        b"\x0a\x05",
        b"\xff" * 11,
        block(1, block(1, block(1, b"id") + block(2, block(3, block(1, b"\x80"))))),
        block(1, block(1, block(1, b"binary") + block(2, block(3, block(1, b"\1\1\1\1\x80"))))),
        block(1, block(1, block(1, b"id") + block(2, block(3, block(1, b"\x80" * 10 + b"\1"))))),
        block(1, block(1, block(1, b"continuous") + block(2, block(2, block(1, b"123"))))),
        block(1, block(1, block(1, b"text") + block(2, block(1, b"\x0a\5a")))),
        block(1, block(1, block(1, b"\xff"))),
        tag(0, 0) + b"\1",
        tag(3, 7),
        tag(3, 3) + tag(4, 4),
    ],
)
def test_what_is_no_example_is_refused_or_skipped(record: bytes) -> None:
    with pytest.raises(DecodeError):
        reference.Example.FromString(record)
    good = list(serialize(fixed_batch(2), FIXED))
    for records in ([record], [good[0], record, good[1]]):
        number = len(records) // 2
        with pytest.raises(DataError, match=f"record {number}: not a tf.Example"):
            ExampleParser(FIXED).parse(records)
    skipped = Skipped()
    parsed = ExampleParser(FIXED).parse([good[0], record, good[1]], skipped=skipped)
    np.testing.assert_array_equal(parsed["id"], fixed_batch(2)["id"])
    assert skipped.records == 1
    assert "record 1: not a tf.Example" in skipped.first


def test_what_cannot_be_written_is_refused() -> None:
    batch = fixed_batch(2)
    for change, message in (
        ({"other": batch["id"]}, "the feature 'other', which the schema does not have"),
        ({"id": batch["binary"]}, r"feature id: found an array \(2, 4\), allowed is \(rows, 1\)"),
        ({"id": batch["id"] * 0.5}, "feature id: found float64 values, allowed is int64_list"),
    ):
        with pytest.raises(DataError, match=message):
            list(serialize({**batch, **change}, FIXED))


@settings(deadline=None)
@given(st.lists(ints, max_size=5))
def test_varints_there_and_back(rows: list[list[int]]) -> None:
    payloads = [b"".join(varint(value % 2**64) for value in row) for row in rows]
    values, counts, broken = decode(payloads)
    assert values.tolist() == [value for row in rows for value in row]
    assert counts.tolist() == [len(row) for row in rows]
    assert not len(broken)
    encoded, starts = encode(values)
    assert encoded == b"".join(payloads)
    assert [encoded[a:b] for a, b in pairwise(starts)] == [varint(v % 2**64) for v in values.tolist()]


def test_numbers_that_break_off_are_told_and_leave_the_others_alone() -> None:
    values, counts, broken = decode([b"\1\x80", b"\x96\x01", b"", b"\x80" * 10 + b"\1", b"\2"])
    assert broken.tolist() == [0, 3]
    assert counts.tolist() == [2, 1, 0, 1, 1]
    assert values[[2, -1]].tolist() == [150, 2]
