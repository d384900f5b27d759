"""The README's config does what it says, on a log with the columns that it names."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml

README = Path(__file__).parents[1] / "README.md"


def write_log(folder: Path) -> None:
    """A log as JSON lines, of a feed where everyone clicks on what they like and likes one creator in two."""
    folder.mkdir()
    random = np.random.default_rng(0)
    start, span = 1_771_200_000_000, 20 * 86_400_000  # 16 February 2026, 20 days
    rows = []
    for at in np.sort(random.integers(0, span, 3000)):
        user, item = int(random.integers(40)), int(random.integers(60))
        likely = 0.6 if (user + item) % 2 else 0.1
        clicked = bool(random.random() < likely)
        liked = clicked and bool(random.random() < 0.4)
        rows.append({"user_id": f"u{user}", "item": item, "shown_ms": int(start + at), "clicked": int(clicked)})
        rows[-1]["liked"] = int(liked)
    tables = {
        "impressions": rows,
        "posts": [{"item": i, "creator": f"u{i % 7}", "topic": "ab"[i % 2]} for i in range(60)],
        "users": [{"user_id": f"u{i}", "country": "xy"[i % 2]} for i in range(40)],
    }
    for name, content in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))


def test_the_config_of_the_readme_runs(tml: Any, tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    write_log(tmp_path / "my-log")
    (tmp_path / "mine.yaml").write_text(block)
    small = ["--set", "recap.batch_size=128", "--set", "twhin.epochs=2", "--set", "twhin.batch_size=64"]
    done = tml("run", "mine.yaml", *small)
    assert done.returncode == 0, done.stderr
    assert "is_clicked" in done.stdout
    assert "Timeline of user u" in done.stdout
    assert "report: runs/mine/report.html" in done.stdout
    evaluation = json.loads((tmp_path / "runs" / "mine" / "evaluation.json").read_text())
    assert set(evaluation["tasks"]) == set(yaml.safe_load(block)["tasks"])
    assert evaluation["weights"] == {"is_clicked": 1.0, "is_liked": 5.0}
    assert evaluation["tasks"]["is_clicked"]["models"]["ranker"]["auc"] > 0.6


def test_the_verbs_of_the_readme_exist(tml: Any) -> None:
    verbs = {verb.strip() for verb in re.findall(r"`tml ((?:[a-z-]+ ?)+)[^`]*`", README.read_text())}
    assert len(verbs) >= 8
    for verb in sorted(verbs - {"command"}):
        assert tml(*verb.split(), "--help").returncode == 0, verb
