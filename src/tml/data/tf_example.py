"""Serialised tf.Examples to arrays, a batch at a time, by a schema.

A feature whose values have a fixed number gets an array (rows, length), one of a variable number gets `Ragged` values.
A feature that a record lacks is 0 there (the empty string, or no values).

The speed comes from two observations. The bytes before a feature's values depend on its name and the size of its
values alone, so they are compared as a whole with what was seen before and never read one by one; the values are then
copied. A record that is written in an unusual way takes the general road of `tf_example_wire`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tml.core.errors import DataError
from tml.data.tf_example_columns import Array, Column, Feature, Ragged, Where
from tml.data.tf_example_wire import WireError, entry_at, entry_header, features_of, varint_at
from tml.data.tfrecord import Skipped
from tml.data.varints import varint

_FIELD_1 = 0x0A
"""The tag of field 1 holding bytes: of the features in an example, and of an entry in the features."""
_MOST_SEEN = 50_000


@dataclass(slots=True)
class _Entry:
    """An entry of the map as it was seen before: all of its bytes but the payload.

    Attributes:
        header: the bytes before the payload.
        length: of `header`.
        size: of the payload.
        column: where the values go; None for a feature that nobody reads.
        is_plain: the payload is as long as the column's row, so it can be copied there.
        next: the entry that came after it last time.
    """

    header: bytes
    length: int
    size: int
    column: Column | None
    is_plain: bool
    next: "_Entry"


class ExampleParser:
    """Parses batches of examples of a schema; not for several threads at once.

    Args:
        features: what to read; other features of the records are passed over.

    Attributes:
        rows: which records of the last batch have a row; all of them, unless some were skipped.

    Example:
        >>> parser = ExampleParser([Feature("meta.user_id", "int64_list", 1)])
        >>> parser.parse([b"", b""])["meta.user_id"].tolist()
        [[0], [0]]
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self.columns = {feature.name.encode(): Column(feature) for feature in features}
        self.rows: list[int] = []
        self._seen: dict[bytes, _Entry] = {}
        self._start = _Entry(b"no entry begins so", 0, 0, None, False, None)  # type: ignore[arg-type]
        self._start.next = self._start

    def parse(
        self,
        records: Sequence[bytes],
        where: Where = "record {}".format,
        skipped: Skipped | None = None,
    ) -> dict[str, Array | Ragged]:
        """The features of some records by name: float32, int64, or bytes objects.

        Args:
            records: serialised tf.Examples.
            where: what a record of the batch is called in a message.
            skipped: counts records that are no tf.Examples and leaves their rows out; None refuses them.

        Raises:
            DataError: a record is no tf.Example, or a feature has another kind or number of values than the schema
                says. The latter is never skipped: most often it is the schema that is wrong.
        """
        broken = self._fill(records, where)
        if not broken:
            self.rows = list(range(len(records)))
            return {column.feature.name: column.result() for column in self.columns.values()}
        for row, what in sorted(broken.items()):
            message = f"{where(row)}: not a tf.Example ({what})"
            if skipped is None:
                raise DataError(message)
            skipped.record(message)
        whole = [row for row in range(len(records)) if row not in broken]
        arrays = self.parse([records[row] for row in whole], lambda row: where(whole[row]))
        self.rows = whole
        return arrays

    def _fill(self, records: Sequence[bytes], where: Where) -> dict[int, str]:
        """Fill the columns; the rows whose records are no tf.Examples, and why."""
        columns = self.columns.values()
        for column in columns:
            column.begin(len(records))
        broken: dict[int, str] = {}
        for row, record in enumerate(records):
            try:
                if not self._copy(record, row):
                    self._store(record, row, where)
            except WireError as error:
                broken[row] = str(error)
        for row, column in itertools.product(broken, columns):
            column.reset(row)
        for column in columns:
            broken |= column.finish(where)
        return broken

    def _copy(self, record: bytes, row: int) -> bool:
        """Take a record as writers write it; False where it is written in another way, whatever was taken so far."""
        end = len(record)
        if not end:
            return True
        if record[0] != _FIELD_1:
            return False
        length, at = varint_at(record, 1, end)
        if length != end - at:
            return False
        starts_with = record.startswith
        entry = self._start
        while at < end:
            before, entry = entry, entry.next
            if not starts_with(entry.header, at):
                found = self._look_up(record, at)
                if found is None:
                    return False
                before.next = entry = found
            body = at + entry.length
            at = body + entry.size
            column = entry.column
            if at > end:
                return False
            if column is not None:
                if column.seen == row:
                    return False
                column.seen = row
                if not entry.is_plain:
                    column.late[row] = record[body:at]
                elif entry.size == 1:
                    column.view[row] = record[body]
                else:
                    stride = column.stride
                    column.view[row * stride : row * stride + stride] = record[body : body + stride]
        return True

    def _look_up(self, record: bytes, at: int) -> _Entry | None:
        """What is known of the entry at a position; None where it is written in an unusual way or broken."""
        head = record[at : at + 6]
        if len(head) < 6 or head[0] != _FIELD_1:
            return None
        start = 2 if head[1] < 128 else 3 if head[2] < 128 else 4
        named = at + start + 2 + record[at + start + 1]
        found = self._seen.get(record[at:named])
        if found is None or not record.startswith(found.header, at):
            found = self._learn(record, at)
            if found is not None and len(self._seen) < _MOST_SEEN:
                self._seen[record[at:named]] = found
        return found

    def _learn(self, record: bytes, at: int) -> _Entry | None:
        """Read an entry in full; None where it is not as writers write it."""
        length, start = varint_at(record, at + 1, len(record))
        after = start + length
        if after > len(record):
            return None
        name, payload = entry_at(record, start, after)
        column = self.columns.get(name)
        if column is not None and column.kind != payload.kind:
            return None
        header = entry_header(name, payload.kind, len(payload.data))
        if column is None:
            header = b"\x0a" + varint(length) + b"\x0a" + varint(len(name)) + name
        if not record.startswith(header, at):
            return None
        size = after - at - len(header)
        return _Entry(header, len(header), size, column, column is not None and size == column.plain_size, self._start)

    def _store(self, record: bytes, row: int, where: Where) -> None:
        """Take one record by the general road."""
        found = features_of(record)
        for name, column in self.columns.items():
            column.reset(row)
            if name in found:
                column.put(row, found[name], where)
