"""Partitions on disk, in versions, written and read past the system's cache: memory is for what is trained.

    partition-00003.7     tensors of one partition, one behind the other, the seventh time that it was written

A file is never written over. It goes when there is a newer one, unless one of the last two states that were saved
speaks of it: the newest, and the one before, which counts until the newest is whole.
"""

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from tml.core.errors import DataError
from tml.core.files import whole_file


class PartitionFiles:
    """The files of all partitions in a folder, each of a number and a version from 1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._saved: deque[list[int]] = deque(maxlen=2)

    def path(self, partition: int, version: int) -> Path:
        """Where a version is."""
        return self.folder / f"partition-{partition:05d}.{version}"

    def write(self, partition: int, version: int, tensors: Sequence[Tensor]) -> None:
        """Write a version, and remove the one before if nobody needs it."""
        try:
            write_tensors(self.path(partition, version), tensors)
        except OSError as error:
            raise DataError(f"{self.path(partition, version)}: cannot be written ({error.strerror})") from None
        if not any(saved[partition] == version - 1 for saved in self._saved):
            self.path(partition, version - 1).unlink(missing_ok=True)

    def save(self, versions: Sequence[int]) -> None:
        """Keep the files of these versions, one a partition, until others have been saved twice."""
        self._saved.append(list(versions))

    def sweep(self, versions: Sequence[int]) -> None:
        """Remove the files that neither these versions nor those of saved states speak of.

        Raises:
            DataError: one of these versions is not there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {self.path(p, version) for state in (versions, *self._saved) for p, version in enumerate(state)}
        for path in self.folder.glob("*partition-*"):
            if path not in kept:
                path.unlink()
        for partition, version in enumerate(versions):
            if version and not self.path(partition, version).is_file():
                raise DataError(
                    f"{self.path(partition, version)}: no such partition, needed by the checkpoint; remove the "
                    "checkpoint to start anew"
                )


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
