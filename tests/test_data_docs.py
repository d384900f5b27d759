"""The worked example of docs/data.md works, command by command."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tml.cli import app
from tml.core.errors import DataError

DOCS = Path(__file__).parents[1] / "docs" / "data.md"


def test_bring_your_own_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = DOCS.read_text()
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    suggested, config = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("feed.py").write_text(script)
    Path("feed.yaml").write_text(config)
    subprocess.run([sys.executable, "feed.py"], check=True)

    def tml(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments)

    done = tml("data", "check", "feed")
    assert isinstance(done.exception, DataError)
    assert suggested.strip() in done.stdout
    assert "seconds_read looks like an outcome" in done.stdout
    done = tml("data", "check", "feed.yaml", "--html", "check.html")
    assert done.exit_code == 0
    assert Path("check.html").is_file()
    done = tml("run", "feed.yaml", "--set", "recap.batch_size=256", "--set", "twhin.epochs=2")
    assert done.exit_code == 0
    assert "is_saved" in done.stdout
    assert Path("runs/feed/report.html").is_file()


def test_the_commands_of_the_page_exist() -> None:
    verbs = {*re.findall(r"^    tml (data \w+|\w+)", DOCS.read_text(), re.MULTILINE)}
    assert verbs == {"data check", "data convert", "run"}
    for verb in verbs:
        assert f"Example: tml {verb}" in CliRunner().invoke(app, [*verb.split(), "--help"]).stdout
