"""Files are written whole or not at all.

A writer works on a sibling named `.NAME.partial`, which takes the final name by one rename once it is complete.
What a killed process leaves behind is such a sibling, or `.NAME.previous`, the folder that was to be replaced; the next
writer of the same name removes both.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tml.core.errors import DataError, UserError


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_replaceable(path: Path, names: Sequence[str], marks: Sequence[str] = ()) -> None:
    """Refuse to put a folder in the place of something that is not an older one of the same kind: it would be lost.

    Args:
        path: the folder to be written, which may be there or not.
        names: what such a folder has in it, as patterns with `*`.
        marks: files, relative to the folder; without one of them a folder that is not empty is another kind.

    Raises:
        DataError: there is a file, or a folder with something else in it.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise DataError(f"{path}: found a file, allowed is a folder to write to")
    found = sorted(entry.name for entry in path.iterdir())
    other = next((name for name in found if not any(fnmatch(name, pattern) for pattern in names)), None)
    if other is None and found and marks and not any((path / mark).is_file() for mark in marks):
        other = found[0]
    if other is not None:
        raise DataError(
            f"{path}: found a folder with {other} in it, which would be lost, allowed is a new or empty folder, or an "
            "older one of the same kind"
        )


def _partial(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written, its folder cannot be made ({error.strerror})") from None
    partial = path.with_name(f".{path.name}.partial")
    remove(partial)
    return partial


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `path` when the block ends without an exception.

    Raises:
        UserError: a folder is there.
    """
    if path.is_dir():
        raise UserError(f"{path}: found a folder, allowed is a file to write")
    partial = _partial(path)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        remove(partial)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it replaces `path` when the block ends without an exception."""
    path = path if path.name else path.resolve()  # `.` has no name
    partial, previous = _partial(path), path.with_name(f".{path.name}.previous")
    partial.mkdir()
    try:
        yield partial
        remove(previous)
        if path.exists() or path.is_symlink():
            path.replace(previous)  # by one rename, too: what is left of it while it is removed must not pass for it
        partial.replace(path)
        remove(previous)
    except BaseException:
        remove(partial)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
