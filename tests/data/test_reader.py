"""Reading an example dataset: every row once an epoch, an order that the seed decides, an exact position."""

import itertools
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from data.conftest import ROWS, Make
from tml.core.errors import DataError, MissingStage
from tml.data import reader as module
from tml.data.reader import Batch, ExampleReader
from tml.data.shards import OnError

ROW_BYTES = 4 * 1 + 4 * 2 + 8 * 1 + 4 * 1 + 4
"""Of a row's tensors: continuous, binary, discrete, embedding, label."""


def reader(folder: Path, batch_size: int = 10, pool_rows: int = 24, **others: Any) -> ExampleReader:
    return ExampleReader(folder, "train", batch_size, **{"seed": 1, "pool_bytes": pool_rows * ROW_BYTES} | others)


def numbers(batches: Iterable[Batch]) -> list[list[int]]:
    """The rows of each batch; all of a row is from the same row."""
    found = []
    for batch in batches:
        rows = batch["discrete"][:, 0]
        assert torch.equal(batch["continuous"], batch["author_embedding"])
        number = batch["continuous"][:, 0].long()
        assert torch.equal(rows, number % 2)
        assert torch.equal(batch["is_like"], (number % 3 == 0).float())
        found.append(number.tolist())
    return found


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


@pytest.mark.parametrize("pool_rows", [1, 24, 60, 200])
def test_an_epoch_has_every_row_once(dataset: Path, pool_rows: int) -> None:
    one = reader(dataset, pool_rows=pool_rows)
    first, second = (numbers(itertools.islice(one, one.batches_per_epoch)) for _ in range(2))
    for epoch in (first, second):
        assert sorted(flat(epoch)) == list(range(ROWS))
        assert [len(batch) for batch in epoch] == [10] * 9 + [7, 6]
    assert first != second
    assert flat(first) != sorted(flat(first))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(2, 20), st.integers(1, 200))
def test_ranks_share_an_epoch(shared_dataset: Path, world_size: int, batch_size: int, pool_rows: int) -> None:
    seen, counts = [], set()
    for rank in range(world_size):
        of_rank = reader(shared_dataset, batch_size, pool_rows, rank=rank, world_size=world_size, epochs=1)
        batches = numbers(of_rank)
        seen += flat(batches)
        counts.add(len(batches))
        assert len(batches) == of_rank.batches_per_epoch
    assert sorted(seen) == list(range(ROWS))
    assert len(counts) == 1


@pytest.mark.parametrize("pool_rows", [1, 24, 200])
def test_every_position_is_restored_exactly(dataset: Path, pool_rows: int) -> None:
    batches: list[list[int]] = []
    states: list[dict[str, Any]] = []
    one = reader(dataset, pool_rows=pool_rows, epochs=3)
    states.append(one.state_dict())
    for batch in one:
        batches += numbers([batch])
        states.append(one.state_dict())
    for given_so_far, state in enumerate(states):
        other = reader(dataset, pool_rows=pool_rows, epochs=3)
        other.load_state_dict(state)
        assert numbers(other) == batches[given_so_far:]


def test_pools_before_a_position_are_not_read(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = reader(dataset, pool_rows=16, epochs=1)
    *_, last = (one.state_dict() for _ in itertools.islice(one, one.batches_per_epoch - 1))
    other = reader(dataset, pool_rows=16, epochs=1)
    other.load_state_dict(last)
    read: list[Any] = []
    original = other.shards.read
    monkeypatch.setattr(other.shards, "read", lambda group: read.append(group) or original(group))
    assert len(numbers(other)) == 1
    assert 1 <= len(read) <= 3 < len(other.shards.groups)


def test_a_part_that_fits_is_read_once(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = reader(dataset, pool_rows=ROWS, epochs=3)
    read: list[Any] = []
    original = one.shards.read
    monkeypatch.setattr(one.shards, "read", lambda group: read.append(group) or original(group))
    assert len(flat(numbers(one))) == 3 * ROWS
    assert len(read) == len(one.shards.groups)


def test_an_epochs_start_is_a_position_for_any_number_of_ranks(dataset: Path) -> None:
    one = reader(dataset)
    numbers(itertools.islice(one, one.batches_per_epoch))
    state = one.state_dict()
    second = numbers(itertools.islice(one, one.batches_per_epoch))
    seen = []
    for rank in range(3):
        other = reader(dataset, batch_size=4, rank=rank, world_size=3, epochs=2)
        other.load_state_dict(state)
        seen += flat(numbers(other))
    assert sorted(seen) == sorted(flat(second)) == list(range(ROWS))


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"seed": 2}, "seed 1, found seed 2"),
        ({"batch_size": 4}, "batch_size 10, found batch_size 4"),
        ({"world_size": 2}, "world_size 1, found world_size 2"),
        ({"pool_rows": 25}, "pool_rows 24, found pool_rows 25"),
    ],
)
def test_a_position_within_an_epoch_is_refused_for_another_order(
    dataset: Path, changed: dict[str, int], name: str
) -> None:
    one = reader(dataset)
    numbers(itertools.islice(one, 3))
    with pytest.raises(DataError, match=f"batch 3 of an epoch with {name}"):
        reader(dataset, **changed).load_state_dict(one.state_dict())


def test_a_position_is_of_the_sizes_of_the_row_groups(make_dataset: Make) -> None:
    one, other = (reader(make_dataset(name, shards=ends)) for name, ends in (("a", (39,)), ("b", (40,))))
    assert one.rows == other.rows
    numbers(itertools.islice(one, 3))
    assert len(one.shards.groups) == len(other.shards.groups)
    with pytest.raises(DataError, match="of an epoch with row_group_sizes"):
        other.load_state_dict(one.state_dict())
    with pytest.raises(DataError, match="of another kind of reader, found nothing in it"):
        other.load_state_dict({})


def test_what_goes_wrong_with_a_table_is_told_with_its_place(dataset: Path) -> None:
    for error in (DataError("user_id: found no id"), ValueError("no id")):

        def prepare(table: pa.Table, error: Exception = error) -> dict[str, torch.Tensor]:
            if 20 in table["user_id"].to_pylist():
                raise error
            return {"number": torch.tensor(table["user_id"].to_pylist())}

        one = ExampleReader(dataset, "train", 8, seed=0, prepare=prepare, pool_bytes=200)
        with pytest.raises(type(error)) as found:
            list(one)
        told = str(found.value) + "".join(getattr(found.value, "__notes__", []))
        assert re.search(r"part-00000.parquet row group 2", told)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_shard_that_is_written_anew_while_it_is_read_is_damage(dataset: Path, on_error: OnError) -> None:
    one = ExampleReader(dataset, "train", 8, seed=0, epochs=1, pool_bytes=200, on_error=on_error)
    path = dataset / "train/part-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["binary"]), path, row_group_size=8)
    if on_error == "stop":
        with pytest.raises(DataError, match=r"part-00000.parquet row group \d: found no column binary"):
            list(one)
    else:
        assert sum(len(batch["binary"]) for batch in one) == ROWS - 40
        assert sum(one.skipped.values()) == 40


def test_the_position_is_that_of_the_batch_in_use_not_of_what_was_made_ahead(dataset: Path) -> None:
    one = reader(dataset)
    for number, _ in enumerate(itertools.islice(one, 25), start=1):
        state = one.state_dict()
        assert (state["epoch"], state["batch"]) == divmod(number, one.batches_per_epoch)


def test_the_seed_decides_the_order(dataset: Path) -> None:
    first, again, other = (numbers(itertools.islice(reader(dataset, seed=seed), 20)) for seed in (1, 1, 2))
    assert first == again != other


def test_threads_do_not_change_the_order(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = numbers(itertools.islice(reader(dataset), 30))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert numbers(itertools.islice(reader(dataset), 30)) == alone


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_workers_of_a_data_loader_share_an_epoch(dataset: Path, workers: int, world_size: int) -> None:
    seen, counts = [], set()
    for rank in range(world_size):
        of_rank = reader(dataset, 8, rank=rank, world_size=world_size, epochs=1)
        open_elsewhere = iter(reader(dataset))
        next(open_elsewhere)  # threads of another iterator must not matter to the processes
        batches = numbers(DataLoader(of_rank, batch_size=None, num_workers=workers))
        open_elsewhere.close()
        seen += flat(batches)
        counts.add(len(batches))
    assert sorted(seen) == list(range(ROWS))
    assert len(counts) == 1


@pytest.mark.parametrize(("batches", "workers", "what"), [(1, 2, "2 within an epoch"), (0, 60, "60, too many for 103")])
def test_workers_that_cannot_share_an_epoch_are_refused(
    dataset: Path, batches: int, workers: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = reader(dataset)
    list(itertools.islice(one, batches))
    # Not in a DataLoader: to clear one away whose workers raised takes torch ten seconds.
    monkeypatch.setattr(module, "get_worker_info", lambda: SimpleNamespace(num_workers=workers, id=1))
    with pytest.raises(DataError, match=f"num_workers: found {what}"):
        next(iter(one))


def test_what_a_user_makes_of_a_table_is_given(dataset: Path) -> None:
    def prepare(table: pa.Table) -> Batch:
        return {"user": torch.tensor(table["user_id"].to_numpy()), "pair": torch.ones(len(table), 2, 3)}

    given = list(reader(dataset, prepare=prepare, columns=["user_id"], epochs=1))
    assert sorted(torch.cat([batch["user"] for batch in given]).tolist()) == list(range(ROWS))
    assert given[0]["pair"].shape == (10, 2, 3)


def test_a_table_of_which_not_every_row_is_made_is_refused(dataset: Path) -> None:
    with pytest.raises(DataError, match="prepare: found 1 rows of x, allowed are the table's 0"):
        reader(dataset, prepare=lambda _: {"x": torch.ones(1)})


def test_only_the_next_pool_is_read_ahead(make_dataset: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = reader(make_dataset("long", rows=2000, shards=(500, 1000, 1500)), pool_rows=80, epochs=1)
    read = 0
    original = one.shards.read

    def counted(group: Any) -> Any:
        nonlocal read
        read += group.rows
        return original(group)

    monkeypatch.setattr(one.shards, "read", counted)
    given = 0
    for batch in one:
        given += len(batch["binary"])
        # The pool in use, the next, and the batch that is made while one is in use may have begun a third.
        assert read <= given + 3 * (80 + 8)
    assert read == given == 2000


def test_ctrl_c_ends_a_program_that_reads(dataset: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tml.data.reader import ExampleReader\n"
        f"for batch in ExampleReader(Path({str(dataset)!r}), 'train', 10, 0, pool_bytes=800): print(1, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        running.send_signal(signal.SIGINT)
        _, error = running.communicate(timeout=30)
    assert error.strip().endswith(b"KeyboardInterrupt")


def test_batches_own_their_memory(dataset: Path) -> None:
    """What is done to a batch, and when, does not matter to the others."""
    one = list(itertools.islice(reader(dataset), 30))
    for number, batch in enumerate(reader(dataset)):
        if number == 30:
            break
        assert torch.equal(batch["continuous"], one[number]["continuous"])
        for values in batch.values():
            values.fill_(-1)


def test_damage_stops_in_its_place_and_ends_the_threads(dataset: Path) -> None:
    flip(dataset / "train" / "part-00002.parquet")
    with pytest.raises(DataError, match=r"part-00002.parquet row group \d: not readable"):
        list(reader(dataset, epochs=1))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tml-ahead")]


def flip(path: Path) -> None:
    """Change the last byte of the first row group's labels."""
    label = pq.ParquetFile(path).metadata.row_group(0).column(5)
    content = bytearray(path.read_bytes())
    content[label.data_page_offset + label.total_compressed_size - 1] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize("pool_rows", [16, 200])
def test_damage_is_skipped_and_counted(dataset: Path, pool_rows: int) -> None:
    flip(dataset / "train" / "part-00002.parquet")
    (dataset / "train" / "part-00001.parquet").unlink()
    one = reader(dataset, pool_rows=pool_rows, epochs=2, on_error="skip")
    batches = numbers(one)
    assert len(batches) == 2 * one.batches_per_epoch
    row_group, shard = sorted(one.skipped.items(), key=lambda item: -item[1])
    assert "part-00002.parquet row group" in row_group[0]
    assert "part-00001.parquet: no such shard" in shard[0]
    assert (row_group[1], shard[1]) == (8, 1)
    rows = flat(batches)
    assert sorted(rows) == sorted(2 * sorted(set(rows)))
    assert len(set(rows)) == ROWS - 9


def test_where_a_batch_is_nearly_all_damaged_the_next_has_its_rows_unless_other_ranks_wait(make_dataset: Make) -> None:
    folder = make_dataset("one", rows=32, shards=(8, 16, 24))
    for number in (1, 2, 3):
        flip(folder / "train" / f"part-0000{number}.parquet")
    small: dict[str, Any] = {"batch_size": 2, "pool_rows": 32, "epochs": 5, "on_error": "skip"}
    batches = numbers(reader(folder, **small))
    assert {len(batch) for batch in batches} <= {2, 3}
    rows = flat(batches)
    assert set(rows) == set(range(8))
    assert 5 * 8 - len(rows) <= 1  # one row that no other came after
    ranks = [reader(folder, **small, rank=rank, world_size=2) for rank in range(2)]
    with pytest.raises(DataError, match="allowed are 2 or more, since all ranks"):
        list(itertools.chain(*ranks))


def test_with_every_row_damaged_there_is_an_end(make_dataset: Make) -> None:
    folder = make_dataset("one", rows=8, shards=())
    flip(folder / "train" / "part-00000.parquet")
    with pytest.raises(DataError, match="found no row that can be read"):
        next(iter(reader(folder, 4, on_error="skip")))


def test_what_is_wrong_with_the_arguments_is_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingStage, match="tml features"):
        reader(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no part 'test', allowed are train"):
        ExampleReader(dataset, "test", 8, seed=0)
    with pytest.raises(DataError, match="batch_size: found 104, allowed is 1 to the 103 rows"):
        reader(dataset, 104)
    with pytest.raises(DataError, match=r"batch_size: found 35, allowed is 2 to the 34 rows .* each of 3 ranks"):
        reader(dataset, 35, world_size=3)
    with pytest.raises(DataError, match="rank: found 2 of 2"):
        reader(dataset, rank=2, world_size=2)
