"""The machine-learning half of a home timeline: from an engagement log to a ranked timeline."""

__version__ = "0.1.0"
