"""The wire format of a tf.Example, read in full generality.

    Example  { Features features = 1; }
    Features { map<string, Feature> feature = 1; }      an entry of the map is { string key = 1; Feature value = 2; }
    Feature  { oneof kind { BytesList bytes_list = 1; FloatList float_list = 2; Int64List int64_list = 3; } }
    …List    { repeated … value = 1; }                   numbers packed in one field, or a field each

Fields may come in any order, repeated (messages merge, of the rest the last counts) and beside unknown ones, which are
passed over. What a reader needs of it is the payload of each feature: its numbers packed, or its list of strings.
"""

from collections.abc import Iterator
from typing import NamedTuple

from tml.data.varints import varint

KINDS = ("", "bytes_list", "float_list", "int64_list")
"""The kinds of a feature by field number; the first is a feature without any."""

VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = range(6)


class WireError(Exception):
    """These bytes are no tf.Example, and why."""


class Payload(NamedTuple):
    """The content of one feature.

    Attributes:
        kind: number in `KINDS`; 0 is a feature without content.
        data: floats of four bytes each, varints, or a serialised BytesList (see `strings_in`).
    """

    kind: int
    data: bytes


def entry_header(name: bytes, kind: int, size: int) -> bytes:
    """What stands before the payload of a map entry, as every writer writes it; `size` is the payload's."""
    packed = b"\x0a" + varint(size) if size and kind != 1 else b""
    listed = bytes([kind << 3 | BYTES]) + varint(len(packed) + size) + packed
    value = b"\x0a" + varint(len(name)) + name + b"\x12" + varint(len(listed) + size) + listed
    return b"\x0a" + varint(len(value) + size) + value


def features_of(record: bytes) -> dict[bytes, Payload]:
    """The features of a serialised tf.Example by name.

    Raises:
        WireError: the bytes are no tf.Example.
    """
    found: dict[bytes, Payload] = {}
    for start, end in _messages(record, 0, len(record), 1):
        for entry in _messages(record, start, end, 1):
            name, payload = entry_at(record, *entry)
            found[name] = payload
    return found


def entry_at(record: bytes, start: int, end: int) -> tuple[bytes, Payload]:
    """The name and the content of the map entry that lies between two positions."""
    name, values = b"", []
    for field, wire, at, stop in _fields(record, start, end):
        if field == 1 and wire == BYTES:
            name = record[at:stop]
            try:
                name.decode()
            except UnicodeDecodeError:
                raise WireError(f"the name {name!r} of a feature is not UTF-8") from None
        elif field == 2 and wire == BYTES:
            values.append(record[at:stop])
    return name, _payload(b"".join(values))  # messages one after the other are the merged message


def varint_at(record: bytes, at: int, end: int) -> tuple[int, int]:
    """The varint at a position, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise WireError(f"a number breaks off at byte {at}")
        byte = record[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 64:
                raise WireError(f"a number of more than 64 bits before byte {at}")
            return value, at
    raise WireError(f"a number of more than ten bytes before byte {at}")


def _messages(record: bytes, start: int, end: int, number: int) -> Iterator[tuple[int, int]]:
    for field, wire, at, stop in _fields(record, start, end):
        if field == number and wire == BYTES:
            yield at, stop


def _payload(value: bytes) -> Payload:
    kind = 0
    lists: list[bytes] = []
    for field, wire, at, stop in _fields(value, 0, len(value)):
        if 1 <= field <= 3 and wire == BYTES:
            if field != kind:
                kind, lists = field, []
            lists.append(value[at:stop])
    content = b"".join(lists)
    return Payload(kind, content if kind < 2 else b"".join(_numbers(content, kind)))


def strings_in(content: bytes) -> list[bytes]:
    """The strings of a serialised BytesList."""
    return [content[at:stop] for at, stop in _messages(content, 0, len(content), 1)]


def _numbers(content: bytes, kind: int) -> Iterator[bytes]:
    """The pieces of a list's numbers: packed fields, and fields of one number each."""
    single = FIXED32 if kind == 2 else VARINT
    for field, wire, at, stop in _fields(content, 0, len(content)):
        if field == 1 and wire in (BYTES, single):
            if kind == 2 and (stop - at) % 4:
                raise WireError(f"floats of four bytes each in a field of {stop - at} bytes")
            yield content[at:stop]


def _fields(record: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Field number, wire type, start and end of the content of every field; groups are passed over."""
    while at < end:
        field, wire, at = _tag(record, at, end)
        if wire == GROUP:
            at = _after_group(record, field, at, end)
            continue
        start, at = _content(record, wire, at, end)
        yield field, wire, start, at


def _tag(record: bytes, at: int, end: int) -> tuple[int, int, int]:
    tag, after = varint_at(record, at, end)
    if not 0 < tag >> 3 < 1 << 29:
        raise WireError(f"a field of number {tag >> 3} at byte {at}")
    return tag >> 3, tag & 7, after


def _content(record: bytes, wire: int, at: int, end: int) -> tuple[int, int]:
    """Where the content of a field begins and ends, whose tag ends at `at`."""
    if wire == VARINT:
        return at, varint_at(record, at, end)[1]
    if wire == BYTES:
        length, at = varint_at(record, at, end)
    elif wire in (FIXED32, FIXED64):
        length = 4 if wire == FIXED32 else 8
    else:
        raise WireError(f"the unknown wire type {wire} before byte {at}")
    if length > end - at:
        raise WireError(f"a field of {length:,} bytes at byte {at}, where {end - at:,} are left")
    return at, at + length


def _after_group(record: bytes, field: int, at: int, end: int) -> int:
    """The position after a group; groups may lie in groups."""
    inside = [field]
    while inside:
        number, wire, at = _tag(record, at, end)
        if wire == GROUP:
            inside.append(number)
        elif wire == END_GROUP:
            if inside.pop() != number:
                raise WireError(f"the end of another group before byte {at}")
        else:
            _, at = _content(record, wire, at, end)
    return at
