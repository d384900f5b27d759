"""A synthetic social network with known engagement probabilities."""
