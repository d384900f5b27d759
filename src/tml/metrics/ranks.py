"""What all ranks have collected, as one: for metrics whose examples are shared out among processes."""

from typing import Any, Protocol, Self, TypeVar

import torch.distributed


class Mergeable(Protocol):
    """A metric that can take over what another has collected."""

    def merge(self, other: Any) -> Self: ...


M = TypeVar("M", bound=Mergeable)


def merged_over_ranks(metrics: M) -> M:
    """The metrics of all ranks merged, in the order of ranks and the same on each; alone, the metrics themselves.

    Every rank of the process group must call it. What each has collected is sent as it is, so do it once at the end.

    Example:
        >>> from tml.metrics.binary import BinaryMetrics
        >>> merged_over_ranks(BinaryMetrics()).compute().examples
        0
    """
    if not torch.distributed.is_initialized():
        return metrics
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, metrics)
    first, *others = parts
    for other in others:
        first.merge(other)
    merged: M = first
    return merged
