"""Readers of the files of a table, one a format: each fills a raw table and says what kinds of values it found."""
