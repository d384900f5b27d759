"""The page of a check: complete, self-contained, the same bytes for the same log, and safe with what is in the log."""

import re
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tml.core.errors import UserError
from tml.data.check import LogCheck, check_log
from tml.data.config import LogConfig
from tml.report.log_check import check_page, write_check

START = datetime(2026, 1, 1)
NASTY = "<script>alert('x')</script>"
VOID = {"meta", "link", "br", "wbr"}


class Page(HTMLParser):
    """Collects headings, text and addresses, and checks that every tag is closed in turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.text, self.addresses = "", []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.addresses += [value for name, value in attrs if name in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def write_log(folder: Path, own_name: bool = False) -> LogConfig:
    rows = [
        {"user_id": n % 9, "post_id": n % 5, "served_at": START + timedelta(hours=n), NASTY: n, "dwell": n % 2}
        for n in range(200)
    ]
    engaged = [
        {"user_id": r["user_id"], "post_id": r["post_id"], "type": NASTY, "engaged_at": r["served_at"]}
        for r in rows
        if r["dwell"]
    ]
    tables = {"impressions": rows, "engagements": engaged, "posts": [{"post_id": p, "author_id": 1} for p in range(4)]}
    for name, content in tables.items():
        pq.write_table(pa.Table.from_pylist(content), folder / f"{name}.parquet")
    if own_name:
        (folder / "posts.parquet").rename(folder / "videos.parquet")
    return LogConfig(path=folder)


@pytest.fixture
def check(folder: Path) -> LogCheck:
    return check_log(write_log(folder), datetime(2026, 3, 1))


def test_the_page_has_everything_and_asks_for_nothing(check: LogCheck) -> None:
    page = check_page(check)
    assert page == check_page(check)
    parsed = Page(page)
    assert parsed.headings == [
        "What to look at", "Impressions by day", "Engagements", "People and posts", "May be outcomes", "Tables"
    ]  # fmt: skip
    assert parsed.addresses == ["data:,"]
    assert NASTY not in page
    assert NASTY in parsed.text
    assert "A job can read this log as it is." in parsed.text
    for finding in check.findings:
        assert finding.what in parsed.text
        assert finding.advice in parsed.text
    # Bars of nine days, of activity, and a curve of delays.
    assert len(re.findall(r"<path [^>]*fill=\"var\(--ranker\)\"", page)) >= 9
    assert page.count("<svg") == 3


def test_a_log_that_cannot_be_read_as_it_is(folder: Path) -> None:
    check = check_log(write_log(folder, own_name=True), datetime(2026, 3, 1))
    parsed = Page(check_page(check))
    assert parsed.headings[0] == "A config that reads it"
    assert "file: videos.parquet" in parsed.text
    assert "A job cannot read this log as it is" in parsed.text


def test_a_log_of_hours_with_labels_inline(folder: Path) -> None:
    write_log(folder)
    rows = [
        {"user_id": n % 3, "post_id": n % 4, "served_at": START + timedelta(minutes=7 * n), "liked": n % 2}
        for n in range(100)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "impressions.parquet")
    config = LogConfig.model_validate({"path": folder, "impressions": {"labels": ["liked"]}})
    page = check_page(check_log(config, datetime(2026, 3, 1)))
    assert "Impressions by hour" in Page(page).headings
    assert page.count("<svg") == 2


def test_a_file_that_cannot_be_written(check: LogCheck, folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(UserError, match=r"file/check\.html: cannot be written, its folder cannot be made"):
        write_check(check, folder / "file" / "check.html")
