"""The optimizer of the Heavy Ranker."""

from tml.projects.home.recap.optimizer.config import MultiTaskLearningRates, RecapOptimizerConfig
from tml.projects.home.recap.optimizer.optimizer import BuiltOptimizer, RecommendationAlgorithm, build_optimizer

__all__ = [
    "BuiltOptimizer",
    "MultiTaskLearningRates",
    "RecapOptimizerConfig",
    "RecommendationAlgorithm",
    "build_optimizer",
]
