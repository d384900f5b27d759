"""Checkpoints: the whole state of a training at one step, in a folder that is there complete or not at all.

    checkpoints/step-00000500/state.pt          nested dicts and lists of plain values and tensors
    checkpoints/step-00000500/checkpoint.json   step, fingerprint of the config, size and CRC-32 of state.pt

`state.pt` is read without running any code that it may hold. The fingerprint ties a checkpoint to the config that
made it: a training never goes on from the checkpoint of another one.
"""

import pickle
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tml.core import files
from tml.core.errors import DataError

STATE, MANIFEST = "state.pt", "checkpoint.json"


def save(folder: Path, state: Mapping[str, Any], step: int, fingerprint: str = "", keep: int | None = None) -> Path:
    """Write `folder/step-…`, then remove all but the newest `keep` checkpoints of the folder.

    Args:
        folder: holds the checkpoints of one training.
        state: nested dicts, lists and tuples of None, bool, int, float, str and tensors.
        step: number of finished steps.
        fingerprint: digest of the config (`core.config.fingerprint`).
        keep: how many checkpoints to keep; None keeps all.

    Raises:
        TypeError: `state` holds something else, which could not be read back; the message has its place.
    """
    _require_plain(state, "state")
    path = folder / f"step-{step:08d}"
    with files.whole_folder(path) as partial:
        torch.save(dict(state), partial / STATE)
        size, checksum = _digest(partial / STATE)
        manifest = {"step": step, "fingerprint": fingerprint, "bytes": size, "crc32": checksum}
        files.write_json(partial / MANIFEST, manifest)
    if keep is not None:
        prune(folder, keep)
    return path


def load(path: Path) -> dict[str, Any]:
    """Read the state that `save` wrote, all tensors on the CPU.

    Raises:
        DataError: the checkpoint is missing, incomplete or damaged.
    """
    manifest = _manifest(path)
    if manifest is None:
        raise DataError(f"{path}: not a complete checkpoint; remove it to start from an earlier one")
    damaged = DataError(
        f"{path / STATE}: damaged since it was written; remove {path.name} to start from an earlier one"
    )
    if _digest(path / STATE) != (manifest["bytes"], manifest["crc32"]):
        raise damaged
    try:
        state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError):
        raise damaged from None
    return state


def latest(folder: Path, fingerprint: str = "") -> Path | None:
    """The newest complete checkpoint with this fingerprint; None where there is none."""
    for path in reversed(checkpoints(folder)):
        manifest = _manifest(path)
        if manifest is not None and manifest["fingerprint"] == fingerprint:
            return path
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest step first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name)), key=step_of)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name: `step-00000500` is 500."""
    return int(path.name.removeprefix("step-"))


def prune(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep`."""
    paths = checkpoints(folder)
    for path in paths[: max(len(paths) - keep, 0)]:
        files.remove(path)


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest = files.read_json(path / MANIFEST)
        complete = (path / STATE).stat().st_size == manifest["bytes"] and {"fingerprint", "crc32"} <= manifest.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if complete else None


def _digest(path: Path) -> tuple[int, int]:
    size = checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            size += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return size, checksum


def _require_plain(value: Any, place: str) -> None:
    # Exact types: a NumPy float is a float too, but is not read back without running code.
    if value is None or isinstance(value, torch.Tensor) or type(value) in (bool, int, float, str):
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _require_plain(key, f"a key of {place}")
            _require_plain(inner, f"{place}[{key!r}]")
    elif type(value) in (list, tuple):
        for position, inner in enumerate(value):
            _require_plain(inner, f"{place}[{position}]")
    else:
        raise TypeError(f"{place}: found {type(value).__name__}, a checkpoint holds plain values and tensors")
