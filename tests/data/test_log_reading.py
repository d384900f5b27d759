"""What a log may look like: every format, id and time reads to the same tables, in an order that is the log's alone."""

import gzip
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tml.core.errors import DataError
from tml.data.config import ImpressionsConfig, LogConfig, TableConfig
from tml.data.log import open_log

START = datetime(2026, 1, 1)
SECONDS = 1_767_225_600  # the same since 1970

Rows = list[dict[str, Any]]


def write_csv(path: Path, rows: Rows, delimiter: str = ",") -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    lines = [delimiter.join(rows[0])] + [delimiter.join("" if v is None else str(v) for v in r.values()) for r in rows]
    text = "".join(f"{line}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def write_jsonl(path: Path, rows: Rows) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))


def write_zst(path: Path, text: str) -> None:
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(text.encode())


def posts(folder: Path, ids: list[Any] | None = None) -> None:
    write_csv(folder / "posts.csv", [{"post_id": p, "author_id": 9} for p in ids or range(5)])


def impressions(folder: Path, select: str = "user_id, post_id, served_at", **changes: Any) -> list[tuple[Any, ...]]:
    config = LogConfig(path=folder, impressions=ImpressionsConfig(**{"labels": ("clicked",), **changes}))
    with open_log(config) as log:
        return log.connection.execute(f"SELECT {select} FROM impressions ORDER BY row").fetchall()


def rows_of(times: list[Any], **columns: Any) -> Rows:
    return [{"user_id": n % 2, "post_id": n, "served_at": t, "clicked": n % 2, **columns} for n, t in enumerate(times)]


EXACT = [START + timedelta(microseconds=m) for m in (0, 123_456, 1_999_999)]


@pytest.mark.parametrize(
    ("unit", "times"),
    [
        ("us", [SECONDS * 10**6 + m for m in (0, 123_456, 1_999_999)]),
        ("ms", [f"{SECONDS}000", f"{SECONDS}123.456", f"{SECONDS + 1}999.999"]),
        ("s", [f"{SECONDS}", f"{SECONDS}.123456", f"{SECONDS + 1}.999999"]),
        (None, [t.isoformat() for t in EXACT]),
        (None, [t.isoformat(sep=" ") + "+00:00" for t in EXACT]),
        (None, [t.replace(tzinfo=UTC).isoformat().replace("+00:00", "Z") for t in EXACT]),
        (None, [(t + timedelta(hours=8)).isoformat() + "+08:00" for t in EXACT]),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl", "tsv"])
def test_times_of_every_kind_are_exact(folder: Path, unit: Any, times: list[Any], ending: str) -> None:
    posts(folder)
    path = folder / f"impressions.{ending}"
    if ending == "jsonl":
        write_jsonl(path, rows_of(times))
    else:
        write_csv(path, rows_of(times), "\t" if ending == "tsv" else ",")
    found = impressions(folder, time_unit=unit)
    assert [row[2] for row in found] == EXACT


@pytest.mark.parametrize(
    ("kind", "unit"),
    [(pa.timestamp(u, z), None) for u in ("s", "ms", "us", "ns") for z in (None, "UTC", "Asia/Tokyo")]
    + [(pa.int64(), "s"), (pa.uint64(), "s"), (pa.float64(), "s"), (pa.decimal128(30, 3), "s"), (pa.date32(), None)],
)
def test_times_of_every_parquet_type(folder: Path, kind: pa.DataType, unit: Any) -> None:
    posts(folder)
    table = pa.Table.from_pylist(rows_of([SECONDS] * 3))
    stamps = pa.array([SECONDS] * 3, pa.int64())
    if pa.types.is_temporal(kind):
        stamps = stamps.cast(pa.timestamp("s", getattr(kind, "tz", None)))
    stamps = stamps.cast(kind)
    pq.write_table(table.set_column(2, "served_at", stamps), folder / "impressions.parquet")
    assert [row[2] for row in impressions(folder, time_unit=unit)] == [START] * 3


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([7, 8, 9], pa.int8()), [7, 8, 9]),
        (pa.array([7, 8, 9], pa.uint64()), [7, 8, 9]),
        (pa.array([7.0, 8.0, 9.0], pa.float32()), [7, 8, 9]),
        (pa.array([7.0, 8.0, 2.0**53]), [7, 8, 2**53]),
        (pa.array([7, 8, 9], pa.decimal128(20, 0)), [7, 8, 9]),
        (pa.array([Decimal(7), Decimal(8), Decimal(2**62 + 1)], pa.decimal128(38, 0)), [7, 8, 2**62 + 1]),
        (pa.array([UUID(int=n).bytes for n in (7, 8, 9)], pa.uuid()), [str(UUID(int=n)) for n in (7, 8, 9)]),
        (pa.array(["7", "8", "9"], pa.string_view()), ["7", "8", "9"]),
        (pa.array(["7", "8", "9"]), ["7", "8", "9"]),
        (pa.array(["7", "8", "9"]).dictionary_encode(), ["7", "8", "9"]),
        (pa.array([b"7", b"8", b"\xff"]), ["7", "8", r"\xFF"]),
    ],
)
def test_ids_of_every_parquet_type(folder: Path, ids: pa.Array, expected: list[Any]) -> None:
    posts(folder)
    table = pa.Table.from_pylist(rows_of([START] * 3)).set_column(0, "user_id", ids)
    pq.write_table(table, folder / "impressions.parquet")
    pq.write_table(pa.table({"user_id": ids}), folder / "users.parquet")
    write_csv(folder / "posts.csv", [{"post_id": p, "author_id": None} for p in range(3)])
    assert sorted(row[0] for row in impressions(folder)) == sorted(expected)
    with open_log(LogConfig(path=folder, impressions=ImpressionsConfig(labels=("clicked",)))) as log:
        joined = log.connection.execute("SELECT count(*) FROM impressions JOIN users USING (user_id)").fetchone()
    assert joined == (3,)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([7, 8, 9], [7, 8, 9]),
        (["7.0", "8.0", "9.0"], [7, 8, 9]),
        (["007", "7", "8"], ["007", "7", "8"]),
        (["7", "8", "u9"], ["7", "8", "u9"]),
        (["99999999999999999999", "7", "x"], ["7", "99999999999999999999", "x"]),
        ([-(2**63), 2**63 - 1, 0], [-(2**63), 2**63 - 1, 0]),
    ],
)
def test_ids_of_csv_are_integers_only_if_nothing_is_lost(folder: Path, ids: list[Any], expected: list[Any]) -> None:
    write_csv(folder / "posts.csv", [{"post_id": p, "author_id": None} for p in range(3)])
    write_csv(
        folder / "impressions.csv",
        [{**row, "user_id": i} for row, i in zip(rows_of([START] * 3), ids, strict=True)],
    )
    assert sorted(row[0] for row in impressions(folder)) == sorted(expected)


def test_ids_that_are_text_in_one_table_are_text_in_all(folder: Path) -> None:
    posts(folder)
    write_csv(folder / "impressions.csv", rows_of([START] * 4))
    write_jsonl(folder / "users.jsonl", [{"user_id": "0"}, {"user_id": "anna"}])
    found = impressions(folder)
    assert {row[0] for row in found} == {"0", "1"}
    assert {row[1] for row in found} == {0, 1, 2, 3}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_as_programs_write_it(folder: Path, delimiter: str) -> None:
    posts(folder)
    columns = ["", "user_id", "post_id", "served_at", "clicked", "said"]
    said = [f'a{delimiter}b', 'say ""hi""', "two\r\nlines", "plain"]  # fmt: skip
    lines = [delimiter.join(columns)]
    lines += [delimiter.join([str(n), "1", str(n), str(START), "true", f'"{text}"']) for n, text in enumerate(said)]
    (folder / "impressions.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    found = impressions(folder, "column0, user_id, clicked, said")
    assert found == [(n, 1, 1, text.replace('""', '"')) for n, text in enumerate(said)]


def test_types_of_other_columns_are_what_all_their_values_are(folder: Path) -> None:
    posts(folder)
    values = {"whole": [1, 2, -3], "number": [1, 0.5, None], "flag": ["true", "False", None], "text": ["1", "x", None]}
    rows = [{**row, **{k: v[n] for k, v in values.items()}} for n, row in enumerate(rows_of([START] * 3))]
    expected = {(1, 1.0, True, "1"), (2, 0.5, False, "x"), (-3, None, None, None)}
    write_csv(folder / "impressions.csv", rows)
    select = "whole, number, flag, text"
    assert {*impressions(folder, select)} == expected
    (folder / "impressions.csv").unlink()
    write_jsonl(
        folder / "impressions.jsonl", [{**row, "flag": n != 1 if n < 2 else None} for n, row in enumerate(rows)]
    )
    assert {*impressions(folder, select)} == expected


@pytest.mark.parametrize("values", [[0, 1, 0], [False, True, False], ["false", "TRUE", "0"], [0.0, 1.0, 0.0]])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_labels_are_0_and_1_however_they_are_written(folder: Path, values: list[Any], ending: str) -> None:
    posts(folder)
    rows = [{**row, "clicked": v} for row, v in zip(rows_of([START] * 3), values, strict=True)]
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "impressions.parquet")
    else:
        (write_csv if ending == "csv" else write_jsonl)(folder / f"impressions.{ending}", rows)
    assert impressions(folder, "user_id, clicked") == [(0, 0), (0, 0), (1, 1)]


def test_many_files_of_several_shapes_are_one_table(folder: Path) -> None:
    posts(folder)
    rows = rows_of([START + timedelta(hours=n) for n in range(6)])
    write_csv(folder / "impressions" / "day=1" / "a.csv", rows[:2])
    write_csv(folder / "impressions" / "day=1" / "b.csv.gz", [dict(reversed(row.items())) for row in rows[2:3]])
    write_csv(folder / "impressions" / "day=2" / "c.csv", [{**row, "extra": 5} for row in rows[3:4]], ";")
    write_zst(folder / "impressions" / "d.csv.zst", "user_id,post_id,served_at,clicked\n" + "".join(
        f"{r['user_id']},{r['post_id']},{r['served_at']},{r['clicked']}\n" for r in rows[4:]))  # fmt: skip
    (folder / "impressions" / "empty.csv").touch()
    (folder / "impressions" / "_SUCCESS").touch()
    (folder / "impressions" / ".part.csv").write_text("left behind")
    assert impressions(folder, "user_id, post_id, served_at, clicked, extra") == [
        (*row.values(), 5 if n == 3 else None) for n, row in enumerate(rows)
    ]


def test_columns_are_renamed_one_way_or_two(folder: Path) -> None:
    write_csv(folder / "films.csv", [{"film": p, "post_id": 100 + p} for p in range(4)])
    write_csv(folder / "impressions.csv", [{**row, "seen": row["served_at"]} for row in rows_of([START] * 4)])
    config = LogConfig(
        path=folder,
        impressions=ImpressionsConfig(labels=("clicked",), columns={"impressed_at": "seen"}),
        posts=TableConfig(file="films.csv", columns={"post_id": "film", "author_id": "film"}),
    )
    with open_log(config) as log:
        assert log.connection.execute("SELECT * FROM posts ORDER BY 1").fetchall() == [(p, p, None) for p in range(4)]
        assert log.connection.execute("SELECT DISTINCT impressed_at FROM impressions").fetchall() == [(START,)]


def test_names_that_sql_cannot_tell_apart(folder: Path) -> None:
    posts(folder)
    (folder / "impressions.csv").write_text("user_id,User_ID,post_id,served_at\n1,1,1,2026-01-01\n")
    with pytest.raises(DataError, match=r"impressions\.csv.*'user_id' and 'User_ID'.*upper and lower case"):
        impressions(folder, labels=())
    (folder / "impressions.csv").write_text("user_id,Row,post_id,served_at\n1,1,1,2026-01-01\n")
    with pytest.raises(DataError, match=r"column Row.*row_number: Row"):
        impressions(folder)


# Few values, so that duplicates and ties are the rule.
moment = st.integers(0, 12).map(lambda minutes: START + timedelta(minutes=20 * minutes))
impression = st.tuples(st.integers(0, 2), st.integers(0, 2), moment, st.sampled_from([None, "x", "y"]))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(impression, min_size=1, max_size=40), st.integers(0, 2**32 - 1))
def test_order_duplicates_sessions_and_positions_are_what_a_slow_reference_says(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    posts(folder)
    (folder / "engagements.jsonl").write_text(
        '{"user_id": 0, "post_id": 0, "type": "like", "engaged_at": "2026-01-02"}'
    )
    # However the rows lie in files, the table is the same.
    names = ("user_id", "post_id", "served_at", "client")
    shuffled = [dict(zip(names, rows[i], strict=True)) for i in np.random.default_rng(seed).permutation(len(rows))]
    kinds = pa.schema([("user_id", pa.int64()), ("post_id", pa.int32()), ("served_at", pa.timestamp("us")), ("client", pa.string())])  # fmt: skip  # noqa: E501
    (folder / "impressions").mkdir()
    for number, part in enumerate((shuffled[::2], shuffled[1::2])):
        pq.write_table(pa.Table.from_pylist(part, kinds), folder / "impressions" / f"{number}.parquet")
    with open_log(LogConfig(path=folder, session_gap_minutes=30)) as log:
        found = log.connection.execute(
            "SELECT row, served_at, user_id, post_id, client, session_id, position, impression_id FROM impressions"
        ).fetchall()
        assert log.duplicates == len(rows) - len(found)

    expected, last, sessions, sizes = [], {}, {}, {}
    in_order = sorted({*rows}, key=lambda row: (row[2], row[0], row[1], row[3] is None, row[3] or ""))
    for number, (user, post, at, client) in enumerate(in_order):
        new = user not in last or at - last[user][0] > timedelta(minutes=30)
        session = (user, 0) if user not in last else (user, last[user][1] + new)
        last[user] = (at, session[1])
        sessions.setdefault(session, None)
        expected.append([number, at, user, post, client, session, sizes.get(session, 0), number])
        sizes[session] = sizes.get(session, 0) + 1
    numbers = {session: n for n, session in enumerate(sorted(sessions))}
    assert found == [(*row[:5], numbers[row[5]], *row[6:]) for row in expected]
