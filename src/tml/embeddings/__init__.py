"""Embedding tables: one vector for each of many ids, trained by the rows a batch touches, kept as Parquet."""
