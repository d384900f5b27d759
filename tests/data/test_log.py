"""Opening a log: the formats, the units, what is put right, and what is refused with one sentence."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tml.core.errors import DataError
from tml.data.config import HistoryConfig, ImpressionsConfig, LogConfig, TableConfig
from tml.data.log import log_fingerprint, open_log

START = 1_767_225_600  # 2026-01-01 in seconds


def tables() -> dict[str, list[dict[str, Any]]]:
    return {
        "impressions": [
            {"user_id": u, "post_id": p, "served_at": START + 3600 * u + 60 * p} for u in range(3) for p in range(4)
        ],
        "engagements": [{"user_id": 0, "post_id": 1, "type": "like", "engaged_at": START + 100}],
        "posts": [{"post_id": p, "author_id": 10 + p % 2} for p in range(4)],
    }


def write(folder: Path, content: dict[str, list[dict[str, Any]]], ending: str = ".csv") -> None:
    for name, rows in content.items():
        table = pa.Table.from_pylist(rows)
        if ending == ".parquet":
            pq.write_table(table, folder / f"{name}.parquet")
            continue
        if ending.startswith(".jsonl"):
            text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        else:
            sink = pa.BufferOutputStream()
            pyarrow.csv.write_csv(table, sink)
            text = sink.getvalue().to_pybytes()
        (folder / f"{name}{ending}").write_bytes(gzip.compress(text) if ending.endswith(".gz") else text)


def config(folder: Path, unit: str | None = "s", **changes: Any) -> LogConfig:
    given = {
        "impressions": ImpressionsConfig(time_unit=unit),
        "engagements": TableConfig(time_unit=unit),
        **changes,
    }
    return LogConfig(path=folder, **given)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet"])
def test_the_formats_read_alike(folder: Path, ending: str) -> None:
    write(folder, tables(), ending)
    with open_log(config(folder)) as log:
        assert (log.rows, log.duplicates) == (12, 0)
        assert log.start == datetime(2026, 1, 1)
        assert log.end == datetime(2026, 1, 1, 2, 3)
        assert log.engagement_types() == ["like"]
        found = log.connection.execute("SELECT row, impression_id, position FROM impressions ORDER BY row").fetchall()
    assert found == [(row, row, row % 4) for row in range(12)]


def test_many_files_string_ids_and_text_times(folder: Path) -> None:
    content = tables()
    for name in ("impressions", "engagements"):
        time = "served_at" if name == "impressions" else "engaged_at"
        for row in content[name]:
            row["user_id"] = f"u{row['user_id']}"
            row[time] = datetime.fromtimestamp(row[time], UTC).isoformat()
    write(folder, {name: rows for name, rows in content.items() if name != "impressions"})
    (folder / "impressions").mkdir()
    write(folder / "impressions", {"a": content["impressions"][:5], "b": content["impressions"][5:]})
    with open_log(config(folder, unit=None)) as log:
        assert log.rows == 12
        assert log.start == datetime(2026, 1, 1)
        first = log.connection.execute("SELECT user_id FROM impressions WHERE row = 0").fetchone()
    assert first == ("u0",)


def test_exact_duplicates_are_dropped_and_inline_labels_become_engagements(folder: Path) -> None:
    content = tables()
    del content["engagements"]
    for number, row in enumerate(content["impressions"]):
        row["is_click"] = number % 2
    content["impressions"] += content["impressions"][:3]
    write(folder, content)
    with open_log(config(folder, impressions=ImpressionsConfig(time_unit="s", labels=("is_click",)))) as log:
        assert (log.rows, log.duplicates) == (12, 3)
        found = log.connection.execute("SELECT count(*), min(engaged_at - served_at) FROM engagements "
                                       "JOIN impressions USING (user_id, post_id)").fetchone()  # fmt: skip
    assert found is not None
    assert found[0] == 6
    assert found[1].total_seconds() == 0


def test_a_session_ends_after_a_pause(folder: Path) -> None:
    write(folder, tables())
    with open_log(config(folder, session_gap_minutes=0.5)) as log:
        assert log.connection.execute("SELECT count(DISTINCT session_id) FROM impressions").fetchone() == (12,)
    with open_log(config(folder, session_gap_minutes=1)) as log:
        assert log.connection.execute("SELECT count(DISTINCT session_id) FROM impressions").fetchone() == (3,)


def test_history_is_renamed_and_must_lie_before(folder: Path) -> None:
    write(folder, {**tables(), "history": [{"user_id": 0, "post_id": 1, "type": "watch"}]})
    early = HistoryConfig(ended_at=datetime(2025, 12, 31), relations={"watch": "like"})
    with open_log(config(folder, history=early)) as log:
        assert log.connection.execute("SELECT type FROM history").fetchall() == [("like",)]
    late = HistoryConfig(ended_at=datetime(2026, 1, 2))
    with (
        pytest.raises(DataError, match=r"log\.history\.ended_at: found 2026-01-02.*2026-01-01"),
        open_log(config(folder, history=late)),
    ):
        pass


def test_the_fingerprint_follows_the_content(folder: Path) -> None:
    write(folder, tables())
    before = log_fingerprint(config(folder))
    write(folder, tables())
    assert log_fingerprint(config(folder)) == before
    changed = tables()
    changed["posts"][0]["author_id"] = 99
    write(folder, changed)
    assert log_fingerprint(config(folder)) != before


def _change(name: str, **columns: Any) -> Any:
    def change(content: dict[str, list[dict[str, Any]]]) -> None:
        content[name] = [{**row, **columns} for row in content[name]]

    return change


def _drop(name: str, column: str) -> Any:
    def change(content: dict[str, list[dict[str, Any]]]) -> None:
        content[name] = [{k: v for k, v in row.items() if k != column} for row in content[name]]

    return change


@pytest.mark.parametrize(
    ("change", "unit", "parts"),
    [
        (lambda c: c.pop("posts"), "s", ["no posts table", "posts.parquet"]),
        (lambda c: c.pop("engagements"), "s", ["no engagements table"]),
        (_drop("impressions", "post_id"), "s", ["impressions.csv", "needs a column post_id", "user_id, served_at"]),
        (lambda _: None, "ms", ["served_at", "time_unit ms", "1990 to 2100", "look like s"]),
        (lambda _: None, "us", ["served_at", "time_unit us", "look like s"]),
        (_change("impressions", served_at=START * 1000), "s", ["served_at", "time_unit s", "look like ms"]),
        (lambda _: None, None, ["served_at", "without a unit", "s, ms or us", "look like s"]),
        (_change("impressions", served_at="soon"), "s", ["served_at", "'soon'", "allowed are times"]),
        (_change("posts", post_id=1), "s", ["posts.csv", "two different rows", "post_id"]),
        (_change("impressions", user_id=None), "s", ["user_id", "12 such rows"]),
        (_change("impressions", impression_id=7), "s", ["impression_id 7", "two different rows"]),
    ],
)
def test_a_wrong_log_gives_one_sentence(folder: Path, change: Any, unit: str | None, parts: list[str]) -> None:
    content = tables()
    change(content)
    write(folder, content)
    with pytest.raises(DataError) as error, open_log(config(folder, unit=unit)):
        pass
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_files_that_cannot_be_read_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"gone: no such folder \(log\.path\)"), open_log(config(folder / "gone")):
        pass
    write(folder, tables())
    (folder / "impressions.csv").write_text("")
    with pytest.raises(DataError, match=r"impressions\.csv"), open_log(config(folder)):
        pass
    (folder / "impressions.csv").write_text("user_id,post_id,served_at\n")
    with pytest.raises(DataError, match=r"impressions\.csv: the table impressions is empty"), open_log(config(folder)):
        pass
    (folder / "impressions.csv").unlink()
    (folder / "impressions.parquet").write_bytes(b"PAR1 this is no Parquet file PAR1")
    with pytest.raises(DataError, match=r"impressions\.parquet: not a readable"), open_log(config(folder)):
        pass


def test_columns_of_the_config_that_are_not_there(folder: Path) -> None:
    write(folder, tables())
    wrong = ImpressionsConfig(time_unit="s", columns={"user_id": "user_di"})
    with (
        pytest.raises(DataError, match=r"unknown column 'user_di'.*did you mean user_id"),
        open_log(config(folder, impressions=wrong)),
    ):
        pass
    inline = ImpressionsConfig(time_unit="s", labels=("is_like",))
    with (
        pytest.raises(DataError, match=r"unknown column 'is_like' \(log\.impressions\.labels\)"),
        open_log(config(folder, impressions=inline)),
    ):
        pass
    inline = ImpressionsConfig(time_unit="s", labels=("served_at",))
    with pytest.raises(DataError, match=r"served_at"), open_log(config(folder, impressions=inline)):
        pass
    with (
        pytest.raises(DataError, match=r"nope\.csv: no such file.*table posts"),
        open_log(config(folder, posts=TableConfig(file="nope.csv"))),
    ):
        pass
