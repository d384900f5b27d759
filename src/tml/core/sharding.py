"""Tensors that lie in pieces on several ranks, made whole for a checkpoint and cut up again.

A checkpoint holds whole tensors, so it is the same whatever the number of ranks and however the pieces are cut. Pieces
are `ShardedTensor`s, as TorchRec has them, and `DTensor`s. The whole tensor is made on the first rank alone and on the
CPU, one piece after the other: no other rank and no accelerator needs room for it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tml.core.errors import listed


def is_sharded(value: Any) -> bool:
    """Whether a value is a tensor of which this rank has only a piece."""
    # Most values are plain, and the import below costs a third of a second.
    if not isinstance(value, Tensor) or type(value) in (Tensor, torch.nn.Parameter):
        return False
    from torch.distributed._shard.sharded_tensor.api import ShardedTensor
    from torch.distributed.tensor import DTensor

    return isinstance(value, ShardedTensor | DTensor)


def full_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state with whole tensors; on other ranks than the first without those that are sharded.

    Every rank calls it, with states of the same names in the same order.
    """
    return {key: full for key, value in state.items() if (full := full_tensor(value)) is not None}


def full_tensor(value: Any) -> Any:
    """The whole of a sharded tensor, on the CPU of the first rank, None on the others; anything else as it is.

    Every rank calls it, in the same order.
    """
    if not is_sharded(value):
        return value
    from torch.distributed.tensor import DTensor

    if isinstance(value, DTensor):
        whole = value.full_tensor().detach()
        return whole.cpu() if torch.distributed.get_rank() == 0 else None
    return _collect(value)


def full_shape(value: Any) -> torch.Size:
    """The shape of the whole of a tensor."""
    # A ShardedTensor answers most other questions with a warning.
    shape: torch.Size = value.metadata().size if hasattr(value, "local_shards") else value.shape
    return shape


def differences(own: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """What keeps saved tensors from fitting one's own, by name: `missing …`, `left over …`, `of another shape …`."""
    sides = {
        "missing": own.keys() - saved.keys(),
        "left over": saved.keys() - own.keys(),
        "of another shape": {name for name in own.keys() & saved.keys() if full_shape(own[name]) != saved[name].shape},
    }
    return [f"{what} {listed(sorted(names))}" for what, names in sides.items() if names]


def copy_into(value: Tensor, full: Tensor) -> None:
    """Copy the pieces that this rank has of a sharded tensor, in place, from the whole of it.

    Raises:
        ValueError: `full` has another shape than the whole of `value`.
    """
    if full.shape != full_shape(value):
        raise ValueError(f"found shape {tuple(full.shape)}, needed is {tuple(full_shape(value))}")
    from torch.distributed.tensor import DTensor, distribute_tensor

    with torch.no_grad():
        if isinstance(value, DTensor):
            here = full.to(value.to_local().device)
            value.copy_(distribute_tensor(here, value.device_mesh, value.placements, src_data_rank=None))
            return
        for shard in value.local_shards():  # type: ignore[attr-defined]
            shard.tensor.copy_(full[_place(shard.metadata)])


def _collect(value: Any) -> Tensor | None:
    distributed, group = torch.distributed, value._process_group
    rank, first = distributed.get_rank(), distributed.get_global_rank(group, 0)
    metadata = value.metadata()
    dtype = metadata.tensor_properties.dtype
    full = torch.empty(metadata.size, dtype=dtype) if rank == first else None
    pieces = {tuple(shard.metadata.shard_offsets): shard.tensor.detach() for shard in value.local_shards()}
    device = value._get_preferred_device()  # where the group's backend sends from
    for shard in metadata.shards_metadata:
        owner = shard.placement.rank()
        if 0 in shard.shard_sizes or rank not in (first, owner):
            continue
        piece = pieces.get(tuple(shard.shard_offsets))
        if owner != first and piece is not None:
            distributed.send(piece.to(device).contiguous(), dst=first, group=group)
        elif full is not None:
            if piece is None:
                piece = torch.empty(shard.shard_sizes, dtype=dtype, device=device)
                distributed.recv(piece, src=owner, group=group)
            full[_place(shard)] = piece.cpu()
    return full


def _place(shard: Any) -> tuple[slice, ...]:
    return tuple(slice(o, o + s) for o, s in zip(shard.shard_offsets, shard.shard_sizes, strict=True))
