"""The Heavy Ranker's architecture as a config, in the structure of the published one.

The defaults are a model of about a million parameters that two processor cores train on a few hundred thousand
examples in a minute; the published sizes (48 million) are a matter of other numbers in the same fields. Networks are in
`network_config`, what becomes of a batch's columns in `input_config`.

What depends on the data and not on the design (how many columns, which tasks) is in `InputShapes`.
"""

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from tml.core.config import BaseConfig, one_of
from tml.projects.home.recap.input_config import (
    ClipLog1pAbsConfig,
    DimensionRuleConfig,
    DoubleNormLogConfig,
    FeaturizationConfig,
    InputBatchNormConfig,
    LargeEmbeddingsConfig,
    LargeTableConfig,
    LayerNormConfig,
    Log1pAbsConfig,
    PositionDebiasConfig,
    SequenceAttentionConfig,
    SmallEmbeddingsConfig,
    SmallTableConfig,
    StratifierConfig,
    ZScoreLogConfig,
)
from tml.projects.home.recap.network_config import (
    BackboneConfig,
    BatchNormConfig,
    DcnConfig,
    DlrmConfig,
    DropoutConfig,
    MaskBlockConfig,
    MaskNetConfig,
    MlpConfig,
    MmoeConfig,
    NetworkConfig,
    PleConfig,
)

__all__ = [
    "DEFAULT_TASK",
    "AffineMapConfig",
    "BackboneConfig",
    "BatchNormConfig",
    "ClipLog1pAbsConfig",
    "DcnConfig",
    "DimensionRuleConfig",
    "DlrmConfig",
    "DoubleNormLogConfig",
    "DropoutConfig",
    "FeaturizationConfig",
    "GradNormConfig",
    "InputBatchNormConfig",
    "InputShapes",
    "LargeEmbeddingsConfig",
    "LargeTableConfig",
    "LayerNormConfig",
    "Log1pAbsConfig",
    "MaskBlockConfig",
    "MaskNetConfig",
    "MlpConfig",
    "MmoeConfig",
    "ModelConfig",
    "NetworkConfig",
    "PleConfig",
    "PositionDebiasConfig",
    "SequenceAttentionConfig",
    "SmallEmbeddingsConfig",
    "SmallTableConfig",
    "StratifierConfig",
    "TaskConfig",
    "TaskWeightingConfig",
    "UncertaintyConfig",
    "ZScoreLogConfig",
]


class AffineMapConfig(BaseConfig):
    """logit ↦ scale · logit + bias."""

    scale: float = 1.0
    bias: float = 0.0
    trainable: bool = False
    """Whether the two are learnt, from these values on."""

    @model_validator(mode="after")
    def _keeps_the_logit(self) -> Self:
        if self.scale == 0:
            raise ValueError("scale: found 0, allowed is any other number: with 0 the logit is lost")
        return self


class TaskConfig(NetworkConfig):
    """A task's tower, from what it reads to one logit, and how it counts in the loss."""

    affine_map: AffineMapConfig | None = None
    pos_weight: PositiveFloat = 1.0
    """Weight of its positives."""
    weight: NonNegativeFloat = 1.0
    """Weight of the task among all."""
    reads: Literal["backbone", "input", "both"] | None = None
    """What the tower reads, where `multi_task_type` leaves the choice: in `share_partial`; null is `both` there."""
    applies_if: str | None = None
    """A binary or discrete feature, by its name or as `binary.3`: where it is 0 the task does not apply, as playback to
    a post without a video. Such an example does not count for the task, and its probability is 0."""

    @model_validator(mode="after")
    def _ends_in_a_logit(self) -> Self:
        mlp = self.last_mlp
        if mlp is None or mlp.layer_sizes[-1] != 1 or mlp.final_activation:
            found = "no mlp" if mlp is None else f"layer_sizes {list(mlp.layer_sizes)}"
            found += " with final_activation" if mlp and mlp.final_activation else ""
            raise ValueError(
                f"a tower ends in an mlp with a last layer of size 1 and no final_activation, found {found}"
            )
        return self


DEFAULT_TASK = TaskConfig(mlp_config=MlpConfig(layer_sizes=(64, 32, 1), batch_norm=BatchNormConfig()))
"""The tower of every task of the dataset where the config names no tasks."""


class UncertaintyConfig(BaseConfig):
    """A task's weight is learnt with the model, as the inverse of the variance that its labels have for it."""


class GradNormConfig(BaseConfig):
    """Tasks' weights are moved so that all tasks' gradients have about the same norm where the tasks part."""

    alpha: NonNegativeFloat = 1.5
    """How much more a task counts that has learnt less than the others; 0 makes all norms alike."""


class TaskWeightingConfig(BaseConfig):
    """How tasks' weights are learnt: exactly one way."""

    uncertainty: UncertaintyConfig | None = one_of("weighting")
    grad_norm: GradNormConfig | None = one_of("weighting")


class ModelConfig(BaseConfig):
    """The architecture of the Heavy Ranker.

    Example:
        >>> ModelConfig().backbone.mask_net_config.mlp.layer_sizes
        (256,)
    """

    tasks: dict[str, TaskConfig] | None = Field(default=None, min_length=1)
    """The tower of each task; null gives every task of the dataset the default tower."""
    backbone: BackboneConfig | None = BackboneConfig(mask_net_config=MaskNetConfig())
    featurization_config: FeaturizationConfig = FeaturizationConfig(double_norm_log_config=DoubleNormLogConfig())
    multi_task_type: Literal["share_all", "share_none", "share_partial"] = "share_all"
    """What the towers read: the backbone's output, the featurized input alone (then `backbone` must be null), or what
    each task says in `reads`."""
    small_embeddings: SmallEmbeddingsConfig | None = SmallEmbeddingsConfig()
    """Null leaves the discrete columns out of the model."""
    large_embeddings: LargeEmbeddingsConfig | None = None
    sequence_config: SequenceAttentionConfig | None = None
    position_debias_config: PositionDebiasConfig | None = None
    stratifiers: tuple[StratifierConfig, ...] | None = None
    task_weighting: TaskWeightingConfig | None = None
    """Null leaves the tasks' weights as they are given."""

    @field_validator("backbone", mode="before")
    @classmethod
    def _any_network_is_a_backbone(cls, value: Any) -> Any:
        plain = isinstance(value, NetworkConfig) and not isinstance(value, BackboneConfig)
        return dict(value) if plain else value

    @model_validator(mode="after")
    def _backbone_is_there_if_shared(self) -> Self:
        if (self.backbone is None) != (self.multi_task_type == "share_none"):
            found = "null" if self.backbone is None else "a network"
            rule = (
                f"{self.multi_task_type} needs a backbone" if self.backbone is None else "share_none allows only null"
            )
            raise ValueError(f"backbone: found {found} with multi_task_type {self.multi_task_type}, but {rule}")
        return self

    @model_validator(mode="after")
    def _towers_read_what_is_there(self) -> Self:
        only = {"share_all": "backbone", "share_none": "input"}.get(self.multi_task_type)
        for name, task in (self.tasks or {}).items():
            if only and task.reads not in (None, only):
                raise ValueError(
                    f"tasks.{name}.reads: found {task.reads} with multi_task_type {self.multi_task_type}, allowed is "
                    f"{only}; share_partial allows others"
                )
        reads = {task.reads for task in (self.tasks or {}).values()}
        if self.multi_task_type == "share_partial" and reads == {"input"}:
            raise ValueError("tasks: found reads: input for every one in share_partial, that is share_none")
        return self

    @model_validator(mode="after")
    def _weights_are_given_or_learnt(self) -> Self:
        weights = [task.weight for task in (self.tasks or {}).values()]
        if self.tasks and not any(weights):
            raise ValueError("tasks: found a weight of 0 for every task, allowed is at least one above it")
        if self.task_weighting is None:
            return self
        if any(weight != 1 for weight in weights):
            raise ValueError("task_weighting: found weights of tasks beside it, allowed are given or learnt weights")
        if self.task_weighting.grad_norm and (self.backbone is None or self.backbone.has_experts):
            raise ValueError(
                "task_weighting.grad_norm: needs a backbone that is one network, whose end all tasks share"
            )
        apart = [name for name, task in (self.tasks or {}).items() if self.reads(task) == "input"]
        if self.task_weighting.grad_norm and apart:
            raise ValueError(
                f"task_weighting.grad_norm: found {apart[0]} with reads: input, needed is that all read the backbone"
            )
        return self

    def reads(self, task: TaskConfig) -> str:
        """What a task's tower reads: `backbone`, `input` or `both`."""
        return {"share_all": "backbone", "share_none": "input"}.get(self.multi_task_type) or task.reads or "both"


class InputShapes(BaseConfig):
    """The shape of a batch: what the model needs to know of the dataset.

    Example:
        >>> InputShapes(continuous=3, embeddings={"user_embedding": 32}, tasks=("is_click",)).discrete
        ()
    """

    continuous: PositiveInt
    """Columns of `continuous`."""
    binary: int = Field(default=0, ge=0)
    """Columns of `binary`."""
    discrete: tuple[PositiveInt, ...] = ()
    """For each column of `discrete` the number of its values, of which 0 means unknown."""
    embeddings: dict[str, PositiveInt] = Field(default_factory=dict)
    """The width of each embedding by its name in the batch."""
    trained: dict[str, PositiveInt] = Field(default_factory=dict)
    """For each embedding that the model trains the number of its rows, of which 0 is the unknown id's: the batch has
    row numbers for it."""
    sequence_length: int = Field(default=0, ge=0)
    """How many posts the dataset has of those that the viewer was shown last."""
    sequence_engagements: int = Field(default=0, ge=0)
    """How many engagements it tells of each."""
    sequence_vectors: tuple[PositiveInt, PositiveInt] | None = None
    """Rows, of which 0 is the unknown post's, and width of the vectors of posts that a file has for it."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """The labels' names."""
    names: dict[Literal["continuous", "binary", "discrete"], tuple[str, ...]] = Field(default_factory=dict)
    """The vectors' elements by name, where they have names."""
    log_mean: tuple[float, ...] = ()
    """The mean of each continuous column's signed logarithm in training, for the z-score."""
    log_deviation: tuple[NonNegativeFloat, ...] = ()
    """Its standard deviation."""

    @model_validator(mode="after")
    def _tasks_are_distinct(self) -> Self:
        keys = {task.replace(".", "/") for task in self.tasks}
        if len(keys) < len(self.tasks):
            raise ValueError(f"tasks: found {list(self.tasks)}, allowed are names that differ in more than '.' and '/'")
        return self

    @model_validator(mode="after")
    def _widths_agree(self) -> Self:
        widths = self._widths()
        for vector, names in self.names.items():
            if len(names) != widths[vector]:
                raise ValueError(f"names: found {len(names)} for {vector}, allowed are {widths[vector]}")
        for name, values in (("log_mean", self.log_mean), ("log_deviation", self.log_deviation)):
            if values and len(values) != self.continuous:
                raise ValueError(f"{name}: found {len(values)} values, allowed are {self.continuous}")
        unknown = self.trained.keys() - self.embeddings.keys()
        if unknown:
            raise ValueError(f"trained: found {', '.join(sorted(unknown))}, allowed are names of embeddings")
        return self

    def _widths(self) -> dict[str, int]:
        return {"continuous": self.continuous, "binary": self.binary, "discrete": len(self.discrete)}

    def find(self, feature: str) -> tuple[str, int] | None:
        """The vector (`binary`, …) that has a feature, and which element it is; None where there is none.

        Example:
            >>> shapes = InputShapes(continuous=1, binary=2, names={"binary": ("a", "has_video")}, tasks=("t",))
            >>> shapes.find("has_video"), shapes.find("binary.0"), shapes.find("binary.2")
            (('binary', 1), ('binary', 0), None)
        """
        for vector, names in self.names.items():
            if feature in names:
                return vector, names.index(feature)
        prefix, _, index = feature.rpartition(".")
        if prefix in self._widths() and index.isdecimal() and int(index) < self._widths()[prefix]:
            return prefix, int(index)
        return None
