"""What every benchmark prints: first the machine, then one JSON object a figure."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import tml


def print_machine() -> None:
    """Print processor, cores, memory, versions, threads and load."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = {
        "processor": model[0].split(":")[1].strip() if model else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tml": tml.__version__,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }
    print(json.dumps({"machine": machine}), flush=True)


def print_figure(name: str, values: list[float], unit: str, higher_is_better: bool) -> None:
    """Print the median of some runs and their spread, (max - min) / median."""
    middle = statistics.median(values)
    figure = {
        "name": name,
        "value": float(f"{middle:.4g}"),
        "unit": unit,
        "higher_is_better": higher_is_better,
        "runs": len(values),
        "spread": round((max(values) - min(values)) / middle, 3),
    }
    print(json.dumps(figure), flush=True)


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
