"""Learning rates by part of a model: schedules, parameter groups, and optimizers built of them."""
