"""Metrics of every task, of all examples and of the segments that a model's stratifiers cut them into.

A segment is the examples with one value of an element of the discrete vector: the one value that the stratifier names,
or each value; of these the first `MOST_VALUES` that are met have a segment of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from tml.core.errors import ConfigError
from tml.metrics.binary import BinaryMetrics
from tml.projects.home.recap.config import StratifierConfig

MOST_VALUES, OTHERS = 64, "others"
SEGMENT_METRICS = ("examples", "positives", "auc", "rce", "calibration")


class SegmentedMetrics:
    """Collects labels and probabilities batch by batch.

    Args:
        tasks: what is evaluated.
        stratifiers: how the examples are cut.

    Attributes:
        whole: the metrics of all examples, by task.
        segments: those of each value, by stratifier, value and task.

    Raises:
        ConfigError: a stratifier that names no element of the discrete vector.
    """

    def __init__(self, tasks: Sequence[str], stratifiers: Sequence[StratifierConfig] = ()) -> None:
        self.tasks, self.stratifiers = tuple(tasks), tuple(stratifiers)
        self.elements = [discrete_element(stratifier) for stratifier in stratifiers]
        self.whole = self._new()
        self.segments: dict[str, dict[str, dict[str, BinaryMetrics]]] = {s.name: {} for s in stratifiers}

    def _new(self) -> dict[str, BinaryMetrics]:
        return {task: BinaryMetrics() for task in self.tasks}

    def update(
        self, labels: Mapping[str, Tensor], probabilities: Mapping[str, Tensor], discrete: Tensor | None
    ) -> None:
        """Add a batch: (batch,) by task, labels NaN where one does not count; `discrete` for the stratifiers."""
        values = {task: (labels[task].cpu().numpy(), probabilities[task].cpu().numpy()) for task in self.tasks}
        for task, (y, p) in values.items():
            self.whole[task].update(y, p)
        for stratifier, element in zip(self.stratifiers, self.elements, strict=True):
            assert discrete is not None
            column = discrete[:, element].cpu().numpy()
            for value in np.unique(column).tolist():
                if stratifier.value not in (None, value):
                    continue
                rows = column == value
                for task, metrics in self._segment(stratifier.name, str(value)).items():
                    y, p = values[task]
                    metrics.update(y[rows], p[rows])

    def merge(self, other: "SegmentedMetrics") -> None:
        """Add what another rank has collected."""
        for task, metrics in other.whole.items():
            self.whole[task].merge(metrics)
        for name, segments in other.segments.items():
            for value, of_tasks in segments.items():
                own = self._segment(name, value)
                for task, metrics in of_tasks.items():
                    own[task].merge(metrics)

    def _segment(self, name: str, value: str) -> dict[str, BinaryMetrics]:
        segments = self.segments[name]
        if value not in segments and len(segments) >= MOST_VALUES:
            value = OTHERS
        return segments.setdefault(value, self._new())

    def figures(self) -> dict[str, dict[str, Any]]:
        """By stratifier, value and task the metrics of the segment; None where one is undefined."""
        found: dict[str, dict[str, Any]] = {}
        for name, segments in self.segments.items():
            found[name] = {value: {t: _some(m) for t, m in segments[value].items()} for value in sorted(segments)}
        return found


def _some(metrics: BinaryMetrics) -> dict[str, Any]:
    values = asdict(metrics.compute())
    return {name: values[name] for name in SEGMENT_METRICS}


def discrete_element(stratifier: StratifierConfig) -> int:
    """Which element of the discrete vector a stratifier cuts by.

    Raises:
        ConfigError: none.
    """
    if stratifier.index is not None:
        return stratifier.index
    vector, _, number = str(stratifier.feature).rpartition(".")
    if vector != "discrete" or not number.isdecimal():
        raise ConfigError(
            f"model.stratifiers.{stratifier.name}.feature: found {stratifier.feature}, allowed in published data, "
            "whose elements have no names, is discrete.0 and so on"
        )
    return int(number)
