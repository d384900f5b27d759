"""Reading published data: every record once an epoch, an order that the seed decides, an exact position."""

import re
import tracemalloc
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reference.segdense_files import config, rows, write_files
from tml.core import checkpoint
from tml.core.errors import ConfigError, DataError
from tml.data.segdense import SegdenseReader, generate
from tml.data.tfrecord import read_records, write_records

COUNTS = [17, 0, 40, 3, 25]
ROWS = sum(COUNTS)


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    """85 rows in five files, one of them empty."""
    return write_files(tmp_path, COUNTS)


def ids(batches: Any) -> list[list[int]]:
    return [batch["id"][:, 0].tolist() for batch in batches]


@pytest.mark.parametrize("buffer", [0, 7, 1000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_an_epoch_has_every_record_once_over_all_ranks(tree: Any, buffer: int, world_size: int) -> None:
    data = config(tree, examples_shuffle_buffer_size=buffer)
    for epochs in (1, 3):
        readers = [SegdenseReader(data, [], 4, 0, rank, world_size, epochs) for rank in range(world_size)]
        shares = [list(chain(*ids(reader))) for reader in readers]
        assert Counter(chain(*shares)) == dict.fromkeys(range(ROWS), epochs)
    sizes = [len(batch) for batch in ids(readers[0])]
    assert set(sizes[:-1]) <= {4}  # the end of an epoch does not cut a batch


def test_the_order_follows_seed_and_epoch(tree: Any) -> None:
    def epochs(seed: int, **more: Any) -> list[list[int]]:
        return ids(islice(SegdenseReader(config(tree, **more), [], ROWS, seed), 8))

    for more in ({"examples_shuffle_buffer_size": 20}, {}):
        assert epochs(1, **more) == epochs(1, **more)
        assert epochs(1, **more) != epochs(2, **more)
        assert len({tuple(epoch) for epoch in epochs(1, **more)}) > 4
    assert sorted(epochs(1)[0][:40]) != epochs(1, examples_shuffle_buffer_size=20)[0][:40]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"examples_shuffle_buffer_size": 10},
        {"examples_shuffle_buffer_size": 1000},
        {"preprocess": {"downsample_negatives": {"batch_multiplier": 3, "engagements_list": ["like"]}}},
    ],
)
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (2, 3)])
def test_a_restored_position_continues_exactly(
    tree: Any, tmp_path: Path, more: Any, rank: int, world_size: int
) -> None:
    def reader(prefetch_batches: int) -> SegdenseReader:
        return SegdenseReader(config(tree, **more), ["like"], 4, 9, rank, world_size, prefetch_batches=prefetch_batches)

    whole = ids(islice(reader(0), 30))
    for position in (0, 1, 2, 3, 7, 13, 20):
        one = reader(3)
        stream = iter(one)
        assert ids(islice(stream, position)) == whole[:position]
        other = reader(2)
        other.load_state_dict(checkpoint.load(checkpoint.save(tmp_path, one.state_dict(), position)))
        assert ids(islice(other, 30 - position)) == whole[position:]
        assert ids(islice(stream, 5)) == whole[position : position + 5]


def test_a_position_is_of_its_files_and_sizes(tree: Any, tmp_path: Path) -> None:
    state = SegdenseReader(config(tree), [], 4, 0).state_dict()
    for other in (
        SegdenseReader(config(tree), [], 5, 0),
        SegdenseReader(config(tree), [], 4, 1),
        SegdenseReader(config(tree), [], 4, 0, 1, 2),
        SegdenseReader(config(tree, num_files_to_keep=2), [], 4, 0),
    ):
        with pytest.raises(DataError, match="one of other files, seed, rank"):
            other.load_state_dict(state)
    with pytest.raises(DataError, match="one of other files, seed, rank"):
        other.load_state_dict({"position": 3})
    write_records(tmp_path / "part-2.gz", [b""] * COUNTS[2])
    with pytest.raises(DataError, match="one of other files, seed, rank"):
        SegdenseReader(config(tree), [], 4, 0).load_state_dict(state)


def test_a_batch_has_the_rows_content(tree: Any) -> None:
    batch = next(iter(SegdenseReader(config(tree), ["like", "reply"], 16, 0)))
    expected = rows(batch["id"][:, 0].numpy())
    for name in ("continuous", "binary", "discrete"):
        np.testing.assert_array_equal(batch[name], expected[f"stored.{name}"])
    assert [batch[name].dtype for name in ("continuous", "binary", "discrete")] == [*[torch.float32] * 2, torch.int64]
    np.testing.assert_array_equal(batch["like"], expected["like"][:, 0])
    assert batch["like"].dtype == torch.float32
    for name in ("words", "weights"):
        np.testing.assert_array_equal(batch[name], expected[name].values)
        np.testing.assert_array_equal(batch[f"{name}/offsets"], expected[name].offsets)
    assert "text" not in batch
    bag = torch.nn.EmbeddingBag(100, 2, mode="sum", include_last_offset=True)
    assert bag(batch["words"], batch["words/offsets"]).shape == (16, 2)


def test_negatives_make_room_for_positives(tree: Any) -> None:
    sampling = {"batch_multiplier": 2, "engagements_list": ["like", "reply"], "num_engagements": 3}
    data = config(tree, preprocess={"downsample_negatives": sampling})
    with pytest.raises(ConfigError, match="num_engagements: found 3, but there are 1 labels"):
        SegdenseReader(data, ["like"], 10, 3)
    data = config(tree, preprocess={"downsample_negatives": {**sampling, "num_engagements": None}})
    reader = SegdenseReader(data, ["like"], 10, 3, epochs=1)
    batches = ids(reader)
    assert [len(batch) for batch in batches] == [10, 10, 10, 10, 5]
    given = list(chain(*batches))
    positives = {n for n in range(ROWS) if n % 5 == 0 or n % 7 == 0}
    assert positives <= set(given)
    assert len(given) == len(set(given))
    assert reader.negative_rate == (len(given) - len(positives)) / (ROWS - len(positives))
    crowded = list(chain(*ids(SegdenseReader(data, ["like"], 1, 3, epochs=1))))
    assert len(set(crowded)) == len(crowded) == 43
    assert len(set(crowded) & positives) > 20


def damage(tree: Any, file: int, at: int) -> None:
    path = Path(tree["inputs"].replace("*", f"{file}.gz"))
    content = bytearray(path.read_bytes())
    content[at] ^= 64
    path.write_bytes(content)


def test_damage_stops_with_its_place_or_is_counted(tmp_path: Path) -> None:
    tree = write_files(tmp_path, COUNTS, "none")
    size = (tmp_path / "part-0.gz").stat().st_size / 17
    damage(tree, 0, int(3.5 * size))  # the data of record 3
    damage(tree, 2, -5)  # the data of the last record
    damage(tree, 4, 3)  # the first length
    with pytest.raises(DataError, match=r"part-\d\.gz: record \d+: "):
        ids(SegdenseReader(config(tree), [], 4, 0, epochs=1))
    data = config(tree, on_error="skip", examples_shuffle_buffer_size=10)
    expected = set(range(60)) - {3, 56}
    for epochs, position in ((1, 9), (3, 20), (3, 33)):
        one = SegdenseReader(data, [], 4, 0, epochs=epochs)
        stream = iter(one)
        start = ids(islice(stream, position))
        other = SegdenseReader(data, [], 4, 0, epochs=epochs)
        other.load_state_dict(one.state_dict())
        rest = ids(other)
        assert Counter(chain(*start, *rest)) == dict.fromkeys(expected, epochs)
        assert rest == ids(stream)
        for reader in (one, other):
            assert (reader.skipped.records, reader.skipped.files) == (2 * epochs, epochs)
        assert other.skipped == one.skipped
        assert "does not match" in one.skipped.first or "do not match" in one.skipped.first


@pytest.mark.parametrize("prefetch_batches", [0, 4])
@pytest.mark.parametrize("rows_a_batch", [4, 5])
def test_what_was_passed_over_behind_the_last_batch_counts(
    tmp_path: Path, rows_a_batch: int, prefetch_batches: int
) -> None:
    tree = write_files(tmp_path, [20], "none")
    path = tmp_path / "part-0.gz"
    records = [record for _, record in read_records(path)]
    write_records(path, [*records, b"\xff", b"\xff\xff"], "none")
    path.write_bytes(path.read_bytes() + b"rest")
    reader = SegdenseReader(
        config(tree, on_error="skip"), [], rows_a_batch, 0, epochs=1, prefetch_batches=prefetch_batches
    )
    assert sorted(chain(*ids(reader))) == list(range(20))
    assert (reader.skipped.records, reader.skipped.files) == (2, 1)
    again = SegdenseReader(config(tree, on_error="skip"), [], rows_a_batch, 0, epochs=1)
    again.load_state_dict(reader.state_dict())
    assert not ids(again)
    assert again.skipped == reader.skipped


@pytest.mark.parametrize("epochs", [None, 1, 3])
@pytest.mark.parametrize(
    "preprocess", [{}, {"downsample_negatives": {"batch_multiplier": 3, "engagements_list": ["like"]}}]
)
def test_files_without_an_example_do_not_hang(tmp_path: Path, epochs: int | None, preprocess: Any) -> None:
    tree = write_files(tmp_path, [1, 1])
    for number in (0, 1):
        write_records(tmp_path / f"part-{number}.gz", [b"\xff"] * 9)
    data = config(tree, on_error="skip", preprocess=preprocess)
    with pytest.raises(DataError, match=r"found no record that can be read in 2 files; .*part-.*not a tf.Example"):
        next(iter(SegdenseReader(data, ["like"], 4, 0, epochs=epochs)))


def test_files_without_a_record_do_not_hang(tmp_path: Path) -> None:
    tree = write_files(tmp_path, [0, 0])
    with pytest.raises(DataError, match=r"no record in 2 files, the first of which is .*part-0"):
        next(iter(SegdenseReader(config(tree), [], 4, 0)))
    tree = write_files(tmp_path, [1, 1])
    with pytest.raises(DataError, match="no record for rank 3 of 4 in 2 files"):
        next(iter(SegdenseReader(config(tree), [], 4, 0, 3, 4)))


def test_values_that_cannot_be_are_refused_with_their_place(tree: Any) -> None:
    with pytest.raises(DataError, match=r"part-\d.gz: record \d+: label id: found \d+, allowed are 0 and 1"):
        next(iter(SegdenseReader(config(tree), ["id"], 64, 0)))
    data = config(tree, preprocess={"downcast": {"features": {"discrete": "int8"}}})
    with pytest.raises(
        DataError, match=r"part-\d.gz: record \d+: downcast.features.discrete: found \d+, which torch.int8"
    ):
        ids(SegdenseReader(data, [], 64, 0, epochs=1))


def test_memory_does_not_grow_with_the_files(tmp_path: Path) -> None:
    generate(tmp_path / "data", rows=400, files=2)
    data = config(
        {"inputs": f"{tmp_path}/data/**/*.gz", "seg_dense_schema": {"schema_path": tmp_path / "data/schema.json"}}
    )
    tracemalloc.start()
    assert sum(len(batch["meta.user_id"]) for batch in SegdenseReader(data, [], 8, 0, epochs=2)) == 800
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20  # the records have 22 MB


def test_the_wrong_rank_is_refused(tree: Any) -> None:
    for batch_size, rank, world_size in ((0, 0, 1), (1, 2, 2), (1, -1, 2)):
        with pytest.raises(ConfigError, match=re.escape(f"found {batch_size}, {rank}, allowed are")):
            SegdenseReader(config(tree), [], batch_size, 0, rank, world_size)
    with pytest.raises(ConfigError, match="bytes_list"):
        SegdenseReader(
            config({**tree, "seg_dense_schema": {**tree["seg_dense_schema"], "features": ["text"]}}), [], 4, 0
        )
