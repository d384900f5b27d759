"""Files are written whole or not at all.

A writer works on a sibling named `.NAME.partial`, which takes the final name by one rename once it is complete.
What a killed process leaves behind is such a sibling, or `.NAME.previous`, the folder that was to be replaced; the next
writer of the same name removes both.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tml.core.errors import DataError


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_replaceable(folder: Path, marks: Sequence[str], made_by: str) -> None:
    """Refuse a folder to write in whose content no earlier run of the same work has written: it would be lost.

    Args:
        folder: need not be there.
        marks: files that the work always writes, relative to the folder; any of them tells it.
        made_by: what the work is called, as `conversion`.

    Raises:
        DataError: a file, or a folder with anything else in it.
    """
    if folder.is_file():
        raise DataError(f"{folder}: found a file, allowed is a folder to write to")
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / mark).is_file() for mark in marks):
        raise DataError(
            f"{folder}: found files that are no earlier {made_by}, allowed is a new folder, an empty one, or one with "
            f"a {' or '.join(marks)}, which is replaced"
        )


def _partial(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    remove(partial)
    return partial


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `path` when the block ends without an exception."""
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
