"""How a group of parameters learns: its algorithm, learning rate, weight decay and clipping.

Adam (Kingma & Ba 2015, arXiv 1412.6980), AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), Adagrad (Duchi et al.
2011), stochastic gradient descent and Muon (Jordan et al. 2024) as torch.optim has them; row-wise Adagrad as FBGEMM has
it. Rates are schedules apart from the algorithm, so that groups with one algorithm share one kernel.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from tml.core.config import BaseConfig, one_of
from tml.optimizers.schedules import LearningRate

Decay = Annotated[float, Field(ge=0, lt=1)]


class FusedConfig(BaseConfig):
    """An algorithm of which torch has a fused kernel.

    Attributes:
        fused: takes that kernel where torch has it on the device. On a CPU it rounds otherwise than torch's plain loop,
            by the last bit; false takes the loop, several times slower, to compare with a training that had it.
    """

    fused: bool = True


class AdamConfig(FusedConfig):
    """Adam; weight decay joins the gradient. Tables with sparse gradients get its lazy form: rows of a batch move."""

    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: PositiveFloat = 1e-7


class AdamWConfig(FusedConfig):
    """Adam whose weight decay is apart from the gradient: weights shrink by rate · decay a step."""

    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: PositiveFloat = 1e-7


class AdagradConfig(FusedConfig):
    """Adagrad: each weight's rate falls with the squares of the gradients that it has had."""

    initial_accumulator_value: NonNegativeFloat = 0.0
    epsilon: PositiveFloat = 1e-10


class RowwiseAdagradConfig(BaseConfig):
    """Adagrad with one accumulator a row, for embedding tables: the mean of the squares of a row's gradient."""

    epsilon: PositiveFloat = 1e-8


class SgdConfig(FusedConfig):
    """Stochastic gradient descent; a momentum needs dense gradients."""

    momentum: Decay = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: found true without momentum, allowed is a momentum above 0")
        return self


class MuonConfig(BaseConfig):
    """Muon for a group's matrices: momentum made orthogonal by Newton-Schulz steps; `others` for all else.

    Embedding tables, and weights with one row or column, such as a tower's last, are no matrices in this sense.

    Attributes:
        adjust_learning_rate: `match_rms_adamw` scales the update to the size of AdamW's, so that one rate serves both;
            `original` scales by the square root of rows / columns.
        others: AdamW of the group's other parameters, at the same rate and decay.
    """

    momentum: Decay = 0.95
    nesterov: bool = True
    newton_schulz_steps: Annotated[int, Field(ge=1, lt=100)] = 5
    epsilon: PositiveFloat = 1e-7
    adjust_learning_rate: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    others: AdamWConfig = AdamWConfig()


Algorithm = AdamConfig | AdamWConfig | AdagradConfig | RowwiseAdagradConfig | SgdConfig | MuonConfig

ALGORITHMS = ("adam", "adamw", "adagrad", "rowwise_adagrad", "sgd", "muon")
"""The fields that choose an algorithm."""


class GroupConfig(BaseConfig):
    """What one group has of its own; what is left out is as for the other groups.

    Attributes:
        weight_decay: a schedule of the same kinds as a learning rate's; a bare number is constant.
        no_weight_decay: what is left out of it: `biases` (all vectors outside normalisations), `norms`, `embeddings`,
            or module paths.
        clip_gradient_norm: where the norm of the group's gradient is larger, it is scaled down to this.
    """

    adam: AdamConfig | None = one_of("algorithm", required=False)
    adamw: AdamWConfig | None = one_of("algorithm", required=False)
    adagrad: AdagradConfig | None = one_of("algorithm", required=False)
    rowwise_adagrad: RowwiseAdagradConfig | None = one_of("algorithm", required=False)
    sgd: SgdConfig | None = one_of("algorithm", required=False)
    muon: MuonConfig | None = one_of("algorithm", required=False)
    weight_decay: LearningRate | None = None
    no_weight_decay: tuple[str, ...] | None = None
    clip_gradient_norm: PositiveFloat | None = None

    @property
    def chosen(self) -> dict[str, Algorithm]:
        """The algorithm that is set, by the name of its field; empty where none is."""
        return {name: value for name in ALGORITHMS if (value := getattr(self, name)) is not None}


class OptimizerConfig(GroupConfig):
    """All that a group needs: exactly one algorithm, and a learning rate.

    Example:
        >>> OptimizerConfig(sgd={}, learning_rate=0.01).algorithm
        SgdConfig(momentum=0.0, nesterov=False)
    """

    learning_rate: LearningRate
    weight_decay: LearningRate = LearningRate(constant=0.0)
    no_weight_decay: tuple[str, ...] = ("biases", "norms")

    @model_validator(mode="after")
    def _has_an_algorithm(self) -> Self:
        if not self.chosen:
            raise ValueError(f"exactly one of {', '.join(ALGORITHMS)} is allowed, found none of them")
        return self

    @property
    def algorithm(self) -> Algorithm:
        """The one algorithm that is set."""
        (algorithm,) = self.chosen.values()
        return algorithm

    def but(self, own: GroupConfig) -> Self:
        """This config with what a group has of its own put in the place of it."""
        given = {name: value for name in type(own).model_fields if (value := getattr(own, name)) is not None}
        if own.chosen:
            given = dict.fromkeys(ALGORITHMS) | given
        return self.model_copy(update=given)


class AverageConfig(BaseConfig):
    """An exponential moving average of the weights, for evaluation and export; see `averaging`.

    Attributes:
        decay: what the average keeps a step; less in the first steps.
    """

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
