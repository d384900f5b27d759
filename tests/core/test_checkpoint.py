"""Checkpoints: what was saved comes back, and what is not whole never passes for a checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tml.core import checkpoint
from tml.core.errors import DataError

STATE = {"step": 5, "model": {"w": torch.arange(1000.0)}, "rate": 0.1, "names": ["a", None], "flag": True}


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, STATE, step=5)
    assert path == tmp_path / "step-00000005"
    loaded = checkpoint.load(path)
    assert torch.equal(loaded["model"].pop("w"), torch.arange(1000.0))
    assert loaded == {**STATE, "model": {}}


def test_latest_is_the_newest_complete_one_of_the_config(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "nothing") is None
    for step in (9, 10, 100):
        checkpoint.save(tmp_path, STATE, step, fingerprint="one")
    newest = checkpoint.latest(tmp_path, "one")
    assert newest == tmp_path / "step-00000100"
    assert checkpoint.latest(tmp_path, "another") is None
    (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:-1])
    assert checkpoint.latest(tmp_path, "one") == tmp_path / "step-00000010"
    (tmp_path / "step-00000010" / "checkpoint.json").unlink()
    assert checkpoint.latest(tmp_path, "one") == tmp_path / "step-00000009"


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (999, 1000, 2000, 99_999_999, 100_000_000):
        checkpoint.save(tmp_path, STATE, step, keep=3)
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)] == [2000, 99_999_999, 100_000_000]


def test_a_damaged_one_gives_one_sentence(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, STATE, 1)
    content = bytearray((path / "state.pt").read_bytes())
    content[content.find(torch.arange(1000.0).numpy().tobytes()) + 400] ^= 1
    (path / "state.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"state\.pt: damaged since it was written; remove step-00000001"):
        checkpoint.load(path)
    (path / "checkpoint.json").write_text("{")
    with pytest.raises(DataError, match="step-00000001: not a complete checkpoint"):
        checkpoint.load(path)


def test_an_unfinished_one_is_none(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\['a'\]\[0\]: found float64"):
        checkpoint.save(tmp_path, {"a": [np.float64(1)]}, 1)
    assert checkpoint.checkpoints(tmp_path) == []
