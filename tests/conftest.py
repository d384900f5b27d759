"""Fixtures: one thread, and a small simulated log that is made once."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tml.data.config import LogConfig
from tml.simulator.config import SimulatorConfig
from tml.simulator.simulate import simulate


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors gain nothing from threads, and tests often run beside other work."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> LogConfig:
    """The log of a hundred and fifty people in four days. Read only."""
    folder = tmp_path_factory.mktemp("simulated") / "log"
    simulate(SimulatorConfig(users=150, posts=600, days=4), folder, seed=3)
    return LogConfig(path=folder, truth="truth/probabilities.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder named `log`."""
    path = tmp_path / "log"
    path.mkdir()
    return path


Tml = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tml(tmp_path: Path) -> Tml:
    """Run the `tml` program in a process of its own, in an empty folder."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from tml.cli import main; main()", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    return run
