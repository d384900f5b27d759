"""Progress where there is no terminal: a plain line now and then, and one at the end."""

import pytest

from tml.core import progress as module
from tml.core.progress import progress, track


def test_plain_lines_have_count_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PLAIN_INTERVAL_SECONDS", 0.0)
    with progress("count", total=1000, unit="items") as bar:
        bar.advance(10, "loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("count: 10 of 1,000 items, ")
    assert " items/s, " in lines[0]
    assert " s left, loss 0.5" in lines[0]
    assert lines[-1].startswith("count: 10 of 1,000 items, ")


def test_track_yields_everything_and_standard_output_stays_clean(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2, 3], "count", total=3)) == [1, 2, 3]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "count: 3 of 3 steps" in captured.err
