"""Every program in `examples/` runs, every config there is one, and the quickstart is the program that users know."""

import subprocess
import sys
from pathlib import Path

import pytest

from tml.core.config import load_config
from tml.projects.home.recap.published_config import PublishedConfig, is_published
from tml.run_config import RunConfig

EXAMPLES = Path(__file__).parents[1] / "examples"

QUICKSTART = """\
from tml.projects.home.recap.optimizer.optimizer import build_optimizer
from my_recommendation_algorithm import RecommendationAlgorithm

algorithm = RecommendationAlgorithm()
optimizer = build_optimizer(algorithm)
optimizer.train()
"""


@pytest.mark.parametrize("program", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_programs_run(program: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    if program.name == "quickstart.py":
        assert "2,000 steps" in done.stderr
        assert "recap.engagement.is_replied_reply_engaged_by_author" in done.stderr
    if program.name == "own_loop.py":
        assert "loaded at step 2000" in done.stdout


@pytest.mark.parametrize("config", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_configs_load(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TML_DATA", "data")
    monkeypatch.setenv("TML_RUNS", "runs")
    load_config(PublishedConfig if is_published(config) else RunConfig, config)


def test_the_quickstart_is_as_it_stands() -> None:
    assert (EXAMPLES / "quickstart.py").read_text() == QUICKSTART


def test_the_quickstarts_model_learns() -> None:
    import importlib.util

    import torch

    from tml.projects.home.recap.optimizer import RecommendationAlgorithm, build_optimizer

    spec = importlib.util.spec_from_file_location("mine", EXAMPLES / "my_recommendation_algorithm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    algorithm = module.RecommendationAlgorithm()
    assert isinstance(algorithm, RecommendationAlgorithm)
    losses: list[float] = []
    build_optimizer(algorithm).train(steps=600, callbacks=[lambda _, m: losses.extend([m["train/loss"]] if m else [])])
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.1
