"""The networks of the Heavy Ranker as configs: each is exactly one architecture, from one vector to another.

The same four serve as backbone and as towers; a backbone may also be a mixture of experts, each expert one of the four.
Sizes are layers' widths; what comes in is whatever the model has there.
"""

from typing import Any, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

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
    """Layers of (linear, batch norm, ReLU, dropout); the last is linear alone unless `final_activation` is set.

    `final_layer_activation`, the field's published name, is read as `final_activation`.
    """

    layer_sizes: tuple[PositiveInt, ...] = Field(min_length=1)
    batch_norm: BatchNormConfig | None = None
    dropout: DropoutConfig | None = None
    final_activation: bool = False
    """Make the last layer like every other."""

    @model_validator(mode="before")
    @classmethod
    def _published_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and "final_layer_activation" in values and "final_activation" not in values:
            values = dict(values)
            values["final_activation"] = values.pop("final_layer_activation")
        return values


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


class DcnConfig(BaseConfig):
    """Cross layers, an optional deep network beside them (`parallel_mlp`), then an optional MLP.

    Without `parallel_mlp` this is the paper's stacked form, with it the parallel one, whose two outputs are
    concatenated before `mlp`.
    """

    num_layers: PositiveInt = 3
    """Each raises the degree of the crossed features by one."""
    rank: PositiveInt | None = None
    """The rank of a layer's weights; null leaves them a full square matrix."""
    num_experts: PositiveInt = 1
    """Low-rank layers whose sum, weighted by a gate that sees the input, is a layer; more than one needs a `rank`."""
    parallel_mlp: MlpConfig | None = None
    mlp: MlpConfig | None = MlpConfig(layer_sizes=(256,), final_activation=True)

    @model_validator(mode="after")
    def _experts_have_a_rank(self) -> Self:
        if self.num_experts > 1 and self.rank is None:
            raise ValueError(f"num_experts: found {self.num_experts} without a rank, allowed is 1 there")
        return self


class DlrmConfig(BaseConfig):
    """A bottom MLP for what is dense, dot products of all pairs of fields, a top MLP.

    A field is a part of the input: an embedding, or a discrete column's vector. What is no embedding is dense. With
    `num_fields` they are that many linear maps of the whole input instead, and the whole input is dense; a tower on a
    backbone, whose input has no parts, needs that.
    """

    bottom_mlp: MlpConfig = MlpConfig(layer_sizes=(128, 32), final_activation=True)
    """Its last layer is as wide as a field's vector."""
    top_mlp: MlpConfig = MlpConfig(layer_sizes=(256,), final_activation=True)
    num_fields: PositiveInt | None = None


class NetworkConfig(BaseConfig):
    """A network from one vector to another: exactly one architecture."""

    mlp_config: MlpConfig | None = one_of("architecture")
    dcn_config: DcnConfig | None = one_of("architecture")
    dlrm_config: DlrmConfig | None = one_of("architecture")
    mask_net_config: MaskNetConfig | None = one_of("architecture")

    @property
    def last_mlp(self) -> MlpConfig | None:
        """The MLP that the network ends in, if it ends in one."""
        for network in (self.dcn_config, self.mask_net_config):
            if network is not None:
                return network.mlp
        return self.dlrm_config.top_mlp if self.dlrm_config else self.mlp_config


EXPERT = NetworkConfig(mlp_config=MlpConfig(layer_sizes=(256, 128), final_activation=True))


class MmoeConfig(BaseConfig):
    """Experts that all tasks share, each task with a gate of its own over them."""

    num_experts: PositiveInt = 4
    expert: NetworkConfig = EXPERT


class PleConfig(BaseConfig):
    """Levels of experts, some shared and some a task's own; each task has a gate over the shared and its own."""

    num_levels: PositiveInt = 1
    shared_experts: PositiveInt = 2
    task_experts: PositiveInt = 1
    expert: NetworkConfig = EXPERT


class BackboneConfig(NetworkConfig):
    """What towers share: one network, or a mixture of experts that gives each task an output of its own."""

    mmoe_config: MmoeConfig | None = one_of("architecture")
    ple_config: PleConfig | None = one_of("architecture")
    affine_map: None = None
    pos_weight: PositiveFloat | None = None
    """The published backbone has the fields of a task, though it has no loss: only 1 is allowed."""

    @model_validator(mode="after")
    def _has_no_loss(self) -> Self:
        if self.pos_weight not in (None, 1):
            raise ValueError(f"pos_weight: found {self.pos_weight} for a backbone, which has no loss; allowed is 1")
        return self

    @property
    def has_experts(self) -> bool:
        """Whether each task gets an output of its own."""
        return self.mmoe_config is not None or self.ple_config is not None
