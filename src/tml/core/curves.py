"""Training curves: each measured value as a JSON line in `metrics.jsonl` and as a TensorBoard scalar of the same name.

A line is one flat object, as `{"step": 200, "seconds": 12.1, "train/loss": 0.31, "learning_rate/backbone": 0.0001}`.
A value that is undefined, such as the AUC of one class, is null there and left out of TensorBoard.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tml.core import files

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that a killed process left unfinished is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # What follows the last line break was not written to its end.
    return [json.loads(line) for line in lines[:-1] if line]


class Curves:
    """Writes the curves of one training; with `folder` None it only remembers the latest values.

    Args:
        folder: the stage's folder.
        step: number of finished steps; TensorBoard hides what an earlier run wrote after it.
        keep: which lines of an earlier run stay; the others are cut off, so that a resumed run writes none twice.
    """

    def __init__(self, folder: Path | None, step: int, keep: Callable[[dict[str, Any]], bool]) -> None:
        self.folder = folder
        self.latest: dict[str, float] = {}
        if folder is None:
            return
        # Imported here, since it is slow and only a training with a folder needs it.
        from torch.utils.tensorboard import SummaryWriter

        kept = [line for line in read_metrics(folder / METRICS) if keep(line)]
        files.write_text(folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
        for line in kept:
            self.latest |= {key: value for key, value in line.items() if value is not None}
        if step == 0:
            files.remove(folder / TENSORBOARD)
        self._events = SummaryWriter(folder / TENSORBOARD, purge_step=step + 1 if step else None)
        self._lines = (folder / METRICS).open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line; on return it is in the files."""
        finite = {key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)}
        self.latest |= finite
        if self.folder is None:
            return
        self._lines.write(json.dumps({"step": step, **{key: finite.get(key) for key in values}}) + "\n")
        self._lines.flush()
        for key, value in finite.items():
            self._events.add_scalar(key, value, step)
        self._events.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.folder is not None:
            self._lines.close()
            self._events.close()
