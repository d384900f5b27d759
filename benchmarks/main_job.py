"""The parts of the main job that take its time, as rates, and the ranker's step against the machine's matrix rate.

python benchmarks/main_job.py [--short]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from _machine import print_figure, print_machine, seconds

from tml.data.config import LogConfig, published_tasks
from tml.data.log import open_log
from tml.features.build import build_examples
from tml.features.config import FeaturesConfig, SplitConfig
from tml.projects.home.recap.config import InputShapes, ModelConfig
from tml.projects.home.recap.model import HeavyRanker, RankerLoss
from tml.simulator.config import SimulatorConfig
from tml.simulator.simulate import simulate

BATCH = 1024


def data_rates(users: int, folder: Path) -> None:
    """Impressions a second of the simulator, and of features with their labels."""
    log = LogConfig(path=folder / "log")
    took = seconds(lambda: simulate(SimulatorConfig(users=users), log.path, seed=0))
    with open_log(log) as opened:
        print_figure("simulator.impressions_per_second", [opened.rows / took], "1/s", True)
        arguments = (published_tasks(), FeaturesConfig(), SplitConfig(train_start=0.0), folder / "examples", 0, "")
        took = seconds(lambda: build_examples(opened, *arguments))
        print_figure("features.impressions_per_second", [opened.rows / took], "1/s", True)


def step_against_the_matrix_rate(runs: int) -> None:
    """Forward and backward of the default ranker, and the same multiply-adds as one matrix product."""
    shapes = InputShapes(
        continuous=257,
        binary=1,
        discrete=(25, 8, 13, 5, 4, 5),
        embeddings={"user_embedding": 32, "author_embedding": 32},
        tasks=tuple(published_tasks()),
    )
    objective = RankerLoss(HeavyRanker(ModelConfig(), shapes))
    batch = {
        "continuous": torch.rand(BATCH, shapes.continuous),
        "binary": torch.ones(BATCH, shapes.binary),
        "discrete": torch.ones(BATCH, len(shapes.discrete), dtype=torch.int64),
        **{name: torch.rand(BATCH, width) for name, width in shapes.embeddings.items()},
        **{task: torch.randint(0, 2, (BATCH,)).float() for task in shapes.tasks},
    }
    weights = sum(p.numel() for p in objective.parameters() if p.ndim == 2)
    left, right = torch.rand(1024, 1024), torch.rand(1024, 1024)
    steps, products = [], []
    for _ in range(runs):
        steps.append(seconds(lambda: objective(batch)[0].backward()))
        products.append(seconds(lambda: left @ right) / 1024**3)
    # Forward, and backward to inputs and to weights: three products a weight and example.
    bound = [3 * weights * BATCH * each for each in products]
    print_figure("recap.examples_per_second", [BATCH / step for step in steps], "1/s", True)
    print_figure("recap.share_of_matrix_rate", [b / s for b, s in zip(bound, steps, strict=True)], "ratio", True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a small log and few runs")
    short = parser.parse_args().short
    print_machine()
    with tempfile.TemporaryDirectory() as folder:
        data_rates(500 if short else 7500, Path(folder))
    step_against_the_matrix_rate(10 if short else 100)


if __name__ == "__main__":
    main()
