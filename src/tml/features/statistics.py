"""What an aggregate says, as arithmetic on running totals: the one place where its value is defined.

A running total of a key is how much of something had happened to it strictly before a moment. `now` is the total
before the impression, `then` the total before the start of the window, so that a window is [served_at - w, served_at).

    count    now - then
    rate     (engagements + s · everyone) / (impressions + s), both counted in the window, s impressions' worth of
             everyone's rate so far, (engagements + 1) / (impressions + 50) of the whole log
    since    seconds since the last one, -1 where there was none
    decayed  Σ 2^(-age / h) over all that happened, h the half-life

The operands are arrays or anything else with + - * / % and **, such as Spark's columns; times are after 1970.

**Decayed counts are sums of integers.** Time is cut into blocks of 16 half-lives, counted from 1970. What happens in a
block weighs 2^(20 + (its time - the block's start) / h), rounded to a whole number, and these weights have running
totals like any other count. A decayed count is then the totals of this block and of the two before it, each scaled to
the impression's time; what is older than 32 half-lives is left out, less than 2^-32 of an event each. Whole numbers
add up to the same bits in any order, so that a total is the same however the log is cut, sorted or stored. A rounded
weight is off by less than a millionth, and a block has room for 2^27 events of a kind and key.
"""

from typing import Any

WEIGHT_BITS = 20
BLOCK_HALF_LIVES = 16
BLOCKS = 3
NEVER = -1.0
"""What `since` says of something that has not happened."""


def count(now: Any, then: Any) -> Any:
    """What happened in a window, from the running totals before its end and before its start."""
    return now - then


def rate(engaged: Any, shown: Any, everyone: Any, smoothing: float) -> Any:
    """Engagements an impression, pulled to everyone's rate as if `smoothing` more impressions had had it."""
    return (engaged + smoothing * everyone) / (shown + smoothing)


def rate_of_everyone(engaged: Any, shown: Any) -> Any:
    """The rate of the whole log so far; one engagement in fifty impressions before anything was seen."""
    return (engaged + 1.0) / (shown + 50.0)


def since(now: Any, last: Any) -> Any:
    """Seconds between two times in microseconds."""
    return (now - last) / 1e6


def block_start(time: Any, half_life: int, back: int = 0) -> Any:
    """The start of the block that a time is in, or of a block further `back`; all in microseconds since 1970."""
    length = half_life * BLOCK_HALF_LIVES
    # The remainder, since SQL has it and has no division that rounds down.
    return time - time % length - back * length


def weight(time: Any, half_life: int) -> Any:
    """What something at `time` adds to the running totals of its block, before rounding."""
    return 2.0 ** (WEIGHT_BITS + (time - block_start(time, half_life)) / half_life)


def decayed(sums: list[Any], now: Any, half_life: int) -> Any:
    """The decayed count at `now` from the sums of weights in its block so far, in the block before, and so on."""
    total: Any = 0.0
    for back, weights in enumerate(sums):
        age = (now - block_start(now, half_life, back)) / half_life
        total = total + weights * 2.0 ** (-WEIGHT_BITS - age)
    return total
