"""TFRecord files, plain or gzip, read and written as a stream of records without TensorFlow.

A record is its length (uint64, little-endian), the masked CRC-32C of these eight bytes, the data, and the masked
CRC-32C of the data; masked(crc) = rotate_right(crc, 15) + 0xa282ead8 mod 2^32.

Reading holds one piece of the decompressed file at a time, and nothing is allocated by what a damaged length says.
Records are counted from 0. After a record whose data are damaged the next one can be read; after a damaged length, or
where the file or its compression breaks off, the rest of the file is lost.
"""

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import google_crc32c
from isal import igzip_lib, isal_zlib

from tml.core.errors import DataError
from tml.core.files import whole_file

OnError = Literal["stop", "skip"]
Compression = Literal["gzip", "none"]

LARGEST_RECORD = 64 << 20
"""Bytes; a length above it is taken as damaged. The published records have 27 thousand."""

_PIECE = 1 << 19
_READ = 1 << 18
_GZIP = b"\x1f\x8b"
_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")


@dataclass
class Skipped:
    """What was passed over with `on_error: skip`.

    Attributes:
        records: damaged records.
        files: files whose rest could not be read.
        first: the sentence that says what was wrong with the first of them.
    """

    records: int = 0
    files: int = 0
    first: str = ""

    def record(self, message: str) -> None:
        """Count a damaged record."""
        self.records += 1
        self.first = self.first or message

    def file(self, message: str) -> None:
        """Count a file whose rest is lost."""
        self.files += 1
        self.first = self.first or message

    def __add__(self, other: "Skipped") -> "Skipped":
        return Skipped(self.records + other.records, self.files + other.files, self.first or other.first)


def masked_crc(data: bytes) -> int:
    """The checksum that the file holds of some bytes.

    Example:
        >>> hex(masked_crc(b"123456789"))
        '0xc78ab0e5'
    """
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(path: Path, start: int = 0, skipped: Skipped | None = None) -> Iterator[tuple[int, bytes]]:
    """The records of a file with their numbers, checksums checked.

    Args:
        path: a TFRecord file; whether it is compressed is seen from its content.
        start: the number of the first record to give; those before it are read past.
        skipped: counts what is damaged and lets reading go on; None stops at it.

    Raises:
        DataError: the file cannot be opened or, without `skipped`, is damaged or no TFRecord file.
    """
    number = -1
    with _open(path) as file:
        pieces = _Pieces(file)
        try:
            for number, record, crc in _frames(pieces):
                if number < start:
                    continue
                if crc == masked_crc(record):
                    yield number, record
                    continue
                message = f"{path}: record {number}: its {len(record):,} bytes do not match their checksum"
                if skipped is None:
                    raise DataError(message)
                skipped.record(message)
        except _RestIsLostError as error:
            message = f"{path}: record {number + 1}: {error}"
            if skipped is None:
                raise DataError(message) from None
            skipped.file(message)


class _RestIsLostError(Exception):
    """Nothing more can be read of this file, and why."""


def _frames(pieces: "_Pieces") -> Iterator[tuple[int, bytes, int]]:
    """Each record's number, its data, and their checksum as the file has it."""
    number = 0
    while header := pieces.read(_HEADER.size):
        if len(header) < _HEADER.size:
            raise _RestIsLostError(f"the file ends after {len(header)} of the 12 bytes that begin a record")
        length, crc = _HEADER.unpack(header)
        if crc != masked_crc(header[:8]):
            what = "its length does not match its checksum" if number else "not the beginning of a TFRecord file"
            raise _RestIsLostError(f"{what}, found the bytes {header.hex()}")
        if length > LARGEST_RECORD:
            raise _RestIsLostError(f"its length is {length:,} bytes, allowed are at most {LARGEST_RECORD:,}")
        record, after = pieces.read(length), pieces.read(_CRC.size)
        if len(after) < _CRC.size:
            found = len(record) + len(after)
            raise _RestIsLostError(f"the file ends after {found:,} of its {length + _CRC.size:,} bytes")
        yield number, record, _CRC.unpack(after)[0]
        number += 1


class _Pieces:
    """A file's content, decompressed, by the number of bytes asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self.pieces = _gunzip(file) if _is_gzip(file) else iter(lambda: file.read(_PIECE), b"")
        self.piece, self.at = b"", 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end of the file."""
        end = self.at + size
        if end <= len(self.piece):
            found = self.piece[self.at : end]
            self.at = end
            return found
        parts = [self.piece[self.at :]]
        missing = end - len(self.piece)
        while missing > 0:
            self.piece = next(self.pieces, b"")
            if not self.piece:
                break
            parts.append(self.piece[:missing])
            self.at = len(parts[-1])
            missing -= self.at
        else:
            return b"".join(parts)
        self.at = 0
        return b"".join(parts)


def _is_gzip(file: BinaryIO) -> bool:
    """Whether the content is compressed; a plain file can begin with gzip's two bytes, too, as a length of 35,615."""
    start = file.read(12)
    file.seek(0)
    is_plain = len(start) == 12 and _HEADER.unpack(start)[1] == masked_crc(start[:8])
    return start.startswith(_GZIP) and not is_plain


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    """Decompressed pieces, bounded in size, of a file of one or more gzip members."""
    unzip = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    data = file.read(_READ)
    while True:
        try:
            piece = unzip.decompress(data, _PIECE)
        except igzip_lib.IsalError as error:  # type: ignore[misc]  # its stubs take the class for an instance
            raise _RestIsLostError(f"not valid gzip data ({error})") from None
        if piece:
            yield piece
        if unzip.eof:
            data = unzip.unused_data.lstrip(b"\0")
            while not data:  # another member, or zeros that pad the file
                if not (more := file.read(_READ)):
                    return
                data = more.lstrip(b"\0")
            unzip = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        else:
            data = file.read(_READ) if unzip.needs_input else b""
            if unzip.needs_input and not data:
                raise _RestIsLostError("the file ends within its gzip data")


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, allowed are TFRecord files, plain or gzip") from None
    except OSError as error:
        raise DataError(f"{path}: not a readable file ({error.strerror or error})") from None


def write_records(path: Path, records: Iterable[bytes], compression: Compression = "gzip") -> int:
    """Write a TFRecord file, whole or not at all; the same records give the same bytes.

    Returns:
        How many records were written.
    """
    count = 0
    with whole_file(path) as partial, partial.open("wb") as file:
        zipper = isal_zlib.compressobj(wbits=31) if compression == "gzip" else None
        for record in records:
            if len(record) > LARGEST_RECORD:
                raise DataError(f"{path}: record {count}: found {len(record):,} bytes, allowed are {LARGEST_RECORD:,}")
            length = struct.pack("<Q", len(record))
            frame = (length, _CRC.pack(masked_crc(length)), record, _CRC.pack(masked_crc(record)))
            data = b"".join(frame)
            file.write(zipper.compress(data) if zipper else data)
            count += 1
        if zipper:
            file.write(zipper.flush())
    return count
