"""Two models of published configurations on the same validation sets: differences with intervals and p-values.

Both read the validation sets of the first one's config, record by record, each what its own model needs; probabilities
are corrected for what each one's training and the set left out. Viewers are `meta.user_id`; an example without one is
taken for a viewer of its own.
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tml.core.config import load_config
from tml.core.distributed import gathered, is_first_rank, pick_device, ranks
from tml.core.errors import ConfigError, DataError
from tml.core.files import read_json
from tml.core.progress import progress
from tml.data.id_numbers import NO_ID
from tml.projects.home.recap.compare import OURS, THEIRS, Comparison
from tml.projects.home.recap.conditions import labels_that_count
from tml.projects.home.recap.model import HeavyRanker
from tml.projects.home.recap.published_config import PublishedConfig, PublishedData
from tml.projects.home.recap.published_data import PublishedInputs
from tml.projects.home.recap.published_evaluation import sampling_of_set
from tml.projects.home.recap.train import load_ranker

VIEWER = "meta.user_id"
DRAWS, CONFIDENCE = 400, 0.95

Batch = Mapping[str, Tensor]


def compare_published(config: PublishedConfig, folder: Path, against: Path) -> dict[str, dict[str, Any]]:
    """The model of a run against that of another: by validation set, what `compare.compare` gives.

    Args:
        config: of the run.
        folder, against: run folders with trained models.

    Raises:
        ConfigError: the other is no run of a published configuration, or has none of a set's tasks.
        DataError: the other model does not read what the sets hold.
    """
    path = against / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"--against {against}: found no config.yaml, allowed is the run folder of a published training"
        )
    theirs = load_config(PublishedConfig, path)
    sides = _Side(config, config, folder), _Side(config, theirs, against)
    return {name: _compare_set(name, data, sides, config, against) for name, data in config.validation_data.items()}


class _Side:
    """A model, and what it reads of the sets of a config."""

    def __init__(self, config: PublishedConfig, own: PublishedConfig, folder: Path) -> None:
        read = config.model_copy(update={"model": own.model})
        self.inputs, self.config = PublishedInputs(read, also=(VIEWER,)), config
        self.model: HeavyRanker = load_ranker(folder / "recap" / "model.safetensors").to(pick_device())
        self.of_training: dict[str, float] = read_json(folder / "recap" / "sampling.json")

    def ratios(self, data: PublishedData) -> dict[str, float]:
        of_set = sampling_of_set(self.inputs, data, self.config.training.num_eval_steps)
        return {task: self.of_training[task] / of_set[task] for task in self.model.tasks if task in of_set}

    def batches(self, data: PublishedData) -> Iterator[Batch]:
        return itertools.islice(self.inputs.reader(data, epochs=1), self.config.training.num_eval_steps)

    def says(self, batch: Batch, ratios: Mapping[str, float]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Labels and probabilities by task."""
        device = next(self.model.parameters()).device
        on_device = {name: values.to(device) for name, values in batch.items()}
        known = {task: found for task, found in self.model.conditions.items() if task in batch}
        return labels_that_count(known, on_device), self.model.probabilities(on_device, ratios)


@torch.no_grad()
def _compare_set(
    name: str, data: PublishedData, sides: tuple[_Side, _Side], config: PublishedConfig, against: Path
) -> dict[str, Any]:
    tasks = [task for task in data.evaluated if task in sides[1].model.tasks]
    if not tasks:
        raise ConfigError(f"--against {against}: found a model without the tasks of validation_data.{name}")
    ratios = [side.ratios(data) for side in sides]
    comparison, rows, is_same = Comparison(tasks, DRAWS, config.seed), 0, True
    with progress(f"compare {name}", config.training.num_eval_steps, "batches", shown=is_first_rank()) as bar:
        for batches in zip(*(side.batches(data) for side in sides), strict=True):
            (labels, ours), (others, theirs) = (
                side.says(batch, ratio) for side, batch, ratio in zip(sides, batches, ratios, strict=True)
            )
            count = {task: torch.where(others[task].isnan(), torch.nan, labels[task]) for task in tasks}
            said = {OURS: ours, THEIRS: theirs}
            numbers = {side: {task: values[task].cpu().numpy() for task in tasks} for side, values in said.items()}
            comparison.update(
                _viewers(batches[0], rows),
                {t: y.cpu().numpy() for t, y in count.items()},
                numbers[OURS],
                numbers[THEIRS],
            )
            is_same &= all(torch.equal(ours[task], theirs[task]) for task in tasks)
            rows += len(batches[0]["continuous"])
            bar.advance(1)
    if not rows:
        raise DataError(f"validation_data.{name}: found no record")
    merged, *more = gathered((comparison, rows, is_same))
    found, rows, is_same = merged
    for other, count_of_rank, same in more:
        found.merge(other)
        rows, is_same = rows + count_of_rank, is_same and same
    examples = dict.fromkeys(("ours", "theirs", "common"), rows)
    about = {"against": str(against), "examples": examples, "same": is_same}
    return {**about, "draws": DRAWS, "confidence": CONFIDENCE, "tasks": found.figures(CONFIDENCE)}


def _viewers(batch: Batch, first: int) -> Any:
    """(batch,) of int64; ids are positive, and who has none gets a negative number of their own."""
    rows = torch.arange(first, first + len(batch["continuous"])) * ranks().world_size + ranks().rank
    ids = batch.get(VIEWER)
    return (-1 - rows if ids is None else torch.where(ids == NO_ID, -1 - rows, ids)).numpy()
