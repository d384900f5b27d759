"""One feature of a batch of tf.Examples as an array, filled row by row.

Floats lie in the array as they lie in the record. Integers below 128 are a byte each in a record, so a payload of as
many bytes as values is first laid into an array of bytes; the other payloads wait and are decoded together.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from tml.core.errors import DataError
from tml.data.tf_example_wire import KINDS, Payload, WireError, strings_in
from tml.data.varints import decode

Array = np.ndarray[Any, Any]
Dtype = Literal["int64_list", "float_list", "bytes_list"]
Where = Callable[[int], str]

VARIABLE = -1
"""The length of a feature whose records have different numbers of values."""


@dataclass(frozen=True)
class Feature:
    """One feature of a schema.

    Attributes:
        name: its name in the records.
        dtype: the kind of its values.
        length: how many values every record has, or `VARIABLE`.
        keep: only so many of the first values are wanted; None wants all. The rest of floats is not even copied.
    """

    name: str
    dtype: Dtype
    length: int
    keep: int | None = None

    @property
    def width(self) -> int:
        """How many values a row of the array has."""
        return self.length if self.keep is None else min(self.keep, self.length)


class Ragged(NamedTuple):
    """Values of a variable number a row: row i has `values[offsets[i] : offsets[i + 1]]`."""

    values: Array
    offsets: Array


Arrays = Mapping[str, Array | Ragged]
"""A batch by the names of the features."""


class Column:
    """The values of one feature in a batch.

    Attributes:
        plain_size: bytes of a payload that can be copied into a row of `view`; -1 where none can.
        stride: bytes of a row of `view`.
        late: row → payload that waits for `finish`.
        seen: the row that had this feature last, for the parser to notice a feature that comes twice.
    """

    __slots__ = (
        "_array",
        "_counts",
        "_rows",
        "_values",
        "feature",
        "kind",
        "late",
        "plain_size",
        "seen",
        "stride",
        "view",
    )

    def __init__(self, feature: Feature) -> None:
        self.feature = feature
        self.kind = KINDS.index(feature.dtype)
        is_fixed = feature.length != VARIABLE
        self.plain_size, self.stride = -1, 0
        if is_fixed and self.kind == 2:
            self.plain_size, self.stride = 4 * feature.length, 4 * feature.width
        elif is_fixed and self.kind == 3:
            self.plain_size = self.stride = feature.length
        self.begin(0)

    def begin(self, rows: int) -> None:
        """Begin a batch of so many rows."""
        self._rows = rows
        self._array = np.zeros(rows * self.stride, np.uint8)
        self.view = self._array.data
        self.late: dict[int, Any] = {}
        self.seen = -1
        self._values: Array = np.zeros(0, np.int64)
        self._counts: Array = np.zeros(0, np.int64)

    def reset(self, row: int) -> None:
        """Forget what a row has."""
        self.late.pop(row, None)
        self._array[row * self.stride : (row + 1) * self.stride] = 0

    def put(self, row: int, payload: Payload, where: Where) -> None:
        """Take the content of the feature in a row that has none so far.

        Raises:
            DataError: it is of another kind, or has another number of values.
        """
        if not payload.kind:
            return
        if payload.kind != self.kind:
            found = len(payload.data) // 4 if payload.kind == 2 else int(decode([payload.data])[1][0])
            if payload.kind == 1:
                found = len(strings_in(payload.data))
            raise self._wrong(f"{KINDS[payload.kind]} of {found} values", row, where)
        if self.kind == 2 and len(payload.data) == self.plain_size:
            self.view[row * self.stride : (row + 1) * self.stride] = payload.data[: self.stride]
        else:
            self.late[row] = payload.data

    def finish(self, where: Where) -> dict[int, str]:
        """Check and decode what waits.

        Returns:
            Rows whose payloads are broken, and how.

        Raises:
            DataError: a row has another number of values than the feature.
        """
        if self.feature.length != VARIABLE and self.kind == 3 and self._array.max(initial=0) > 127:
            self._recall_longer()
        rows = sorted(self.late)
        payloads = [self.late[row] for row in rows]
        broken: dict[int, str] = {}
        if self.kind == 1:
            for row, content in zip(rows, payloads, strict=True):
                try:
                    self.late[row] = strings_in(content)
                except WireError as error:
                    broken[row] = str(error)
            self._counts = np.array([len(self.late[row]) for row in rows], np.int64)
        elif self.kind == 2:
            self._values = np.frombuffer(bytearray().join(payloads), "<f4")
            self._counts = np.array([len(payload) // 4 for payload in payloads], np.int64)
        else:
            self._values, self._counts, open_ended = decode(payloads)
            broken = {rows[i]: f"{self.feature.name} has a number that breaks off" for i in open_ended}
        if not broken and self.feature.length != VARIABLE:
            for i in np.flatnonzero(self._counts != self.feature.length)[:1]:
                raise self._wrong(f"{self._counts[i]} values", rows[i], where)
        return broken

    def _recall_longer(self) -> None:
        """Rows of a byte a value in which a byte is not a whole value have fewer values: they wait like others."""
        by_row = self._array.reshape(-1, self.stride)
        for row in np.flatnonzero((by_row > 127).any(1)).tolist():
            self.late.setdefault(row, by_row[row].tobytes())

    def result(self) -> Array | Ragged:
        """The values, once finished and found whole."""
        return self._ragged() if self.feature.length == VARIABLE else self._fixed()

    def _fixed(self) -> Array:
        feature, late = self.feature, sorted(self.late)
        if self.kind == 2:
            return self._array.view("<f4").reshape(self._rows, feature.width)
        if self.kind == 3:
            values = self._array.reshape(self._rows, feature.length)[:, : feature.width].astype(np.int64)
            if late:
                values[late] = self._values.reshape(len(late), feature.length)[:, : feature.width]
            return values
        strings = np.full((self._rows, feature.width), b"", object)
        for row in late:
            strings[row] = self.late[row][: feature.width]
        return strings

    def _ragged(self) -> Ragged:
        late, values = sorted(self.late), self._values
        if self.kind == 1:
            values = np.empty(self._counts.sum(), object)
            values[:] = [string for row in late for string in self.late[row]]
        offsets = np.zeros(self._rows + 1, np.int64)
        offsets[np.array(late, np.int64) + 1] = self._counts
        return Ragged(values, np.cumsum(offsets))

    def _wrong(self, found: str, row: int, where: Where) -> DataError:
        feature = self.feature
        number = "any number of" if feature.length == VARIABLE else f"{feature.length:,}"
        return DataError(
            f"{where(row)}: feature {feature.name}: found {found}, allowed is {feature.dtype} of {number} values"
        )
