"""Several datasets as one: in proportion to the weights, from a position that is restored exactly."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from data.conftest import Make
from tml.core.errors import DataError
from tml.data.mixed import MixedReader
from tml.data.reader import Batch, ExampleReader


@pytest.fixture
def folders(make_dataset: Make) -> dict[str, Path]:
    return {name: make_dataset(name, rows=rows) for name, rows in (("small", 30), ("large", 90))}


def mixed(folders: dict[str, Path], seed: int = 0, **weights: float) -> MixedReader:
    readers = {name: ExampleReader(folder, "train", 6, seed=1) for name, folder in folders.items()}
    return MixedReader(readers, weights or {"small": 1, "large": 3}, seed)


def rows(batches: list[Batch]) -> list[list[int]]:
    return [batch["continuous"][:, 0].long().tolist() for batch in batches]


def test_frequencies_follow_the_weights(folders: dict[str, Path]) -> None:
    one = mixed(folders, small=0.1, large=5)
    counts = Counter(name for block in range(20) for name in one.choices(block))
    assert counts["small"] / sum(counts.values()) == pytest.approx(0.1 / 5.1, abs=1 / 1024)
    for block in range(20):
        assert Counter(one.choices(block))["small"] in (20, 21)  # 1,024 · 0.1 / 5.1 = 20.08
    rare = mixed(folders, small=1e-5, large=1)
    assert 5 <= sum(rare.choices(block).count("small") for block in range(1000)) <= 16  # 10.24


def test_every_batch_is_the_next_of_its_reader(folders: dict[str, Path]) -> None:
    given = rows(list(islice(mixed(folders), 200)))
    alone = {name: ExampleReader(folder, "train", 6, seed=1) for name, folder in folders.items()}
    expected = {name: iter(rows(list(islice(reader, 200)))) for name, reader in alone.items()}
    assert given == [next(expected[name]) for name in mixed(folders).choices(0)[:200]]
    assert given != rows(list(islice(mixed(folders, seed=1), 200)))


@pytest.mark.parametrize("position", [0, 1, 7, 100, 1023, 1025])
def test_a_position_is_restored_exactly(folders: dict[str, Path], position: int) -> None:
    one = mixed(folders)
    stream = iter(one)
    for _ in range(position):
        next(stream)
    other = mixed(folders)
    other.load_state_dict(one.state_dict())
    for ours, theirs in zip(islice(other, 20), islice(stream, 20), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_ends_with_the_first_reader_that_ends(folders: dict[str, Path]) -> None:
    readers = {name: ExampleReader(folder, "train", 6, seed=1, epochs=1) for name, folder in folders.items()}
    given = rows(list(MixedReader(readers, {"small": 1, "large": 1}, seed=0)))
    names = MixedReader(readers, {"small": 1, "large": 1}, seed=0).choices(0)
    end = [i for i, name in enumerate(names) if name == "small"][5]
    assert len(given) == end


def test_what_does_not_fit_is_named(folders: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="weights: found small, allowed is one for each of the readers, small, large"):
        mixed(folders, small=1)
    with pytest.raises(DataError, match="weights: found 0 for large"):
        mixed(folders, small=1, large=0)
    readers = {name: ExampleReader(folder, "train", 6, seed=1) for name, folder in folders.items()}
    readers["large"] = ExampleReader(
        folders["large"], "train", 6, 1, prepare=lambda table: {"continuous": torch.zeros(len(table), 2)}
    )
    with pytest.raises(DataError, match=r"large: found continuous as \(torch.float32, 2\), allowed is .*, 1\)"):
        MixedReader(readers, {"small": 1, "large": 1}, seed=0)
    state = mixed(folders).state_dict()
    for other in (mixed(folders, seed=1), mixed(folders, small=2, large=5)):
        with pytest.raises(DataError, match="of another seed or other weights"):
            other.load_state_dict(state)
    with pytest.raises(DataError, match="of another kind of reader, found epoch, batch, order in it"):
        mixed(folders).load_state_dict(readers["small"].state_dict())
    with pytest.raises(DataError, match="of another kind of reader, found batch, of, readers in it"):
        readers["small"].load_state_dict(state)
    with pytest.raises(DataError, match="the position is of the datasets small, large, found other"):
        MixedReader({"other": readers["small"]}, {"other": 1}, seed=0).load_state_dict(state)
