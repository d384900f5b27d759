"""The published model, its loss and batches of its shape, from `examples/published.yaml`."""

import os
from pathlib import Path

import torch

from tml.core.config import load_config
from tml.projects.home.recap.config import InputShapes
from tml.projects.home.recap.model import HeavyRanker, RankerLoss
from tml.projects.home.recap.published_config import PublishedConfig

EXAMPLE = Path(__file__).parents[1] / "examples" / "published.yaml"


def published_config(data: Path = Path("data"), runs: Path = Path("runs")) -> PublishedConfig:
    """The shipped configuration, with its data and its run folders in these places."""
    os.environ |= {"TML_DATA": str(data), "TML_RUNS": str(runs)}
    return load_config(PublishedConfig, EXAMPLE)


CONFIG = published_config()
SHAPES = InputShapes(
    continuous=2117,
    binary=59,
    embeddings=dict.fromkeys(("user_embedding", "user_eng_embedding", "author_embedding"), 200),
    tasks=tuple(CONFIG.model.tasks or ()),
)


def published_ranker() -> RankerLoss:
    """The published architecture with its loss."""
    return RankerLoss(HeavyRanker(CONFIG.model, SHAPES, torch.Generator().manual_seed(0)))


def random_batch(rows: int) -> dict[str, torch.Tensor]:
    """A batch of the published shape."""
    widths = {"continuous": SHAPES.continuous, "binary": SHAPES.binary, **SHAPES.embeddings}
    inputs = {name: torch.rand(rows, width) for name, width in widths.items()}
    return inputs | {task: torch.randint(0, 2, (rows,)).float() for task in SHAPES.tasks}
