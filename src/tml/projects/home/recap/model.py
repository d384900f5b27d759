"""The Heavy Ranker: a shared backbone and one tower per engagement.

    batch ─► featurization ─► backbone ─┬─► tower of is_favorited ─► logit
                                        ├─► tower of is_replied   ─► logit
                                        └─► …

The logistic function of a logit is the probability that the viewer engages in that way. `RankerLoss` wraps the model
for the training loop: per task a binary cross-entropy, and their mean. Labels are found by their name in the batch,
never by position: a task trains on its own label whatever the order of columns.
"""

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from tml.core.errors import ConfigError, DataError
from tml.core.losses import binary_cross_entropy_with_logits
from tml.projects.home.recap.calibration import calibrated_probabilities
from tml.projects.home.recap.config import DEFAULT_TASK, InputShapes, ModelConfig, NetworkConfig, TaskConfig
from tml.projects.home.recap.featurize import Featurization
from tml.projects.home.recap.mask_net import MaskNet
from tml.projects.home.recap.mlp import MLP

LOWEST_BASE_RATE = 1e-6


def tower_key(task: str) -> str:
    """The name of a task's tower: module names cannot hold dots.

    Example:
        >>> tower_key("recap.engagement.is_favorited")
        'recap/engagement/is_favorited'
    """
    return task.replace(".", "/")


class HeavyRanker(nn.Module):
    """Maps a batch to one logit per example and task.

    Args:
        config: the architecture.
        shapes: the dataset's columns and tasks.
        generator: draws the initial weights; None draws them from torch's default generator.

    Raises:
        ConfigError: when the config's tasks and the dataset's are not the same.

    Example:
        >>> shapes = InputShapes(continuous=3, tasks=("is_click", "is_like"))
        >>> ranker = HeavyRanker(ModelConfig(), shapes).eval()
        >>> ranker({"continuous": torch.zeros(2, 3), "binary": torch.zeros(2, 0)}).shape
        torch.Size([2, 2])
    """

    def __init__(self, config: ModelConfig, shapes: InputShapes, generator: torch.Generator | None = None) -> None:
        super().__init__()
        tasks = _task_configs(config, shapes)
        self.tasks = tuple(tasks)
        self.pos_weights = tuple(task.pos_weight for task in tasks.values())
        self.featurization = Featurization(config, shapes, generator)
        width = self.featurization.out_width
        self.backbone: nn.Module = nn.Identity()
        if config.backbone is not None:
            self.backbone = backbone = _network(config.backbone, width, generator)
            width = backbone.out_width
        self.towers = nn.ModuleDict({tower_key(name): _network(task, width, generator) for name, task in tasks.items()})

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (batch, tasks), the tasks in the order of `self.tasks`."""
        shared = self.backbone(self.featurization(batch))
        return torch.cat([tower(shared) for tower in self.towers.values()], dim=1)

    def probabilities(
        self, batch: Mapping[str, Tensor], ratios: Mapping[str, float] | None = None
    ) -> dict[str, Tensor]:
        """The probability of each engagement, (batch,) each, by task.

        Args:
            batch: inputs; labels are not looked at.
            ratios: the `sampling_ratio` of each down-sampled task, for calibration.
        """
        ratios = ratios or {}
        logits = zip(self.tasks, self(batch).unbind(dim=1), strict=True)
        return {task: calibrated_probabilities(logit, ratios.get(task, 1.0)) for task, logit in logits}

    @torch.no_grad()
    def initialise_biases(self, base_rates: Mapping[str, float]) -> None:
        """Start every tower where its loss is least if nothing is known of an example: at the logit of the base rate.

        Without it the first hundreds of steps go into finding out that most engagements are rare.

        Args:
            base_rates: the mean label of each task in the training examples; 0 and 1 are taken as 1e-6 from there.

        Raises:
            DataError: when the names are not the model's tasks.
        """
        _require_same("base rates", base_rates, "the model", self.tasks, DataError)
        for task, weight in zip(self.tasks, self.pos_weights, strict=True):
            rate = min(max(base_rates[task], LOWEST_BASE_RATE), 1 - LOWEST_BASE_RATE)
            tower = self.towers[tower_key(task)]
            mlp = tower.mlp if isinstance(tower, MaskNet) else tower
            assert isinstance(mlp, MLP)
            mlp.last_linear.bias.fill_(math.log(rate / (1 - rate)) + math.log(weight))


class RankerLoss(nn.Module):
    """The model and its loss: what the training loop trains.

    Example:
        >>> shapes = InputShapes(continuous=3, tasks=("is_click",))
        >>> objective = RankerLoss(HeavyRanker(ModelConfig(), shapes))
        >>> batch = {"continuous": torch.randn(4, 3), "binary": torch.zeros(4, 0), "is_click": torch.ones(4)}
        >>> loss, outputs = objective(batch)
        >>> list(outputs["losses"])
        ['is_click']
    """

    pos_weight: Tensor

    def __init__(self, model: HeavyRanker) -> None:
        super().__init__()
        self.model = model
        self.tasks = model.tasks
        self.register_buffer("pos_weight", torch.tensor(model.pos_weights), persistent=False)

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | dict[str, Tensor]]]:
        """The mean over tasks of their losses, and without gradient `logits` (batch, tasks) and `losses` by task.

        A label that is NaN does not count; a task without any label in the batch has a loss of 0.

        Raises:
            DataError: when the batch lacks a label.
        """
        missing = [task for task in self.tasks if task not in batch]
        if missing:
            raise DataError(f"batch: found no label {', '.join(missing)}, the model needs one for each of its tasks")
        labels = torch.stack([batch[task] for task in self.tasks], dim=1)
        logits = self.model(batch)
        losses = binary_cross_entropy_with_logits(logits, labels, pos_weight=self.pos_weight)
        by_task = dict(zip(self.tasks, losses.detach().unbind(), strict=True))
        return losses.mean(), {"logits": logits.detach(), "losses": by_task}


def _task_configs(config: ModelConfig, shapes: InputShapes) -> dict[str, TaskConfig]:
    if config.tasks is None:
        return dict.fromkeys(shapes.tasks, DEFAULT_TASK)
    _require_same("model.tasks", config.tasks, "the dataset", shapes.tasks, ConfigError)
    return config.tasks


def _require_same(
    ours: str, names: Collection[str], theirs: str, others: Collection[str], error: type[Exception]
) -> None:
    only_ours = [name for name in names if name not in others]
    only_theirs = [name for name in others if name not in names]
    if only_ours or only_theirs:
        found = [f"{', '.join(only_ours)} which {theirs} lacks"] if only_ours else []
        found += [f"no {', '.join(only_theirs)} which {theirs} has"] if only_theirs else []
        raise error(f"{ours}: found {' and '.join(found)}, allowed are exactly the tasks of {theirs}")


def _network(config: NetworkConfig, width: int, generator: torch.Generator | None) -> MLP | MaskNet:
    if config.mask_net_config is not None:
        return MaskNet(config.mask_net_config, width, generator)
    assert config.mlp_config is not None
    return MLP(config.mlp_config, width, generator)
