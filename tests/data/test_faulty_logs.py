"""What is wrong in a log is named by file and place, or skipped and counted; and what is left is read as it was."""

import gzip
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tml.core.errors import DataError
from tml.data.config import ImpressionsConfig, LogConfig, TableConfig
from tml.data.log import Log, log_fingerprint, open_log

START = datetime(2026, 1, 1)
SECONDS = 1_767_225_600
NAMES = ("user_id", "post_id", "served_at", "clicked")

BIG = 2**63

Rows = list[dict[str, Any]]


def rows(count: int = 20, **changes: Any) -> Rows:
    times = [(START + timedelta(hours=n)).isoformat() for n in range(count)]
    return [dict(zip(NAMES, (n % 3, n % 5, times[n], n % 2), strict=True)) | changes for n in range(count)]


def write(path: Path, content: Rows) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    if path.name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    elif path.name.endswith(".parquet"):
        table = pa.Table.from_pylist([{k: 0 if v == BIG else v for k, v in row.items()} for row in content])
        if any(BIG in row.values() for row in content):
            ids = pa.array([row["user_id"] for row in content], pa.uint64())
            table = table.set_column(table.column_names.index("user_id"), "user_id", ids)
        pq.write_table(table, path, row_group_size=8)
    else:
        lines = [",".join(content[0])] + [",".join("" if v is None else str(v) for v in r.values()) for r in content]
        text = "".join(f"{line}\n" for line in lines).encode()
        path.write_bytes(gzip.compress(text) if path.name.endswith(".gz") else text)


@pytest.fixture
def posts(folder: Path) -> Path:
    """A folder with posts, and no impressions yet."""
    write(folder / "posts.jsonl", [{"post_id": p, "author_id": 9} for p in range(5)])
    return folder


def config(folder: Path, on_error: Any = "stop", **changes: Any) -> LogConfig:
    return LogConfig(
        path=folder, on_error=on_error, impressions=ImpressionsConfig(**{"labels": ("clicked",), **changes})
    )


def stops(config: LogConfig) -> str:
    with pytest.raises(DataError) as error, open_log(config):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def skips(config: LogConfig) -> tuple[Log, list[tuple[Any, ...]]]:
    with open_log(config.model_copy(update={"on_error": "skip"})) as log:
        kept = log.connection.execute(
            "SELECT user_id, post_id, strftime(served_at, '%Y-%m-%dT%H:%M:%S'), clicked FROM impressions ORDER BY row"
        ).fetchall()
        assert log.rows == len(kept)
        return log, kept


def tuples(content: Rows) -> list[tuple[Any, ...]]:
    return sorted((tuple(row.values()) for row in content), key=lambda row: row[2])


VALUES = [
    ("user_id", None, "no value", "user_id: no id"),
    ("post_id", None, "no value", "post_id: no id"),
    ("served_at", None, "no value", "served_at: no time"),
    ("served_at", "soon", "'soon', not a time, allowed are times", "served_at: not a time"),
    ("served_at", "1066-10-14", "outside 1990 to 2100", "served_at: outside 1990 to 2100"),
    ("served_at", "infinity", "outside 1990 to 2100", "served_at: outside 1990 to 2100"),
    ("clicked", 2, "2', no label, allowed are 0, 1, true and false", "clicked: no label"),
    ("clicked", None, "no value, allowed are 0, 1", "clicked: no label"),
]
NUMBERS = [
    ("user_id", BIG, "too large, allowed are integers of 64 signed bits", "user_id: too large"),
    ("user_id", 1.5, "not a whole number", "user_id: not a whole number"),
]


@pytest.mark.parametrize(("column", "value", "said", "reason"), VALUES + NUMBERS)
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_value_that_cannot_be_used(posts: Path, column: str, value: Any, said: str, reason: str, ending: str) -> None:
    content = rows()
    for number in (11, 17):
        content[number][column] = value
    write(posts / f"impressions.{ending}", content)
    place = {"jsonl": "record 12", "parquet": r"row 12 (row group 1)"}.get(ending, "row 12")
    message = stops(config(posts))
    assert message.startswith(f"{posts / f'impressions.{ending}'}, {place}: column {column}: found ")
    assert said.replace("2'", "2") in message.replace("'2'", "2")
    assert "(2 such rows; `log.on_error: skip` leaves them out)" in message
    log, kept = skips(config(posts))
    assert kept == tuples(content[:11] + content[12:17] + content[18:])
    assert [(s.table, s.file.name, s.reason, s.rows) for s in log.skipped] == [
        ("impressions", f"impressions.{ending}", reason, 2)
    ]
    assert log.skipped_line() == f"skipped 2 rows of the log: impressions.{ending} 2 ({reason})"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_numbers_that_are_not_finite(posts: Path, value: float, ending: str) -> None:
    for column, plain in (("user_id", float), ("served_at", lambda n: float(SECONDS + 3600 * n))):
        content = [{**row, column: plain(n)} for n, row in enumerate(rows())]
        content[11][column] = value
        if column == "user_id":
            content = [{**row, "served_at": SECONDS + 3600 * n} for n, row in enumerate(content)]
        write(posts / f"impressions.{ending}", content)
        message = stops(config(posts, time_unit="s"))
        assert "row 12" in message
        assert f"column {column}: found {value!r}".replace("'", "") in message.replace("'", "")
        assert "not a finite number" in message
        log, kept = skips(config(posts, time_unit="s"))
        assert (len(kept), [s.reason for s in log.skipped]) == (19, [f"{column}: not a finite number"])


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_text_ids_that_are_empty(posts: Path, ending: str) -> None:
    content = [{**row, "user_id": f"u{row['user_id']}"} for row in rows()]
    content[4]["user_id"] = ""
    write(posts / f"impressions.{ending}", content)
    assert "column user_id: found no value, allowed is an id in every row" in stops(config(posts))
    assert skips(config(posts))[1] == tuples(content[:4] + content[5:])


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.timestamp("ms", "Asia/Tokyo")])
def test_timestamps_that_are_no_times_of_a_log(posts: Path, kind: pa.DataType) -> None:
    # The year 34000, which Python has no name for.
    seconds = pa.array([SECONDS, 10**12, SECONDS]).cast(pa.timestamp("s", kind.tz)).cast(kind)
    table = pa.Table.from_pylist(rows(3)).set_column(2, "served_at", seconds)
    pq.write_table(table, posts / "impressions.parquet")
    assert "row 2 (row group 0): column served_at: found '33658-" in stops(config(posts))
    assert len(skips(config(posts))[1]) == 2


def test_floats_that_cannot_tell_two_ids_apart(posts: Path) -> None:
    content = [{**row, "user_id": float(n)} for n, row in enumerate(rows())]
    content[3]["user_id"] = float(2**60)
    write(posts / "impressions.parquet", content)
    assert "too large, allowed are integers of 64 signed bits (floats up to 2^53)" in stops(config(posts))


def test_unsigned_ids_that_overflow(posts: Path) -> None:
    table = pa.Table.from_pylist(rows(3)).set_column(0, "user_id", pa.array([1, 2, BIG], pa.uint64()))
    pq.write_table(table, posts / "impressions.parquet")
    assert f"row 3 (row group 0): column user_id: found {BIG}, too large" in stops(config(posts))


def test_times_that_are_numbers_one_of_which_is_not(posts: Path) -> None:
    content = [{**row, "served_at": SECONDS + 3600 * n} for n, row in enumerate(rows())]
    content[4]["served_at"] = "soon"
    content[6]["served_at"] = 12
    write(posts / "impressions.csv", content)
    assert "row 5: column served_at: found 'soon', not a time" in stops(config(posts, time_unit="s"))
    log, kept = skips(config(posts, time_unit="s"))
    assert len(kept) == 18
    reasons = {s.reason: s.rows for s in log.skipped}
    assert reasons == {"served_at: not a time": 1, "served_at: outside 1990 to 2100": 1}


@pytest.mark.parametrize(
    ("table", "row", "said"),
    [
        ("posts", {"post_id": 7, "author_id": 1.5}, "author_id: found '1.5', not a whole number"),
        ("posts", {"post_id": 7, "author_id": 9, "created_at": "x"}, "created_at: found 'x', not a time"),
        ("posts", {"post_id": None, "author_id": 9}, "post_id: found no value, allowed is an id in every row"),
        ("users", {"user_id": None}, "user_id: found no value"),
        ("follows", {"user_id": 1, "followed_id": None}, "followed_id: found no value"),
        ("engagements", {"user_id": 1, "post_id": 1, "type": None, "engaged_at": "2026-01-02"}, "type: found no value"),
        ("engagements", {"user_id": 1, "post_id": 1, "type": "x", "engaged_at": "2"}, "engaged_at: found '2', not a"),
    ],
)
def test_every_table_is_looked_at(posts: Path, table: str, row: dict[str, Any], said: str) -> None:
    good = {"user_id": 1, "post_id": 1, "author_id": 9, "type": "like", "followed_id": 9, "engaged_at": "2026-01-02"}
    write(posts / "impressions.jsonl", rows())
    write(posts / "engagements.jsonl", [good])
    other = [{**{k: good.get(k) for k in row}, "post_id": p, "user_id": p} for p in range(5)]
    write(posts / f"{table}.jsonl", [*other, row])
    message = stops(config(posts, labels=()))
    assert f"{table}.jsonl, record 6: column {said}" in message
    log, kept = skips(config(posts, labels=("clicked",) if table != "engagements" else ()))
    assert [(s.table, s.rows) for s in log.skipped] == [(table, 1)]
    assert len(kept) == 20


def test_two_rows_of_one_post(posts: Path) -> None:
    twice = [{**row, "impression_id": n % 18} for n, row in enumerate(rows())]
    write(posts / "impressions.csv", twice)
    assert "found impression_id 0 in two different rows" in stops(config(posts))
    write(posts / "posts.jsonl", [{"post_id": p, "author_id": a} for p in range(5) for a in (9, 8) if p < 2 or a == 9])
    write(posts / "impressions.csv", rows())
    said = "posts.jsonl, record 2: found two different rows of post_id 0, allowed is one (2 such rows"
    assert said in stops(config(posts))
    write(posts / "impressions.csv", twice)
    with open_log(config(posts, on_error="skip")) as log:
        assert log.connection.execute("SELECT author_id FROM posts ORDER BY post_id").fetchall() == [
            (8,), (8,), (9,), (9,), (9,)
        ]  # fmt: skip
        assert {s.reason: s.rows for s in log.skipped} == {
            "post_id: another row of the same": 2,
            "impression_id: another row of the same": 2,
        }
        assert log.connection.execute("SELECT count(*), max(row) FROM impressions").fetchone() == (18, 17)


# Files.


def test_lines_that_are_no_rows(posts: Path) -> None:
    path = posts / "impressions.csv"
    write(path, rows())
    lines = path.read_bytes().splitlines()
    lines[5], lines[9], lines[12] = b"1,2", b"1,2,2026-01-01,0,5", b"1,\xff,2026-01-01,0"
    path.write_bytes(b"\n".join(lines))
    message = stops(config(posts))
    assert f"{path}, line 6: not a row (Expected Number of Columns: 4 Found: 2)" in message
    log, kept = skips(config(posts))
    content = rows()
    assert kept == tuples(content[:4] + content[5:8] + content[9:11] + content[12:])
    assert sorted((s.reason, s.rows) for s in log.skipped) == [
        ("invalid encoding", 1), ("missing columns", 1), ("too many columns", 1)
    ]  # fmt: skip


def test_lines_that_are_no_objects(posts: Path) -> None:
    path = posts / "impressions.jsonl"
    write(path, rows())
    lines = path.read_text().splitlines()
    lines[5], lines[9], lines[12] = "{not json", "[1, 2]", "7"
    path.write_text("\n".join(lines))
    assert f"{path}, record 6: found text that is no JSON, allowed is one object a line (3 such" in stops(config(posts))
    log, kept = skips(config(posts))
    assert len(kept) == 17
    assert [s.rows for s in log.skipped] == [3]


def break_row_group(path: Path, number: int) -> None:
    """Overwrite the data of a column chunk of a row group."""
    column = pq.read_metadata(path).row_group(number).column(2)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)


def test_a_row_group_that_is_broken(posts: Path) -> None:
    for number in range(3):
        write(posts / "impressions" / f"{number}.parquet", rows()[number::3])
    path = posts / "impressions" / "1.parquet"
    pq.write_table(pa.Table.from_pylist(rows()[1::3]), path, row_group_size=3)
    break_row_group(path, 1)
    assert f"{path}: row group 1 is not readable (" in stops(config(posts))
    log, kept = skips(config(posts))
    content = rows()
    lost = content[1::3][3:6]
    assert kept == tuples([row for row in content if row not in lost])
    assert [(s.file, s.rows) for s in log.skipped] == [(path, 3)]


@pytest.mark.parametrize("ending", ["csv.gz", "parquet"])
def test_a_truncated_file(posts: Path, ending: str) -> None:
    content = rows(400)
    for number in range(3):
        write(posts / "impressions" / f"{number}.{ending}", content[number::3])
    path = posts / "impressions" / f"1.{ending}"
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path}: not a readable" in stops(config(posts))
    log, kept = skips(config(posts))
    assert kept == tuples(content[0::3] + content[2::3])
    assert [(s.file, s.rows) for s in log.skipped] == [(path, None)]
    assert log.skipped_line().startswith(f"skipped 1 file of the log: 1.{ending} (not a readable")


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "csv.zst", "tsv", "jsonl", "jsonl.gz", "parquet"])
def test_a_file_of_something_else(posts: Path, ending: str) -> None:
    path = posts / f"impressions.{ending}"
    path.write_bytes(b"\x00\x01 this is\xff no table \n\n\n")
    assert stops(config(posts)).startswith(str(path))
    with pytest.raises(DataError, match=r"impressions"), open_log(config(posts, on_error="skip")):
        pass


def test_a_shard_that_is_missing(posts: Path) -> None:
    for number in (0, 1, 3):
        write(posts / "impressions" / f"part-{number:05}-of-00004.csv", rows()[number::4])
    path = posts / "impressions" / "part-00002-of-00004.csv"
    assert f"{path}: no such file, but the names of the others say that it must be there" in stops(config(posts))
    log, kept = skips(config(posts))
    assert [(s.file, s.rows) for s in log.skipped] == [(path, None)]
    assert len(kept) == 15
    write(path, rows()[2::4])
    with open_log(config(posts)) as log:
        assert log.rows == 20


def test_shards_counted_from_1_and_links_to_nowhere(posts: Path) -> None:
    for number in (1, 2):
        write(posts / "impressions" / f"part-{number}-of-2.csv", rows()[number::2])
    with open_log(config(posts)) as log:
        assert log.rows == 19
    (posts / "impressions" / "more.csv").symlink_to("gone.csv")
    assert "more.csv: not a readable CSV file" in stops(config(posts))
    assert log_fingerprint(config(posts))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["user_id", "served_at"])
def test_a_column_whose_type_is_another_in_one_file(posts: Path, ending: str, column: str) -> None:
    usual, odd = (lambda n: n % 3, lambda n: f"u{n}") if column == "user_id" else (
        lambda n: SECONDS + 3600 * n, lambda n: rows(n + 1)[n]["served_at"])  # fmt: skip
    content = [{**row, column: (odd if n % 4 == 1 else usual)(n)} for n, row in enumerate(rows())]
    if column == "user_id":
        content = [{**row, "served_at": SECONDS + 3600 * n} for n, row in enumerate(content)]
    for number in range(4):
        write(posts / "impressions" / f"{number}.{ending}", content[number::4])
    path = posts / "impressions" / f"1.{ending}"
    message = stops(config(posts, time_unit="s"))
    assert message.startswith(f"{path}: column {column} has text, but in 0.{ending} it has numbers, allowed is ")
    log, kept = skips(config(posts, time_unit="s"))
    assert len(kept) == 15
    assert [(s.file, s.rows) for s in log.skipped] == [(path, 5)]


def test_a_column_that_one_file_lacks(posts: Path) -> None:
    for number in range(3):
        write(posts / "impressions" / f"{number}.csv", rows()[number::3])
    path = posts / "impressions" / "1.csv"
    write(path, [{k: v for k, v in row.items() if k != "post_id"} for row in rows()[1::3]])
    assert f"{path}: lacks the column post_id" in stops(config(posts))
    log, kept = skips(config(posts))
    assert (len(kept), [s.rows for s in log.skipped]) == (13, [7])


def test_when_nothing_is_left(posts: Path) -> None:
    write(posts / "impressions.csv", rows(served_at="soon"))
    with pytest.raises(DataError, match=r"impressions is empty after 20 rows were skipped"):
        skips(config(posts))


def test_a_wrong_unit_is_no_fault_of_the_rows(posts: Path) -> None:
    write(posts / "impressions.csv", [{**row, "served_at": SECONDS + n} for n, row in enumerate(rows())])
    with pytest.raises(DataError, match=r"with time_unit ms.*they look like s"):
        skips(config(posts, time_unit="ms"))


def test_kinds_of_files_that_cannot_be_mixed(posts: Path) -> None:
    write(posts / "impressions" / "a.csv", rows()[:10])
    write(posts / "impressions" / "b.jsonl", rows()[10:])
    assert "found the ending '.jsonl'" in stops(config(posts))
    write(posts / "impressions.csv", rows())
    assert "found impressions.csv and impressions/, allowed is one impressions table" in stops(config(posts))
    (posts / "readme.txt").write_text("hello")
    changed = LogConfig(path=posts, posts=TableConfig(file="readme.txt"))
    (posts / "impressions.csv").unlink()
    (posts / "impressions" / "b.jsonl").unlink()
    write(posts / "engagements.jsonl", [{"user_id": 1, "post_id": 1, "type": "x", "engaged_at": "2026-01-02"}])
    assert "readme.txt: found the ending '.txt', allowed for the table posts is one of .parquet" in stops(changed)


def test_types_that_are_no_ids_or_times(posts: Path) -> None:
    write(posts / "impressions.parquet", rows(user_id=True))
    assert "column user_id: found ids of type BOOLEAN, allowed are integers and text" in stops(config(posts))
    write(posts / "impressions.parquet", rows(served_at=[1]))
    assert "column served_at: found times of type BIGINT[], allowed are ISO text" in stops(config(posts))
    write(posts / "impressions.parquet", rows(user_id=None))
    assert "column user_id: found no value" in stops(config(posts))


@pytest.mark.parametrize("byte", [-7, 40])
def test_a_flipped_byte_of_a_gzip_file(posts: Path, byte: int) -> None:
    content = rows(400)
    for number in range(2):
        write(posts / "impressions" / f"{number}.csv.gz", content[number::2])
    path = posts / "impressions" / "1.csv.gz"
    plain = gzip.decompress(path.read_bytes())
    damaged = bytearray(gzip.compress(plain, 0))  # stored, so that a flipped byte is another digit and nothing else
    damaged[byte if byte < 0 else damaged.index(b"0,1,2026")] ^= 1
    path.write_bytes(damaged)
    assert f"{path}: not a readable gzip file (CRC" in stops(config(posts))
    _, kept = skips(config(posts))
    assert kept == tuples(content[::2])


def test_a_quote_that_does_not_end_is_counted_with_the_lines_it_takes(posts: Path) -> None:
    content = [row | {"note": "x"} for row in rows(200)]
    content[50]["note"] = '"x'
    write(posts / "impressions.csv", content)
    said = stops(config(posts))
    assert "line 52: not a row (Value with unterminated quote" in said
    assert "150 such rows" in said
    log, kept = skips(config(posts))
    assert kept == tuples([{k: row[k] for k in NAMES} for row in content[:50]])
    assert [s.rows for s in log.skipped] == [150]


def test_a_line_too_long_for_a_row(posts: Path) -> None:
    content = [row | {"note": "x"} for row in rows()]
    content[7]["note"] = "x" * 3_000_000
    write(posts / "impressions.csv", content)
    assert "line 9: not a row (Maximum line size" in stops(config(posts))
    log, kept = skips(config(posts))
    assert len(kept) == 19
    assert [s.rows for s in log.skipped] == [1]


def test_line_ends_of_several_kinds(posts: Path) -> None:
    write(posts / "impressions.csv", rows())
    path = posts / "impressions.csv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n", 5))
    assert "lines end in CR LF and in LF, allowed is one of them" in stops(config(posts))
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r"))
    assert skips(config(posts))[1] == tuples(rows())


def test_names_that_the_database_has_itself(posts: Path) -> None:
    content = [row | {"rowid": "x", "is_duplicate": 1, "n": 2} for row in rows()]
    write(posts / "impressions.csv", [*content, content[3]])
    log, kept = skips(config(posts))
    assert kept == tuples(rows())
    assert log.duplicates == 1
    content[7]["served_at"] = "soon"
    write(posts / "impressions.csv", content)
    assert "impressions.csv, row 8: column served_at: found 'soon'" in stops(config(posts))
    write(posts / "impressions.csv", [row | {"__file": 1} for row in rows()])
    assert "has the column '__file'" in stops(config(posts))


def test_binary_ids_that_are_empty(posts: Path) -> None:
    table = pa.Table.from_pylist(rows())
    ids = pa.array([b"" if n == 7 else b"u%d" % n for n in range(20)])
    pq.write_table(table.set_column(0, "user_id", ids), posts / "impressions.parquet")
    assert "row 8 (row group 0): column user_id: found b'', no id" in stops(config(posts))
    assert len(skips(config(posts))[1]) == 19


def test_lengths_of_time_are_no_times(posts: Path) -> None:
    table = pa.Table.from_pylist(rows())
    times = pa.array([timedelta(hours=n) for n in range(20)])
    pq.write_table(table.set_column(2, "served_at", times), posts / "impressions.parquet")
    assert "column served_at: found times of type" in stops(config(posts))


def test_a_name_with_a_date_for_the_number_of_files(posts: Path) -> None:
    write(posts / "impressions" / "part-1-of-20260101.csv", rows())
    assert "part-0-of-20260101.csv: no such file" in stops(config(posts))
    log, kept = skips(config(posts))
    assert kept == tuples(rows())
    assert len(log.skipped) == 1000


def test_files_by_an_absolute_glob_or_a_wrong_one(posts: Path) -> None:
    write(posts / "days" / "1.csv", rows())
    assert skips(config(posts, file=f"{posts}/d*/*.csv"))[1] == tuples(rows())
    assert skips(config(posts, file="../log/days/[0-9].csv"))[1] == tuples(rows())
    assert "no such file" in stops(config(posts, file="days/**x["))


def test_a_second_row_of_an_impression_is_named_where_it_is(posts: Path) -> None:
    content = [row | {"impression_id": n} for n, row in enumerate(rows())]
    write(posts / "impressions" / "1.csv", content[:10])
    write(posts / "impressions" / "2.csv", [*content[10:], content[3] | {"user_id": 2}])
    said = stops(config(posts))
    assert said.startswith(f"{posts / 'impressions' / '2.csv'}, row 11: found impression_id 3 in two different rows")
