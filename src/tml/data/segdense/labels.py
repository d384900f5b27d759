"""The labels of a batch: 0 or 1, and 0 where impression or engagement came too long after serving."""

from collections.abc import Sequence

import numpy as np
import torch

from tml.core.errors import ConfigError, DataError
from tml.data.segdense.config import RectifyLabels
from tml.data.segdense.schema import FeatureNames
from tml.data.tf_example_columns import Array, Arrays, Feature, Ragged, Where

_MILLISECONDS_A_MINUTE = 60_000


class SegdenseLabels:
    """Some labels of the records.

    Args:
        names: the features of the records.
        labels: features of one value.
        rectify: the window in which a label counts.

    Attributes:
        features: what a parser has to read for them.

    Raises:
        ConfigError: a name that the schema lacks, or a feature of another length.
    """

    def __init__(self, names: FeatureNames, labels: Sequence[str], rectify: RectifyLabels | None = None) -> None:
        self.labels = {name: _single(names, name, "labels") for name in labels}
        self.window = 0.0
        self.times: tuple[Feature, ...] = ()
        self.engaged: dict[str, Feature] = {}
        if rectify is not None:
            self.window = rectify.label_rectification_window_in_minutes * _MILLISECONDS_A_MINUTE
            fields = ("served_timestamp_field", "impressed_timestamp_field")
            self.times = tuple(_time(names, getattr(rectify, field), f"rectify_labels.{field}") for field in fields)
            self.engaged = {
                names.find(label, "label_to_engaged_timestamp_field").name: _time(
                    names, name, f"rectify_labels.label_to_engaged_timestamp_field.{label}"
                )
                for label, name in rectify.label_to_engaged_timestamp_field.items()
            }
        used = [self.engaged[label.name] for label in self.labels.values() if label.name in self.engaged]
        self.features = tuple(dict.fromkeys([*self.labels.values(), *(self.times if used else ()), *used]))

    def tensors(self, arrays: Arrays, where: Where) -> dict[str, torch.Tensor]:
        """Every label as (rows,) float32; `where` names a row in an error.

        Raises:
            DataError: a label that is neither 0 nor 1.
        """
        return {name: torch.from_numpy(self._values(label, arrays, where)) for name, label in self.labels.items()}

    def positive(self, arrays: Arrays, where: Where) -> Array:
        """The rows, as booleans, of which at least one label is 1."""
        positive = [self._values(label, arrays, where) > 0 for label in self.labels.values()]
        return np.asarray(np.any(positive, axis=0))

    def _values(self, label: Feature, arrays: Arrays, where: Where) -> Array:
        values = _flat(arrays, label)
        for row in np.flatnonzero((values != 0) & (values != 1))[:1]:
            raise DataError(f"{where(row)}: label {label.name}: found {values[row]}, allowed are 0 and 1")
        values = values.astype(np.float32)
        if label.name in self.engaged:
            served, impressed = (_flat(arrays, time) for time in self.times)
            # A time that is missing is 0. Of two times above it the difference is in range.
            values *= served > 0
            for happened in (impressed, _flat(arrays, self.engaged[label.name])):
                values *= (happened >= served) & (happened - served <= self.window)
        return values


def _flat(arrays: Arrays, feature: Feature) -> Array:
    values = arrays[feature.name]
    assert not isinstance(values, Ragged)
    flat: Array = values[:, 0]
    return flat


def _single(names: FeatureNames, name: str, field: str) -> Feature:
    feature = names.find(name, field)
    if feature.length != 1 or feature.dtype == "bytes_list":
        raise ConfigError(f"{field}: found {name}, {feature.dtype} of length {feature.length}, allowed is one number")
    return feature


def _time(names: FeatureNames, name: str, field: str) -> Feature:
    feature = _single(names, name, field)
    if feature.dtype != "int64_list":
        raise ConfigError(f"{field}: found {name}, a {feature.dtype}, allowed is an int64_list of milliseconds")
    return feature
