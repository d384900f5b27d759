"""Bytes of tensors in files, past the system's cache: memory is for what is trained, not for what lies on disk."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from tml.core.files import whole_file


def write_tensors(path: Path, tensors: Sequence[Tensor]) -> None:
    """Write tensors one behind the other; when this returns they are on the disk, whole."""
    with whole_file(path) as partial, partial.open("wb") as file:
        for tensor in tensors:
            file.write(_bytes(tensor.cpu()))
        file.flush()
        os.fsync(file.fileno())
        _let_go(file)


def read_tensors(path: Path, tensors: Sequence[Tensor]) -> None:
    """Fill tensors with what `write_tensors` wrote of such."""
    with path.open("rb", buffering=0) as file:
        for tensor in tensors:
            here = tensor if tensor.device.type == "cpu" else torch.empty_like(tensor, device="cpu")
            _fill(file, here)
            if here is not tensor:
                tensor.copy_(here)
        _let_go(file)


def read_rows(path: Path, start: int, rows: Tensor, into: Tensor) -> None:
    """Read rows of a matrix in a file.

    Args:
        path: the file.
        start: the byte where the matrix begins.
        rows: (n,) int64, ascending.
        into: (n, dimension), filled in.
    """
    width = into[:1].nbytes
    # Runs of rows that are close are read at once.
    breaks = (rows.diff() > NEAR).nonzero().flatten() + 1
    with path.open("rb", buffering=0) as file:
        for at in torch.tensor_split(torch.arange(len(rows)), breaks):
            first, last = int(rows[at[0]]), int(rows[at[-1]])
            file.seek(start + first * width)
            run = into.new_empty(last - first + 1, into.shape[1])
            _fill(file, run)
            into[at] = run[rows[at] - first]
        _let_go(file)


NEAR = 64
"""Rows that are read though nobody wants them, rather than to read twice."""


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _fill(file: BinaryIO, tensor: Tensor) -> None:
    left = _bytes(tensor)
    while left:
        count = file.readinto(left)  # type: ignore[attr-defined]
        if not count:
            raise OSError(f"{file.name}: ends before its last row")
        left = left[count:]


def _let_go(file: BinaryIO) -> None:
    """Tell the system that a file will not be read again soon, where it can be told."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
