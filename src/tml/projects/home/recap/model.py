"""The Heavy Ranker: a shared backbone and one tower per engagement.

    batch ─► featurization ─► backbone ─┬─► tower of is_favorited ─► logit
                                        ├─► tower of is_replied   ─► logit
                                        └─► …

The logistic function of a logit is the probability that the viewer engages in that way. `RankerLoss` wraps the model
for the training loop: per task a binary cross-entropy, and their weighted mean. Labels are found by their name in the
batch, never by position: a task trains on its own label whatever the order of columns.

A tower reads the backbone's output (`share_all`), the featurized input (`share_none`), or either or both, as its task
says (`share_partial`). A backbone of experts has an output for each task.
"""

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from tml.core.errors import ConfigError, DataError
from tml.core.losses import binary_cross_entropy_with_logits
from tml.projects.home.recap.calibration import calibrated_probabilities
from tml.projects.home.recap.conditions import applies, conditions
from tml.projects.home.recap.config import (
    DEFAULT_TASK,
    AffineMapConfig,
    BackboneConfig,
    InputShapes,
    ModelConfig,
    TaskConfig,
)
from tml.projects.home.recap.experts import PLE, MMoE
from tml.projects.home.recap.featurize import Featurization
from tml.projects.home.recap.mask_net import MaskNet
from tml.projects.home.recap.networks import Network, build_network, last_linear
from tml.projects.home.recap.side_by_side import can_join, joined_logits
from tml.projects.home.recap.task_weights import GradNorm, UncertaintyWeights

LOWEST_BASE_RATE = 1e-6
NEVER = -30.0
"""The logit of a task that does not apply: a probability of 1e-13."""


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
        ConfigError: when the config's tasks and the dataset's are not the same, or a part does not fit the dataset.

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
        self.weights = tuple(task.weight for task in tasks.values())
        self.weighting = config.task_weighting
        self.reads = tuple(config.reads(task) for task in tasks.values())
        self.conditions = conditions(tasks, shapes)
        self.featurization = Featurization(config, shapes, generator)
        width, fields = self.featurization.out_width, self.featurization.fields
        self.backbone: nn.Module = nn.Identity()
        widths = {"input": width}
        if config.backbone is not None:
            self.backbone = backbone = _backbone(config.backbone, len(tasks), width, fields, generator)
            widths |= {"backbone": backbone.out_width, "both": backbone.out_width + width}
        if isinstance(self.backbone, MaskNet) and {*self.reads} == {"backbone"}:
            self.featurization.round()  # as a MaskNet does before all else
        self.towers = nn.ModuleDict()
        for (name, task), reads in zip(tasks.items(), self.reads, strict=True):
            parts = () if reads == "backbone" else fields
            self.towers[tower_key(name)] = _tower(task, widths[reads], parts, generator)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (batch, tasks), the tasks in the order of `self.tasks`; about `NEVER` where a task does not apply."""
        inputs = self.featurization(batch)
        outputs = self.backbone(inputs)
        towers = [*self.towers.values()]
        if isinstance(outputs, Tensor) and {*self.reads} == {"backbone"} and can_join(towers, outputs):
            return self._where_it_applies(joined_logits(towers, outputs), batch)
        shared = outputs if isinstance(outputs, tuple) else (outputs,) * len(self.tasks)
        logits = []
        for tower, own, reads in zip(towers, shared, self.reads, strict=True):
            logits.append(tower(_choose(reads, own, inputs)))
        return self._where_it_applies(torch.cat(logits, dim=1), batch)

    def _where_it_applies(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        where = self.applies(batch)
        return logits if where is None else torch.where(where, logits, NEVER)

    def applies(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Whether each task applies to each example, (batch, tasks) bool; None where every task always does."""
        return applies(self.conditions, batch)

    def probabilities(
        self, batch: Mapping[str, Tensor], ratios: Mapping[str, float] | None = None
    ) -> dict[str, Tensor]:
        """The probability of each engagement, (batch,) each, by task; exactly 0 where the task does not apply.

        Args:
            batch: inputs; labels are not looked at.
            ratios: the `sampling_ratio` of each down-sampled task, for calibration.
        """
        ratios = ratios or {}
        logits = zip(self.tasks, self(batch).unbind(dim=1), strict=True)
        said = {task: calibrated_probabilities(logit, ratios.get(task, 1.0)) for task, logit in logits}
        where = self.applies(batch)
        if where is None:
            return said
        return {task: torch.where(where[:, i], values, 0.0) for i, (task, values) in enumerate(said.items())}

    @torch.no_grad()
    def initialise_biases(self, base_rates: Mapping[str, float]) -> None:
        """Start every tower where its loss is least if nothing is known of an example: at the logit of the base rate.

        Without it the first hundreds of steps go into finding out that most engagements are rare.

        Args:
            base_rates: the mean label of each task in the training examples; 0 and 1 are taken as 1e-6 from there, and
                NaN, of a task without a label that counts, leaves its tower as it is.

        Raises:
            DataError: when the names are not the model's tasks.
        """
        _require_same("base rates", base_rates, "the model", self.tasks, DataError)
        for task, weight in zip(self.tasks, self.pos_weights, strict=True):
            if math.isnan(base_rates[task]):
                continue
            rate = min(max(base_rates[task], LOWEST_BASE_RATE), 1 - LOWEST_BASE_RATE)
            logit = math.log(rate / (1 - rate)) + math.log(weight)
            tower = self.towers[tower_key(task)]
            if isinstance(tower, AffineTower):
                logit = float((logit - tower.bias) / tower.scale)
                tower = tower.network
            last_linear(tower).bias.fill_(logit)


class AffineTower(nn.Module):
    """A tower whose logit is scaled and shifted."""

    scale: Tensor
    bias: Tensor

    def __init__(self, network: Network, config: AffineMapConfig) -> None:
        super().__init__()
        self.network, self.out_width = network, 1
        for name, value in (("scale", config.scale), ("bias", config.bias)):
            if config.trainable:
                self.register_parameter(name, nn.Parameter(torch.tensor(value)))
            else:
                self.register_buffer(name, torch.tensor(value), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (batch, width) to logits (batch, 1)."""
        logits: Tensor = self.network(inputs) * self.scale + self.bias
        return logits


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
    weight: Tensor

    def __init__(self, model: HeavyRanker) -> None:
        super().__init__()
        self.model = model
        self.tasks = model.tasks
        self.register_buffer("pos_weight", torch.tensor(model.pos_weights), persistent=False)
        self.register_buffer("weight", torch.tensor(model.weights), persistent=False)
        self.weighting: UncertaintyWeights | GradNorm | None = None
        if model.weighting is not None and model.weighting.grad_norm is not None:
            self.weighting = GradNorm(model.weighting.grad_norm, len(self.tasks))
        elif model.weighting is not None:
            self.weighting = UncertaintyWeights(len(self.tasks))

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | dict[str, Tensor]]]:
        """The mean over tasks of their weighted losses, and without gradient `logits` and `losses` by task.

        A label that is NaN does not count, nor one of a task that does not apply; a task without any label in the
        batch has a loss of 0. `logits` are (batch, tasks), and `losses` are without the tasks' weights.

        Raises:
            DataError: when the batch lacks a label.
        """
        missing = [task for task in self.tasks if task not in batch]
        if missing:
            raise DataError(f"batch: found no label {', '.join(missing)}, the model needs one for each of its tasks")
        labels = torch.stack([batch[task] for task in self.tasks], dim=1)
        where = self.model.applies(batch)
        if where is not None:
            labels = torch.where(where, labels, torch.nan)
        logits = self.model(batch)
        losses = binary_cross_entropy_with_logits(logits, labels, pos_weight=self.pos_weight)
        by_task = dict(zip(self.tasks, losses.detach().unbind(), strict=True))
        return self._combined(losses, labels), {"logits": logits.detach(), "losses": by_task}

    def _combined(self, losses: Tensor, labels: Tensor) -> Tensor:
        if self.weighting is None:
            return (losses * self.weight).mean()
        arguments = [losses, labels.isfinite().any(dim=0)]
        if isinstance(self.weighting, GradNorm):
            # The last weights that all tasks share: of the backbone's matrices the last one.
            arguments.append([p for p in self.model.backbone.parameters() if p.ndim == 2][-1])
        loss: Tensor = self.weighting(*arguments)
        return loss


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


def _backbone(
    config: BackboneConfig, tasks: int, width: int, fields: tuple[int, ...], generator: torch.Generator | None
) -> Network | MMoE | PLE:
    if config.mmoe_config is not None:
        return MMoE(config.mmoe_config, tasks, width, fields, generator)
    if config.ple_config is not None:
        return PLE(config.ple_config, tasks, width, fields, generator)
    return build_network(config, width, fields, generator)


def _tower(
    task: TaskConfig, width: int, fields: tuple[int, ...], generator: torch.Generator | None
) -> Network | AffineTower:
    network = build_network(task, width, fields, generator)
    return network if task.affine_map is None else AffineTower(network, task.affine_map)


def _choose(reads: str, shared: Tensor, inputs: Tensor) -> Tensor:
    """What a tower reads; the backbone's output comes first, so that the embeddings stay last."""
    if reads == "both":
        return torch.cat([shared, inputs], dim=1)
    return shared if reads == "backbone" else inputs
