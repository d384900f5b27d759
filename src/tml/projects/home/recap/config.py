"""The Heavy Ranker's architecture as a config, in the structure of the published one.

A network, be it the backbone or a task's tower, is exactly one of `mlp_config` and `mask_net_config`. The defaults are
a model of about a million parameters that two processor cores train on a few hundred thousand examples in a minute;
the published sizes (48 million) are a matter of other numbers in the same fields.

What depends on the data and not on the design (how many columns, which tasks) is in `InputShapes`.
"""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from tml.core.config import BaseConfig, one_of


class BatchNormConfig(BaseConfig):
    """Batch normalisation between a layer and its activation."""

    affine: bool = False
    """Whether to learn a scale and a shift per column."""
    momentum: float = Field(default=0.1, gt=0, lt=1)
    """The part of the running mean and variance that each batch replaces."""


class DropoutConfig(BaseConfig):
    """Dropout after every hidden activation."""

    rate: float = Field(default=0.1, ge=0, lt=1)
    """The part of the units that is set to zero in training."""


class MlpConfig(BaseConfig):
    """Layers of (linear, batch norm, ReLU, dropout); the last is linear alone unless `final_activation` is set."""

    layer_sizes: tuple[PositiveInt, ...] = Field(min_length=1)
    batch_norm: BatchNormConfig | None = None
    dropout: DropoutConfig | None = None
    final_activation: bool = False
    """Make the last layer like every other."""


class MaskBlockConfig(BaseConfig):
    """One mask block: its output width, and the width between the two layers that make its mask."""

    output_size: PositiveInt
    aggregation_size: PositiveInt | None = one_of("aggregation")
    reduction_factor: PositiveFloat | None = one_of("aggregation")
    """The aggregation's width as a multiple of the width of the network's input."""
    input_layer_norm: bool = False
    """Normalise what is masked (not what the mask is made from)."""
    final_activation: bool = True
    """The paper's ReLU on the block's output; the published release left it out."""


class MaskNetConfig(BaseConfig):
    """Mask blocks side by side (`use_parallel`) or in a row, then an optional MLP."""

    mask_blocks: tuple[MaskBlockConfig, ...] = Field(
        default=(MaskBlockConfig(output_size=128, aggregation_size=128),) * 4, min_length=1
    )
    mlp: MlpConfig | None = MlpConfig(layer_sizes=(256,), final_activation=True)
    use_parallel: bool = True


class NetworkConfig(BaseConfig):
    """A network from one vector to another: exactly one architecture."""

    mlp_config: MlpConfig | None = one_of("architecture")
    mask_net_config: MaskNetConfig | None = one_of("architecture")


class TaskConfig(NetworkConfig):
    """A task's tower, from the backbone's output to one logit, and the weight of its positives in the loss."""

    pos_weight: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _ends_in_a_logit(self) -> Self:
        mlp = self.mask_net_config.mlp if self.mask_net_config else self.mlp_config
        if mlp is None or mlp.layer_sizes[-1] != 1 or mlp.final_activation:
            found = "no mlp" if mlp is None else f"layer_sizes {list(mlp.layer_sizes)}"
            found += " with final_activation" if mlp and mlp.final_activation else ""
            raise ValueError(
                f"a tower ends in an mlp with a last layer of size 1 and no final_activation, found {found}"
            )
        return self


DEFAULT_TASK = TaskConfig(mlp_config=MlpConfig(layer_sizes=(64, 32, 1), batch_norm=BatchNormConfig()))
"""The tower of every task of the dataset where the config names no tasks."""


class InputBatchNormConfig(BatchNormConfig):
    """Batch normalisation of the continuous features."""

    affine: bool = True
    momentum: float = Field(default=0.01, gt=0, lt=1)


class LayerNormConfig(BaseConfig):
    """Layer normalisation, with a learnt scale and shift."""

    epsilon: NonNegativeFloat = 0.0
    """Added to the variance of a row; see `featurize` for what 0 means on a row of equal values."""


class DoubleNormLogConfig(BaseConfig):
    """Signed logarithm, batch norm, clip, then layer norm together with the binary features."""

    batch_norm_config: InputBatchNormConfig = InputBatchNormConfig()
    clip_magnitude: PositiveFloat = 5.0
    layer_norm_config: LayerNormConfig = LayerNormConfig()


class FeaturizationConfig(BaseConfig):
    """How continuous and binary features become the network's input: exactly one way."""

    double_norm_log_config: DoubleNormLogConfig | None = one_of("featurization")


class SmallEmbeddingsConfig(BaseConfig):
    """A trained vector for each value of each discrete column."""

    embedding_dim: PositiveInt = 8


class ModelConfig(BaseConfig):
    """The architecture of the Heavy Ranker.

    Example:
        >>> ModelConfig().backbone.mask_net_config.mlp.layer_sizes
        (256,)
    """

    tasks: dict[str, TaskConfig] | None = Field(default=None, min_length=1)
    """The tower of each task; null gives every task of the dataset the default tower."""
    backbone: NetworkConfig | None = NetworkConfig(mask_net_config=MaskNetConfig())
    featurization_config: FeaturizationConfig = FeaturizationConfig(double_norm_log_config=DoubleNormLogConfig())
    multi_task_type: Literal["share_all", "share_none"] = "share_all"
    """What the towers read: the backbone's output, or the featurized input alone (then `backbone` must be null)."""
    small_embeddings: SmallEmbeddingsConfig | None = SmallEmbeddingsConfig()
    """Null leaves the discrete columns out of the model."""

    @model_validator(mode="after")
    def _backbone_is_there_if_shared(self) -> Self:
        if (self.backbone is None) != (self.multi_task_type == "share_none"):
            found = "null" if self.backbone is None else "a network"
            rule = "share_all needs a backbone, share_none allows only null"
            raise ValueError(f"backbone: found {found} with multi_task_type {self.multi_task_type}, but {rule}")
        return self


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
    tasks: tuple[str, ...] = Field(min_length=1)
    """The labels' names."""

    @model_validator(mode="after")
    def _tasks_are_distinct(self) -> Self:
        keys = {task.replace(".", "/") for task in self.tasks}
        if len(keys) < len(self.tasks):
            raise ValueError(f"tasks: found {list(self.tasks)}, allowed are names that differ in more than '.' and '/'")
        return self
