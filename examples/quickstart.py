from tml.projects.home.recap.optimizer.optimizer import build_optimizer
from my_recommendation_algorithm import RecommendationAlgorithm

algorithm = RecommendationAlgorithm()
optimizer = build_optimizer(algorithm)
optimizer.train()
