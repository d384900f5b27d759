"""Whatever lies in a log's files, it is a log or it is one sentence: never a crash, never a hang."""

import gzip
import io
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tml.core.errors import DataError
from tml.data.config import LogConfig
from tml.data.log import open_log

LONGEST_SECONDS = 20

LINES = [
    b"user_id,post_id,served_at,clicked",
    b'{"user_id": 1, "post_id": 2, "served_at": "2026-01-01", "clicked": 1}',
    b'{"user_id": "u", "post_id": null, "served_at": 1767225600, "clicked": NaN, "": {"a": [1e999]}}',
    b"1,2,2026-01-01,1",
    b'"1",2,"2026-01-01T00:00:00Z",true,',
    b'1,"2,3\n',
    b"99999999999999999999;nan;inf;2",
    b"\xff\xfe\x00u\x00s\x00e\x00r",
    b"",
]


def _parquet() -> bytes:
    table = pa.table({"user_id": [1, 2, 3], "post_id": ["a", "b", "c"], "served_at": ["2026-01-01"] * 3})
    sink = io.BytesIO()
    pq.write_table(table.append_column("clicked", [[1, 0, 1]]), sink, row_group_size=2)
    return sink.getvalue()


@st.composite
def mutations(draw: st.DrawFn, data: bytes) -> bytes:
    """A file with some of its bytes overwritten, or cut."""
    changed = bytearray(data)
    for at in draw(st.lists(st.integers(0, len(data) - 1), max_size=4)):
        changed[at] = draw(st.integers(0, 255))
    return bytes(changed[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))])


lines = st.lists(st.one_of(st.sampled_from(LINES), st.binary(max_size=20)), max_size=6).map(b"\n".join)
anything = st.one_of(st.binary(max_size=200), lines, lines.map(lambda some: LINES[0] + b"\n" + some))
ENDINGS = {
    ".csv": anything,
    ".tsv": anything,
    ".jsonl": anything,
    ".csv.gz": st.one_of(anything.map(gzip.compress), mutations(gzip.compress(b"\n".join(LINES * 9)))),
    ".jsonl.gz": st.one_of(anything.map(gzip.compress), anything),
    ".csv.zst": anything,
    ".parquet": st.one_of(anything, mutations(_parquet())),
}


def opened(folder: Path, on_error: str) -> str:
    """Open the log; the sentence that it was refused with, or none."""
    config = LogConfig.model_validate({"path": folder, "on_error": on_error, "impressions": {"labels": ("clicked",)}})
    try:
        with open_log(config) as log:
            assert log.rows > 0
            assert on_error == "skip" or not log.skipped
    except DataError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, ending: str, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("log")
    (folder / "posts.csv").write_text("post_id,author_id\n1,2\n")
    (folder / "impressions").mkdir()
    for number in range(data.draw(st.integers(1, 2))):
        (folder / "impressions" / f"{number}{ending}").write_bytes(data.draw(ENDINGS[ending]))
    start = time.monotonic()
    sentence = opened(folder, data.draw(st.sampled_from(["stop", "skip"])))
    assert time.monotonic() - start < LONGEST_SECONDS
    assert not sentence or sentence.startswith(str(folder))
    assert "\n" not in sentence
