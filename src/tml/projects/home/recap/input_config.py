"""How a batch's columns become the Heavy Ranker's input, as configs: featurization, embeddings, position."""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from tml.core.config import BaseConfig, one_of
from tml.projects.home.recap.network_config import BatchNormConfig


class InputBatchNormConfig(BatchNormConfig):
    """Batch normalisation of the continuous features."""

    affine: bool = True
    momentum: float = Field(default=0.01, gt=0, lt=1)


class LayerNormConfig(BaseConfig):
    """Layer normalisation over a row."""

    epsilon: NonNegativeFloat = 0.0
    """Added to the variance of a row; see `featurize` for what 0 means on a row of equal values."""
    axis: Literal[-1] = -1
    """The published field; there is one axis to choose from."""
    scale: bool = True
    """Whether to learn a scale per column."""
    center: bool = True
    """Whether to learn a shift per column."""

    @model_validator(mode="after")
    def _shifts_what_it_scales(self) -> Self:
        if self.center and not self.scale:
            raise ValueError("center: found true with scale false, allowed is scale alone, both or neither")
        return self


class DoubleNormLogConfig(BaseConfig):
    """Signed logarithm, batch norm, clip, then layer norm together with the binary features."""

    batch_norm_config: InputBatchNormConfig = InputBatchNormConfig()
    clip_magnitude: PositiveFloat = 5.0
    layer_norm_config: LayerNormConfig = LayerNormConfig()


class Log1pAbsConfig(BaseConfig):
    """The signed logarithm sign(x)·log(1 + |x|) alone."""


class ClipLog1pAbsConfig(BaseConfig):
    """The signed logarithm, clipped."""

    clip_magnitude: PositiveFloat = 10.0
    """In logarithms: 10 is reached at 22,025."""


class ZScoreLogConfig(BaseConfig):
    """The signed logarithm less its mean over the training examples, by its deviation, clipped."""

    clip_magnitude: PositiveFloat = 5.0
    """In standard deviations."""
    smallest_deviation: PositiveFloat = 1e-3
    """What a smaller deviation is taken for: a column that hardly varies in training would give huge numbers."""


class FeaturizationConfig(BaseConfig):
    """How continuous and binary features become the network's input: exactly one way."""

    log1p_abs_config: Log1pAbsConfig | None = one_of("featurization")
    clip_log1p_abs_config: ClipLog1pAbsConfig | None = one_of("featurization")
    z_score_log_config: ZScoreLogConfig | None = one_of("featurization")
    double_norm_log_config: DoubleNormLogConfig | None = one_of("featurization")
    feature_names_to_concat: tuple[Literal["binary"], ...] = Field(default=("binary",), max_length=1)
    """What joins the continuous features as it is; an empty list leaves the binary features out."""


class DimensionRuleConfig(BaseConfig):
    """The width of a value's vector from the number n of values: factor · n^power, rounded up, at most `largest`."""

    factor: PositiveFloat = 2.0
    power: float = Field(default=0.25, ge=0, le=1)
    largest: PositiveInt = 32


class SmallTableConfig(BaseConfig):
    """A trained vector for each value of one discrete column."""

    index: NonNegativeInt
    """Which element of the discrete vector."""
    name: str = ""
    """For people."""
    num_embeddings: PositiveInt | None = None
    """Values, of which 0 and all beyond them are the unknown one; null takes the dataset's number."""
    embedding_dim: PositiveInt | None = None
    """Null takes that of all columns."""


class SmallEmbeddingsConfig(BaseConfig):
    """A trained vector for each value of each discrete column."""

    embedding_dim: PositiveInt = 8
    dimension_rule: DimensionRuleConfig | None = None
    """Decides instead of `embedding_dim`, column by column."""
    tables: tuple[SmallTableConfig, ...] | None = Field(default=None, min_length=1)
    """Null embeds every discrete column; a list only those in it."""

    @model_validator(mode="after")
    def _one_table_a_column(self) -> Self:
        indices = [table.index for table in self.tables or ()]
        twice = sorted({index for index in indices if indices.count(index) > 1})
        if twice:
            raise ValueError(f"tables: found the index {twice[0]} twice, allowed is one table a column")
        return self


class LargeTableConfig(BaseConfig):
    """Trained vectors for the ids in a column, found by hash: ids need not be listed, and some share a vector."""

    name: str = Field(min_length=1)
    key: str | None = None
    """The column of the examples that has the ids; null is the table's name."""
    num_embeddings: PositiveInt = Field(ge=2)
    """Rows: with as many ids as rows, over a third of the ids share one."""
    embedding_dim: PositiveInt = 16
    min_count: NonNegativeInt = 0
    """Ids seen less often in training share one vector, that of the unknown; 1 gives it to ids that were never seen."""
    drop_probability: float = Field(default=0.0, ge=0, lt=1)
    """How often in training an id is taken for an unknown one."""

    @property
    def column(self) -> str:
        """The column of the examples that has the ids."""
        return self.key or self.name


class LargeEmbeddingsConfig(BaseConfig):
    """Tables of trained vectors for ids; their gradients are sparse by row."""

    tables: tuple[LargeTableConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [table.name for table in self.tables]
        if len(set(names)) < len(names):
            raise ValueError(f"tables: found the names {', '.join(names)}, allowed are distinct ones")
        return self


class SequenceAttentionConfig(BaseConfig):
    """Attention of the post that is ranked over what the viewer was shown last; the dataset has to have that."""

    num_embeddings: PositiveInt = Field(default=20_000, ge=2)
    """Rows of the table of posts, found by hash."""
    nodes: str | None = None
    """The name of a file of embeddings with vectors of posts, as `post`, which then join the trained ones."""
    embedding_dim: PositiveInt = 16
    num_heads: PositiveInt = 4
    drop_probability: float = Field(default=0.0, ge=0, lt=1)
    """How often in training a post is taken for an unknown one."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.embedding_dim % self.num_heads:
            raise ValueError(
                f"num_heads: found {self.num_heads}, allowed are divisors of the embedding_dim {self.embedding_dim}"
            )
        return self


class PositionDebiasConfig(BaseConfig):
    """The position where a post was served, as an input in training that a ranking does without.

    In training it is dropped at random, so that the model knows what to say without it; wherever it is not known it
    counts as dropped. The continuous feature `position`, if there is one, is then not read.
    """

    max_position: PositiveInt = 256
    """This position and all after it have one vector."""
    num_dims: PositiveInt = 64
    drop_probability: float = Field(default=0.5, ge=0, le=1)
    position_feature_index: NonNegativeInt | None = None
    """The element of the discrete vector that holds the position; null reads the column `position`."""


class StratifierConfig(BaseConfig):
    """A segment of the examples that is evaluated apart: those with one value of a discrete feature, or each value."""

    name: str = Field(min_length=1)
    index: NonNegativeInt | None = one_of("feature")
    """Which element of the discrete vector."""
    feature: str | None = one_of("feature")
    """Its name."""
    value: int | None = None
    """Null makes a segment of every value."""
