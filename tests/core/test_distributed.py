"""Devices by name, and models inside their wrappers."""

import pytest
import torch
from torch import nn

from tml.core.distributed import pick_device, unwrap
from tml.core.errors import ConfigError


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type in ("cuda", "mps", "cpu")
    for name in ("cuda:99", "gpu", "meta"):
        with pytest.raises(ConfigError, match=f"device: found '{name}'.*allowed.* auto"):
            pick_device(name)


def test_wrappers_come_off_in_any_order() -> None:
    model = nn.Linear(2, 1)
    assert unwrap(model) is model
    compiled: nn.Module = torch.compile(model, backend="eager")  # type: ignore[assignment]
    assert unwrap(compiled) is model
    assert unwrap(nn.DataParallel(compiled)) is model
