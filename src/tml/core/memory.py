"""Memory that a step frees and the next one takes again.

glibc gives large blocks back to the system when they are freed. The system clears every page that it hands out again,
4 KiB at a time: in a training step with hundreds of megabytes of activations and gradients that is a tenth of the time.
"""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_LARGEST = 1 << 30


def keep_freed_memory() -> None:
    """From now on the process keeps blocks up to a gibibyte that it frees, and torch asks for large pages.

    For a process that trains, before it makes tensors. The process never gets smaller again. Settings in the
    environment (`MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_`, `THP_MEM_ALLOC_ENABLE`) go before. Without glibc
    nothing happens.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for name, option in (("MALLOC_MMAP_THRESHOLD_", _M_MMAP_THRESHOLD), ("MALLOC_TRIM_THRESHOLD_", _M_TRIM_THRESHOLD)):
        if name not in os.environ:
            mallopt(option, _LARGEST)
