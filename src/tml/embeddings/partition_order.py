"""The order in which partitions are brought into memory, so that every two of them are there together once.

An edge needs the partitions of both of its ends. With `resident` of n partitions in memory, each swap of one partition
makes new pairs with the `resident` - 1 others; n² / 2 pairs need at least about n² / (2 · (resident - 1)) swaps. The
order here comes near that: all places but the last are kept while every partition outside takes the last one; then
those that were kept have met all others, and leave for good (Marius's BETA order, Mohoney et al. 2021,
arXiv 2101.08358). Which partition plays which part is drawn anew for each epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Pair = tuple[int, int]


@dataclass(frozen=True)
class Stage:
    """Partitions that are in memory together, and the pairs of (head's, tail's) partition that are trained then."""

    resident: tuple[int, ...]
    pairs: tuple[Pair, ...]


def stages(count: int, resident: int, rng: np.random.Generator) -> list[Stage]:
    """The stages of one epoch.

    Args:
        count: the number of partitions.
        resident: how many are in memory, at least 2.
        rng: draws which partition plays which part.

    Returns:
        Stages that have each of the count² pairs exactly once; all but the first bring in one partition.

    Example:
        >>> [stage.resident for stage in stages(3, 2, np.random.default_rng(1))]
        [(0, 1), (0, 2), (1, 2)]
    """
    order = rng.permutation(count).tolist()
    done: set[Pair] = set()
    found = []
    for held in _held(order[:resident], order[resident:]):
        pairs = tuple(pair for p in held for q in held for pair in [(p, q)] if pair not in done)
        done.update(pairs)
        found.append(Stage(held, pairs))
    return found


def _held(held: list[int], outside: list[int]) -> Iterator[tuple[int, ...]]:
    yield tuple(held)
    while outside:
        for place in range(len(outside)):
            outside[place], held[-1] = held[-1], outside[place]
            yield tuple(held)
        for place in range(min(len(held) - 1, len(outside))):
            held[place] = outside.pop(0)
            yield tuple(held)
