"""Norms of gradients, by parameter group.

A norm is taken of pieces of a few thousand elements and then of the pieces' norms. On a CPU, torch's norm of a large
tensor at once is off in the third digit (48 million float32 elements) and takes twice as long.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

_PIECE = 4096


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients that there are, of a sparse one its values; sparse gradients are coalesced in place."""
    gradients = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            parameter.grad = gradient = gradient.coalesce()
            gradient = gradient.values()
        gradients.append(gradient)
    return gradients


def norm(gradients: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together, a scalar tensor of at least float32 on the first one's device."""
    norms: list[Tensor] = []
    whole: list[Tensor] = []
    for gradient in gradients:
        if gradient.device.type != "cpu" or gradient.numel() < 2 * _PIECE:
            whole.append(gradient)
            continue
        flat = gradient.reshape(-1)
        full = len(flat) - len(flat) % _PIECE
        norms.append(torch.linalg.vector_norm(flat[:full].view(-1, _PIECE), dim=1, dtype=_accurate(flat)))
        whole.append(flat[full:])
    norms += [torch.linalg.vector_norm(gradient, dtype=_accurate(gradient)).reshape(1) for gradient in whole]
    if not norms:
        return torch.zeros(())
    whole_norm: Tensor = torch.linalg.vector_norm(torch.cat([value.to(norms[0]) for value in norms]))
    return whole_norm


def _accurate(gradient: Tensor) -> torch.dtype:
    return torch.promote_types(gradient.dtype, torch.float32)


def norms_by_group(groups: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The norm of each group's gradient; groups of one name are one group, a group without name is its number."""
    parts: dict[str, list[Tensor]] = {}
    for number, group in enumerate(groups):
        parts.setdefault(group.get("name", str(number)), []).append(norm(gradients_of(group["params"])))
    if not parts:
        return {}
    # One transfer from the device for all of them.
    first = next(iter(parts.values()))[0]
    values = torch.stack([norm(norms).to(first) for norms in parts.values()]).tolist()
    return dict(zip(parts, values, strict=True))


def total(norms: Mapping[str, float]) -> float:
    """The norm of all groups together."""
    return math.hypot(*norms.values())
