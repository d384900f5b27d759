"""Where a model runs: the device, and the wrappers that PyTorch puts around a model to run it there."""

import torch
from torch import nn

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


def is_first_rank() -> bool:
    """Whether this process is the one that tells and writes: the first of its group, or the only one."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


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
