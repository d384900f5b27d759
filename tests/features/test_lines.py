"""Arrays that are files leave nothing behind, whatever becomes of the process."""

from pathlib import Path

import numpy as np

from tml.features.lines import Folder


def test_an_array_that_is_a_file_has_no_name_that_a_killed_process_could_leave(folder: Path) -> None:
    made = Folder(folder)
    arrays = [made.array((100_000,), np.int64) for _ in range(2)]
    for place, array in enumerate(arrays):
        array[:] = place + 1
    assert [int(array.sum()) for array in arrays] == [100_000, 200_000]
    assert not list(folder.iterdir())
