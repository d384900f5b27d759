"""Engagement logs as they come in, example datasets as the ranker reads them."""
