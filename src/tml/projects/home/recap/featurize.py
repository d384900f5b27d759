"""From a batch's columns to one vector an example.

Counts and rates span many orders of magnitude; every way to read them begins with their signed logarithm. It may be all
(**log1p**), be clipped (**clipped log1p**), or be taken less its mean in training and by its deviation (**z-score
log**), with the statistics of the dataset's `schema.json`. **Double norm log**, as published, has two norms after it
(`double_norm_log`).

Each pre-trained embedding gets a layer norm of its own, be it looked up on the way or a table that is trained on; each
discrete column a small table of trained vectors, whose row 0 stands for an unknown value and for every index outside
the table; ids get vectors of large tables. All of it is concatenated.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tml.core.bfloat16 import in_bfloat16
from tml.core.errors import ConfigError, DataError
from tml.embeddings.local import sparse_table
from tml.projects.home.recap.config import (
    FeaturizationConfig,
    InputShapes,
    ModelConfig,
    PositionDebiasConfig,
    ZScoreLogConfig,
)
from tml.projects.home.recap.discrete import build_small_embeddings
from tml.projects.home.recap.double_norm_log import DoubleNormLog, signed_log
from tml.projects.home.recap.large_embeddings import LargeEmbeddings, read_rows
from tml.projects.home.recap.position import PositionDebias
from tml.projects.home.recap.sequence import SequenceAttention


class SignedLog(nn.Module):
    """Continuous (batch, C) and binary (batch, B) features to (batch, C + B), the logarithm clipped or not."""

    def __init__(self, clip_magnitude: float | None = None) -> None:
        super().__init__()
        self.clip = clip_magnitude

    def forward(self, continuous: Tensor, binary: Tensor) -> Tensor:
        """Continuous may hold NaN and infinities, which count as 0."""
        logs = signed_log(continuous)
        if self.clip is not None:
            logs = logs.clamp(-self.clip, self.clip)
        return torch.cat([logs, binary], dim=1)


class ZScoreLog(nn.Module):
    """Continuous (batch, C) and binary (batch, B) features to (batch, C + B), by the training examples' statistics."""

    mean: Tensor
    scale: Tensor

    def __init__(self, config: ZScoreLogConfig, shapes: InputShapes) -> None:
        super().__init__()
        if not shapes.log_mean or not shapes.log_deviation:
            raise ConfigError(
                "z_score_log_config: needs the mean and deviation of the continuous features, which this dataset lacks"
            )
        self.clip = config.clip_magnitude
        deviation = torch.tensor(shapes.log_deviation).clamp(min=config.smallest_deviation)
        self.register_buffer("mean", torch.tensor(shapes.log_mean), persistent=False)
        self.register_buffer("scale", 1 / deviation, persistent=False)

    def forward(self, continuous: Tensor, binary: Tensor) -> Tensor:
        """Continuous may hold NaN and infinities, which count as 0."""
        scores = (signed_log(continuous) - self.mean) * self.scale
        return torch.cat([scores.clamp(-self.clip, self.clip), binary], dim=1)


def build_dense(config: FeaturizationConfig, shapes: InputShapes) -> nn.Module:
    """The module for the continuous and the binary features.

    Raises:
        ConfigError: a z-score without statistics.
    """
    binary = shapes.binary if config.feature_names_to_concat else 0
    if config.double_norm_log_config is not None:
        return DoubleNormLog(config.double_norm_log_config, shapes.continuous, binary)
    if config.z_score_log_config is not None:
        return ZScoreLog(config.z_score_log_config, shapes)
    return SignedLog(config.clip_log1p_abs_config.clip_magnitude if config.clip_log1p_abs_config else None)


class Featurization(nn.Module):
    """A batch to (batch, `out_width`): what is dense, then the embeddings.

    Those are, in order, the embeddings of `shapes`, small ones of the discrete columns, large ones of ids, what the
    viewer was shown last, and the position's.

    Attributes:
        out_width: of the whole.
        fields: the widths of the embeddings: the last parts of the output.

    Raises:
        ConfigError: the config does not fit the dataset.
        DataError: when a batch lacks an input or has it in another width.
    """

    kept: Tensor | None

    def __init__(self, config: ModelConfig, shapes: InputShapes, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dense = build_dense(config.featurization_config, shapes)
        self.reads_binary = bool(config.featurization_config.feature_names_to_concat)
        self.embedding_norms = nn.ModuleDict({name: nn.LayerNorm(width) for name, width in shapes.embeddings.items()})
        self.trained = nn.ModuleDict(
            {
                name: sparse_table(rows, shapes.embeddings[name], generator or torch.default_generator)
                for name, rows in shapes.trained.items()
            }
        )
        widths = {name: width for name, width in shapes.embeddings.items() if name not in self.trained}
        self.widths = {"continuous": shapes.continuous, "binary": shapes.binary, **widths}
        self.columns = [*shapes.trained]
        self.fields = tuple(shapes.embeddings.values())
        self.discrete: nn.Module | None = None
        if config.small_embeddings and shapes.discrete:
            debias = config.position_debias_config
            without = debias.position_feature_index if debias else None
            small, fields = build_small_embeddings(config.small_embeddings, shapes.discrete, generator, without)
            self.discrete = small
            self.widths["discrete"] = len(shapes.discrete)
            self.fields += fields
        self.large: LargeEmbeddings | None = None
        if config.large_embeddings:
            self.large = LargeEmbeddings(config.large_embeddings, generator)
            self.columns += self.large.columns
            self.fields += self.large.fields
        self.sequence: SequenceAttention | None = None
        if config.sequence_config:
            if not shapes.sequence_length:
                raise ConfigError("sequence_config: found one, but the dataset has no sequences")
            self.sequence = SequenceAttention(
                config.sequence_config, shapes.sequence_engagements, shapes.sequence_vectors, generator
            )
            self.columns += self.sequence.columns
            self.widths |= dict.fromkeys(self.sequence.lists, shapes.sequence_length)
            self.fields += self.sequence.fields
        self.position: PositionDebias | None = None
        self.register_buffer("kept", None, persistent=False)
        if config.position_debias_config:
            self._add_position(config.position_debias_config, shapes, generator)
        self.out_width = shapes.continuous + (shapes.binary if self.reads_binary else 0) + sum(self.fields)
        self.rounds = False

    def round(self) -> None:
        """From now on give what the model's numbers are: for a network that rounds its inputs before all else."""
        self.rounds = True
        if isinstance(self.dense, DoubleNormLog):
            self.dense.rounds = True

    def _add_position(
        self, config: PositionDebiasConfig, shapes: InputShapes, generator: torch.Generator | None
    ) -> None:
        self.position = PositionDebias(config, generator)
        self.fields += (self.position.out_width,)
        index = config.position_feature_index
        if index is not None:
            if index >= len(shapes.discrete):
                raise ConfigError(
                    f"position_feature_index: found {index}, allowed is less than the {len(shapes.discrete)} "
                    "discrete columns"
                )
            self.widths["discrete"] = len(shapes.discrete)
        found = shapes.find("position")
        if found is not None and found[0] == "continuous":
            # The position is not to come in by another way.
            kept = torch.ones(shapes.continuous)
            kept[found[1]] = 0
            self.kept = kept

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The batch's inputs as one tensor (batch, out_width)."""
        self._check(batch)
        continuous, binary = batch["continuous"], batch["binary"]
        if self.kept is not None:
            continuous = continuous * self.kept
        parts = [self.dense(continuous, binary if self.reads_binary else binary[:, :0])]
        for name, norm in self.embedding_norms.items():
            parts.append(norm(self._vectors(name, batch[name])))
        if self.discrete is not None:
            parts.append(self.discrete(batch["discrete"]))
        if self.large is not None:
            parts.append(self.large(batch))
        if self.sequence is not None:
            parts.append(self.sequence(batch))
        if self.position is not None:
            parts.append(self.position(batch))
        if self.rounds and in_bfloat16(continuous):
            parts = [part.bfloat16() for part in parts]
        return torch.cat(parts, dim=1)

    def _vectors(self, name: str, given: Tensor) -> Tensor:
        """The vectors of an embedding: those in the batch, or the rows that it gives of a table that is trained."""
        if name not in self.trained:
            return given
        table = self.trained[name]
        assert isinstance(table, nn.Embedding)
        vectors: Tensor = read_rows(table, given)
        return vectors

    @torch.no_grad()
    def initialise(self, name: str, vectors: Tensor) -> None:
        """Start a trained embedding at vectors of (rows, width), of which row 0 is the unknown id's."""
        table = self.trained[name].weight
        assert isinstance(table, Tensor)
        if vectors.shape != table.shape:
            raise DataError(f"{name}: found vectors of {tuple(vectors.shape)}, the model needs {tuple(table.shape)}")
        table.copy_(vectors)

    def rows_of(self, name: str) -> int | None:
        """How many rows a trained embedding has; None where it is not trained."""
        return len(self.trained[name].weight) if name in self.trained else None  # type: ignore[arg-type]

    def _check(self, batch: Mapping[str, Tensor]) -> None:
        for name in (*self.widths, *self.columns):
            if name not in batch:
                needed = ", ".join((*self.widths, *self.columns))
                raise DataError(f"batch: found no {name!r}, the model needs {needed}")
            shape = (self.widths[name],) if name in self.widths else ()
            if batch[name].shape[1:] != shape:
                found = tuple(batch[name].shape)
                raise DataError(f"batch: {name}: found the shape {found}, the model needs {_shape(shape)}")


def _shape(rest: tuple[int, ...]) -> str:
    return f"(batch, {rest[0]})" if rest else "(batch,)"
