"""Simulated time: whole microseconds since the start of the log, negative before it."""

from datetime import UTC, datetime, timedelta

import numpy as np

from tml.simulator.sampling import Floats, Integers

SECOND = 1_000_000
HOUR = 3_600 * SECOND
DAY = 24 * HOUR


def epoch_microseconds(start: datetime) -> int:
    """Microseconds from 1970 to a time with an offset."""
    return (start - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def hour_of_day(at: Integers, start: datetime) -> Floats:
    """Hours since midnight UTC, with fraction."""
    return (at + epoch_microseconds(start)) % DAY / HOUR


def diurnal(hour: Floats) -> Floats:
    """How lively an hour of the day is, 1 on the mean: most at 20 h, with a lesser height at 8 h, least at 2 h."""
    angle = 2 * np.pi / 24 * (hour - 20)
    return np.maximum(1 + 0.6 * np.cos(angle) + 0.3 * np.cos(2 * angle), 0.05)
