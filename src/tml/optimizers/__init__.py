"""Learning rates by part of a model: schedules, parameter groups, and optimizers built of them."""

from tml.optimizers.builders import build
from tml.optimizers.config import AverageConfig, OptimizerConfig
from tml.optimizers.grouped import GroupedOptimizer
from tml.optimizers.scheduler import RateScheduler
from tml.optimizers.schedules import LearningRate

__all__ = ["AverageConfig", "GroupedOptimizer", "LearningRate", "OptimizerConfig", "RateScheduler", "build"]
