"""One at a time in a run folder: two processes in one folder would write over each other."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tml.core.errors import UserError


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a run folder, which is made where it is not there.

    Raises:
        UserError: another process holds it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{folder}: not a folder that can be written to ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another tml is at work in this run folder; wait for it or take another"
            ) from None
        yield
