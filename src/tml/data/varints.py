"""Many varints at once: seven bits of a number in each byte, lowest first, the eighth bit says that more follow.

Protocol buffers write integers so, negative ones as 64-bit two's complement in ten bytes. Nearly all of an example's
integers are below 128, one byte each, so decoding makes one pass for the first bytes of all numbers, one for the
second bytes of those that have one, and so on.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

LONGEST = 10
"""Bytes of the longest varint, that of a negative number."""

Int64s = np.ndarray[Any, np.dtype[np.int64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def varint(value: int) -> bytes:
    """One number from 0 to 2^64 - 1 as a varint.

    Example:
        >>> varint(300)
        b'\\xac\\x02'
    """
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(payloads: Sequence[bytes]) -> tuple[Int64s, Int64s, Int64s]:
    """Decode packed varints.

    Returns:
        All values of all payloads, int64; how many each payload has, (payloads,); and the numbers of the payloads
        that end within a varint or have one of more than ten bytes, whose values mean nothing.
    """
    data = np.frombuffer(b"".join(payloads), np.uint8)
    bounds = np.zeros(len(payloads) + 1, np.int64)
    np.cumsum([len(payload) for payload in payloads], out=bounds[1:])
    filled = np.flatnonzero(bounds[1:] > bounds[:-1])
    open_ended = filled[data[bounds[1:][filled] - 1] > 127]
    if len(open_ended):  # closed here, so that it does not run on into the next payload
        data = data.copy()
        data[bounds[1:][open_ended] - 1] &= 127
    ends = np.flatnonzero(data < 128)
    counts = np.diff(np.searchsorted(ends, bounds))
    values = data[ends].astype(np.uint64)
    longer = np.flatnonzero(data[ends - 1] > 127) if len(ends) else ends
    starts = np.where(longer > 0, ends[longer - 1] + 1, 0)
    too_long = np.searchsorted(bounds, starts[ends[longer] - starts >= LONGEST], side="right") - 1
    values[longer] = 0
    for place in range(LONGEST):
        values[longer] |= (data[starts + place] & 127).astype(np.uint64) << np.uint64(7 * place)
        going_on = ends[longer] > starts + place
        longer, starts = longer[going_on], starts[going_on]
        if not len(longer):
            break
    return values.view(np.int64), counts, np.union1d(too_long, open_ended)


def encode(values: Int64s) -> tuple[bytes, Int64s]:
    """Encode int64 values of any shape, in C order.

    Returns:
        The varints one after the other, and where each begins, (values + 1,).
    """
    numbers = np.ascontiguousarray(values).reshape(-1).view(np.uint64)
    if not len(numbers) or numbers.max() < 128:
        return numbers.astype(np.uint8).tobytes(), np.arange(len(numbers) + 1)
    sizes = np.ones(len(numbers), np.int64)
    for place in range(1, LONGEST):
        sizes += numbers >= np.uint64(1 << 7 * place)
    starts = np.zeros(len(numbers) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    out = np.empty(starts[-1], np.uint8)
    rest, at = numbers, starts[:-1]
    while len(rest):
        more = rest > 127
        out[at] = (rest & np.uint64(127)).astype(np.uint8) | (more.astype(np.uint8) << 7)
        rest, at = rest[more] >> np.uint64(7), at[more] + 1
    return out.tobytes(), starts
