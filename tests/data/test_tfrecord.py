"""TFRecord framing: known checksums, a plain reference writer, damage of every kind."""

import gzip
import re
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tml.core.errors import DataError
from tml.data import tfrecord
from tml.data.tfrecord import LARGEST_RECORD, Skipped, masked_crc, read_records, write_records

RECORDS = [b"first", b"", b"\x1f\x8b" * 40, bytes(range(256)) * 10]


def crc32c(data: bytes) -> int:
    """CRC-32C bit by bit, reflected polynomial 0x82f63b78."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32)


def framed(records: list[bytes]) -> bytes:
    """The content of a TFRecord file."""
    lengths = [struct.pack("<Q", len(record)) for record in records]
    return b"".join(n + masked(n) + record + masked(record) for n, record in zip(lengths, records, strict=True))


def read(path: Path, content: bytes, **arguments: Any) -> list[bytes]:
    path.write_bytes(content)
    return [record for _, record in read_records(path, **arguments)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "part-0.tfrecord"


@pytest.mark.parametrize(
    ("data", "crc"),  # RFC 3720, B.4, and the usual check of the algorithm
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
    ],
)
def test_known_checksums(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc
    assert masked_crc(data) == struct.unpack("<I", masked(data))[0]


def test_files_of_a_plain_writer_are_read_and_ours_have_its_bytes(path: Path) -> None:
    content = framed(RECORDS)
    members = gzip.compress(content[:50]) + gzip.compress(content[50:]) + bytes(300_000)
    for compressed in (content, gzip.compress(content), members):
        assert read(path, compressed) == RECORDS
    assert write_records(path, RECORDS, "none") == len(RECORDS)
    assert path.read_bytes() == content
    write_records(path, RECORDS)
    assert gzip.decompress(path.read_bytes()) == content
    assert read(path, b"") == []


def test_records_longer_than_a_piece_and_a_start_in_the_middle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for piece in (1, 7, 100):
        monkeypatch.setattr(tfrecord, "_PIECE", piece)
        for content in (framed(RECORDS), gzip.compress(framed(RECORDS))):
            assert read(path, content) == RECORDS
            assert list(read_records(path, start=2)) == list(enumerate(RECORDS))[2:]


def test_a_plain_file_may_begin_like_a_compressed_one(path: Path) -> None:
    record = bytes(0x8B1F)
    write_records(path, [record], "none")
    assert path.read_bytes().startswith(b"\x1f\x8b")
    assert [found for _, found in read_records(path)] == [record]


def damaged(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


SECOND = len(framed(RECORDS[:1]))
THIRD = len(framed(RECORDS[:2]))


@pytest.mark.parametrize(
    ("content", "message", "left", "records", "files"),
    [
        (damaged(framed(RECORDS), 13), "record 0: its 5 bytes do not match their checksum", [1, 2, 3], 1, 0),
        (damaged(framed(RECORDS), SECOND + 13), "record 1: its 0 bytes do not match", [0, 2, 3], 1, 0),
        (damaged(framed(RECORDS), THIRD + 1), "record 2: its length does not match its checksum", [0, 1], 0, 1),
        (framed(RECORDS)[:-1], "record 3: the file ends after 2,563 of its 2,564 bytes", [0, 1, 2], 0, 1),
        (framed(RECORDS)[: THIRD + 5], "record 2: the file ends after 5 of the 12 bytes", [0, 1], 0, 1),
        (b"PAR1 not a TFRecord file", "record 0: not the beginning of a TFRecord file", [], 0, 1),
        (gzip.compress(b"user_id,post_id\n1,2\n"), "record 0: not the beginning of a TFRecord file", [], 0, 1),
        (gzip.compress(framed(RECORDS))[:-9], "the file ends within its gzip data", [0, 1, 2, 3], 0, 1),
        (damaged(gzip.compress(framed(RECORDS)), -6), "record 0: not valid gzip data", [], 0, 1),
        (gzip.compress(framed(RECORDS)) + b"rest", "record 4: ", [0, 1, 2, 3], 0, 1),
    ],
)
def test_damage_is_named_or_passed_over(
    path: Path, content: bytes, message: str, left: list[int], records: int, files: int
) -> None:
    with pytest.raises(DataError, match=f"{path.name}: .*{message}"):
        read(path, content)
    skipped = Skipped()
    assert read(path, content, skipped=skipped) == [RECORDS[i] for i in left]
    assert (skipped.records, skipped.files) == (records, files)
    assert message in skipped.first


def test_a_length_is_never_believed(path: Path) -> None:
    for length in (2**63, 2**40, LARGEST_RECORD + 1):
        header = struct.pack("<Q", length)
        with pytest.raises(DataError, match=f"its length is {length:,} bytes, allowed are at most 67,108,864"):
            read(path, header + masked(header) + b"few")
    header = struct.pack("<Q", LARGEST_RECORD)
    tracemalloc.start()
    with pytest.raises(DataError, match="the file ends after 3 of its 67,108,868 bytes"):
        read(path, header + masked(header) + b"few")
    assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    bomb = zlib.compressobj(1, wbits=31)
    header = struct.pack("<Q", 2**40)
    content = bomb.compress(header + masked(header) + bytes(70 * 2**20)) + bomb.flush()
    tracemalloc.reset_peak()
    with pytest.raises(DataError, match="allowed are at most"):
        read(path, content)
    assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    tracemalloc.stop()


def test_what_is_not_there_is_never_skipped(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none", "no such file"), (tmp_path, "not a readable file")):
        with pytest.raises(DataError, match=message):
            list(read_records(path, skipped=Skipped()))


def test_a_file_is_written_whole_or_not_at_all(path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_records(path, (bytes(1 // n) for n in (1, 0)))
    assert list(path.parent.iterdir()) == []


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_ends_in_a_sentence(path: Path, data: st.DataObject) -> None:
    content = bytearray(framed(RECORDS) if data.draw(st.booleans()) else gzip.compress(framed(RECORDS)))
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)):
        content[at] = byte
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    if data.draw(st.integers(0, 9)) == 0:
        content = bytearray(data.draw(st.binary(max_size=200)))
    skipped = Skipped()
    survivors = read(path, bytes(content), skipped=skipped)
    assert set(survivors) <= set(RECORDS)  # what the checksums let through is right
    if skipped.first:
        with pytest.raises(DataError, match=f"^{re.escape(skipped.first)}$"):
            read(path, bytes(content))
    else:
        assert read(path, bytes(content)) == survivors
