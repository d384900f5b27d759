"""`build_optimizer` in a training loop of one's own: rates for towers and backbone, and others for the embeddings.

The config is the published one's `optimizer` section, with three of its towers.
"""

import io

import torch
import yaml
from my_recommendation_algorithm import TASKS, RecommendationAlgorithm

from tml.optimizers.config import OptimizerConfig
from tml.projects.home.recap.optimizer import RecapOptimizerConfig, build_optimizer

OPTIMIZER = """
adam: {beta_1: 0.95}
multi_task_learning_rates:
  backbone_learning_rate:
    linear_ramp_to_constant: {learning_rate: 1.0e-4, num_ramp_steps: 1000}
  tower_learning_rates:
    recap.engagement.is_favorited:
      linear_ramp_to_constant: {learning_rate: 8.0e-4, num_ramp_steps: 5000}
    recap.engagement.is_replied:
      linear_ramp_to_constant: {learning_rate: 1.0e-3, num_ramp_steps: 1000}
    recap.engagement.is_replied_reply_engaged_by_author:
      linear_ramp_to_constant: {learning_rate: 1.0e-4, num_ramp_steps: 1000}
"""
EMBEDDINGS = "{rowwise_adagrad: {}, learning_rate: {constant: 0.1}}"

# Two values, as published: optimizer and scheduler.
model = RecommendationAlgorithm()
optimizer_config = RecapOptimizerConfig.model_validate(yaml.safe_load(OPTIMIZER))
emb_optimizer_config = OptimizerConfig.model_validate(yaml.safe_load(EMBEDDINGS))
optimizer, scheduler = build_optimizer(model, optimizer_config, emb_optimizer_config)
for step, batch in enumerate(model.training_batches(), start=1):
    optimizer.zero_grad()
    loss, outputs = model(batch)
    loss.backward()
    optimizer.step()
    scheduler.step()
    if step % 500 == 0:
        rates = ", ".join(f"{group['name']} {group['lr']:.2g}" for group in optimizer.param_groups)
        print(f"step {step}: loss {loss.item():.3f}; rates: {rates}")

# One value, without a config: the published rates, found by the names of the towers.
built = build_optimizer(RecommendationAlgorithm())
assert [group["name"] for group in built.optimizer.param_groups] == ["backbone", *TASKS]

# A state goes by parameter names, and the schedule goes on where it was.
file = io.BytesIO()
torch.save([part.state_dict() for part in (model, optimizer, scheduler)], file)
file.seek(0)
other = RecommendationAlgorithm()
parts = (other, *build_optimizer(other, optimizer_config, emb_optimizer_config))
for part, state in zip(parts, torch.load(file), strict=True):
    part.load_state_dict(state)
print(f"loaded at step {parts[2].last_epoch}")
