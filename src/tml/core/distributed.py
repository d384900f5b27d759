"""Where a model runs: the device, the ranks, and the wrappers that PyTorch puts around a model to run it there.

`torchrun` starts a process for every rank and tells each in its environment which it is; inside `process_group` they
are a group. Without torchrun there is one rank, and nothing to do.
"""

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed, nn

from tml.core.errors import ConfigError


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name; `auto` is the first that is there of CUDA, Apple's GPU and the CPU.

    Raises:
        ConfigError: torch knows no such device, or sees none on this machine.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    present = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        return torch.device(next(kind for kind, count in present.items() if count))
    allowed = ", ".join(["auto", *(kind for kind, count in present.items() if count)])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: found {name!r}, allowed on this machine are {allowed}") from None
    if (device.index or 0) >= present.get(device.type, 0):
        raise ConfigError(f"device: found {name!r}, which torch does not see here; allowed are {allowed}")
    return device


class Ranks(NamedTuple):
    """Which process this is of how many."""

    rank: int
    world_size: int


def ranks() -> Ranks:
    """This process in its group; 0 of 1 where there is none."""
    if not distributed.is_initialized():
        return Ranks(0, 1)
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def is_first_rank() -> bool:
    """Whether this process is the one that tells and writes: the first of its group, or the only one."""
    return ranks().rank == 0


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Inside the block the processes that torchrun started are a group; does nothing without torchrun, or in a group.

    Each takes the GPU of its own number on its machine, where there are GPUs.
    """
    if distributed.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ranks()
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield ranks()
    finally:
        distributed.destroy_process_group()


T = TypeVar("T")


def gathered(value: T) -> list[T]:
    """What each rank has, by rank, on every rank; all of them must call it."""
    if ranks().world_size == 1:
        return [value]
    values: list[Any] = [None] * ranks().world_size
    distributed.all_gather_object(values, value)
    return values


def data_parallel(module: nn.Module) -> nn.Module:
    """The module, its gradients averaged over ranks where there are several."""
    if ranks().world_size == 1:
        return module
    return nn.parallel.DistributedDataParallel(module)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside its wrappers, in whatever order they were put.

    They are DistributedDataParallel, DataParallel, `torch.compile`, and TorchRec's DistributedModelParallel.
    """
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            module = module.module
            continue
        # The one mark of torch.compile's private class, and of TorchRec's, which need not be installed.
        name = next((name for name in ("_orig_mod", "_dmp_wrapped_module") if name in module._modules), None)
        if name is None:
            return module
        inner = module._modules[name]
        assert inner is not None
        module = inner


def import_torchrec(name: str) -> ModuleType:
    """A module of TorchRec or what comes with it, by its name; TorchRec need not be installed.

    Raises:
        ConfigError: it is not installed, with the commands that install it.
    """
    try:
        with warnings.catch_warnings():
            # FBGEMM tells of kernels that it no longer has, PyTorch of TorchScript.
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise ConfigError(
            f"TorchRec's embedding tables need {package}, which is not installed: pip install '.[distributed]' and then"
            " pip install --no-deps torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0"
        ) from None
