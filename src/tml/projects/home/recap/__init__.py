"""The Heavy Ranker: one model, one tower per engagement, the probabilities behind a timeline's score."""
