"""Which algorithm updates a group of parameters, and at which learning rate.

Adam (Kingma & Ba 2015, arXiv 1412.6980), Adagrad (Duchi et al. 2011) and stochastic gradient descent, as torch.optim
has them. The learning rate is a schedule apart from the algorithm, so that groups with one algorithm share one kernel.
"""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat

from tml.core.config import BaseConfig, one_of
from tml.optimizers.schedules import LearningRate

Decay = Annotated[float, Field(ge=0, lt=1)]


class AdamConfig(BaseConfig):
    """Adam; tables with sparse gradients get its lazy form, which moves only the rows of a batch."""

    beta_1: Decay = 0.9
    beta_2: Decay = 0.999
    epsilon: PositiveFloat = 1e-7


class AdagradConfig(BaseConfig):
    """Adagrad: each weight's rate falls with the squares of the gradients that it has had."""

    initial_accumulator_value: NonNegativeFloat = 0.0
    epsilon: PositiveFloat = 1e-10


class RowwiseAdagradConfig(BaseConfig):
    """Adagrad with one rate for each row of an embedding table, from the mean square of the row's gradients."""

    epsilon: PositiveFloat = 1e-10


class SgdConfig(BaseConfig):
    """Stochastic gradient descent; a momentum needs dense gradients."""

    momentum: Decay = 0.0


Algorithm = AdamConfig | AdagradConfig | RowwiseAdagradConfig | SgdConfig


class OptimizerConfig(BaseConfig):
    """Exactly one algorithm and its learning rate.

    Example:
        >>> OptimizerConfig(sgd={}, learning_rate={"constant": 0.01}).algorithm
        SgdConfig(momentum=0.0)
    """

    learning_rate: LearningRate
    adam: AdamConfig | None = one_of("algorithm")
    adagrad: AdagradConfig | None = one_of("algorithm")
    rowwise_adagrad: RowwiseAdagradConfig | None = one_of("algorithm")
    sgd: SgdConfig | None = one_of("algorithm")

    @property
    def algorithm(self) -> Algorithm:
        """The one algorithm that is set."""
        algorithm = self.adam or self.adagrad or self.rowwise_adagrad or self.sgd
        assert algorithm is not None  # exactly one is set
        return algorithm
