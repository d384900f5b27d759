"""Tasks that do not apply to every example, as the playback of a video to a post without one.

A task's condition is a binary or discrete feature: where it is 0 (or below) the task does not apply. Such an example
does not count for the task, in training, in evaluation and for baselines alike, and its probability is exactly 0.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tml.core.errors import ConfigError
from tml.projects.home.recap.config import InputShapes, TaskConfig

Condition = tuple[str, int]
"""A vector of the batch, and which element of it."""

Conditions = Mapping[str, Condition | None]
"""By task; None where it always applies."""


def conditions(tasks: Mapping[str, TaskConfig], shapes: InputShapes) -> dict[str, Condition | None]:
    """The condition of each task.

    Raises:
        ConfigError: a feature that the dataset lacks, or a continuous one.
    """
    return {name: _condition(name, task, shapes) for name, task in tasks.items()}


def _condition(name: str, task: TaskConfig, shapes: InputShapes) -> Condition | None:
    if task.applies_if is None:
        return None
    found = shapes.find(task.applies_if)
    if found is None or found[0] == "continuous":
        raise ConfigError(
            f"model.tasks.{name}.applies_if: found {task.applies_if}, allowed are binary and discrete features of the "
            "dataset, by name or as binary.0"
        )
    return found


def applies(by_task: Conditions, batch: Mapping[str, Tensor]) -> Tensor | None:
    """Whether each task applies to each example, (batch, tasks) bool; None where every task always does."""
    if not any(by_task.values()):
        return None
    always = torch.ones_like(batch["continuous"][:, 0], dtype=torch.bool)
    columns = [always if c is None else batch[c[0]][:, c[1]] > 0 for c in by_task.values()]
    return torch.stack(columns, dim=1)


def labels_that_count(by_task: Conditions, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The label of each task, (batch,) each, NaN where the task does not apply.

    Example:
        >>> batch = {"continuous": torch.zeros(2, 1), "binary": torch.tensor([[0.0], [1.0]]), "t": torch.zeros(2)}
        >>> labels_that_count({"t": ("binary", 0)}, batch)
        {'t': tensor([nan, 0.])}
    """
    where = applies(by_task, batch)
    if where is None:
        return {task: batch[task] for task in by_task}
    return {task: torch.where(where[:, i], batch[task], torch.nan) for i, task in enumerate(by_task)}
