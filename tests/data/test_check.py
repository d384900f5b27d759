"""The check of a log: its figures against slow references, every planted fault, and what a wrong config gives."""

from collections import defaultdict
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from tml.core.errors import ConfigError, DataError
from tml.data.check import LogCheck, check_log, load_log_config
from tml.data.check_facts import DELAY_SHARES, QUANTILES
from tml.data.check_tables import CheckView, sparkline
from tml.data.config import ImpressionsConfig, LogConfig, TableConfig
from tml.data.log import open_log
from tml.data.suggest import suggestion_text

START = datetime(2026, 1, 1)
NOW = datetime(2026, 3, 1)


def make(rows: int = 3000, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """A log without a fault, as rows."""
    random = np.random.default_rng(seed)
    impressions, engagements = [], []
    times = np.sort(random.integers(0, 6 * 86_400, rows))
    for number, second in enumerate(times):
        at = START + timedelta(seconds=int(second))
        user, post, clicked = number // 5 % 60, int(random.integers(40)), bool(random.random() < 0.3)
        row = {"user_id": user, "post_id": post, "served_at": at, "session_id": number // 5}
        dwell = float(random.normal(3 if clicked else 0))
        impressions.append({**row, "dwell": dwell, "hour": at.hour, "promoted": bool(random.random() < 0.1)})
        for kind, chance in (("click", clicked), ("like", clicked and random.random() < 0.5)):
            if chance:
                late = at + timedelta(seconds=float(np.round(random.exponential(100), 3)))
                engagements.append({"user_id": user, "post_id": post, "type": kind, "engaged_at": late})
    posts = [{"post_id": p, "author_id": 1000 + p % 7, "created_at": START - timedelta(days=1)} for p in range(40)]
    users = [{"user_id": u} for u in range(60)]
    follows = [{"user_id": u, "followed_id": 1000 + u % 7} for u in range(60)]
    return {"impressions": impressions, "engagements": engagements, "posts": posts, "users": users, "follows": follows}


def write(folder: Path, content: dict[str, list[dict[str, Any]]]) -> None:
    for name, rows in content.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


def check(folder: Path, **changes: Any) -> LogCheck:
    return check_log(LogConfig(path=folder, **changes), NOW)


def test_figures_are_what_a_slow_reference_says(folder: Path) -> None:
    content = make()
    # Some that were never shown, some from before they were, some shown again.
    content["engagements"] += [
        {"user_id": 5, "post_id": 999, "type": "click", "engaged_at": START},
        *({**row, "engaged_at": START - timedelta(hours=1)} for row in content["engagements"][:7]),
    ]
    write(folder, content)
    facts = check(folder).facts

    shown = defaultdict(list)
    for row in content["impressions"]:
        shown[row["user_id"], row["post_id"]].append(row["served_at"])
    delays, positives = defaultdict(list), defaultdict(set)
    orphans = early = 0
    for row in content["engagements"]:
        pair = row["user_id"], row["post_id"]
        before = [at for at in shown[pair] if at <= row["engaged_at"]]
        if before:
            delays[row["type"]].append((row["engaged_at"] - max(before)).total_seconds())
            positives[row["type"]].add((*pair, max(before)))
        elif shown[pair]:
            early += 1
        else:
            orphans += 1
    assert (facts.counts["orphans"], facts.counts["engaged before shown"]) == (orphans, early)
    assert orphans == 1
    assert early >= 5
    for one in facts.engagements:
        assert one.positives == len(positives[one.type])
        assert one.events == sum(row["type"] == one.type for row in content["engagements"])
        expected = np.quantile(delays[one.type], DELAY_SHARES, method="inverted_cdf")
        np.testing.assert_allclose(one.delays, expected, atol=1e-6)
    activity = np.unique([row["user_id"] for row in content["impressions"]], return_counts=True)[1]
    np.testing.assert_array_equal(facts.activity, np.quantile(activity, QUANTILES, method="inverted_cdf"))
    assert sum(people for _, people in facts.activity_bins) == facts.people == 60
    assert facts.repeats == 3000 - sum(map(bool, shown.values()))
    days = defaultdict(int)
    for row in content["impressions"]:
        days[row["served_at"].date()] += 1
    assert {at.date(): count for at, count in facts.per_unit} == days
    assert facts.unit == "day"
    assert (facts.sessions, facts.own_sessions, facts.authors, facts.posts) == (600, True, 7, 40)


def test_outcomes_have_the_auc_that_scikit_learn_gives(folder: Path) -> None:
    content = make()
    for number, row in enumerate(content["impressions"]):
        # Ties, a column that says it by being missing, one that says it backwards.
        row["rounded_dwell"] = round(row["dwell"])
        row["sometimes"] = None if row["dwell"] < 2.5 else number % 3
        row["scroll_past"] = -row["dwell"]
    write(folder, content)
    facts = check(folder).facts
    clicked = {(row["user_id"], row["post_id"]) for row in content["engagements"] if row["type"] == "click"}
    assert len(clicked) > 500
    with open_log(LogConfig(path=folder)) as log:
        log.connection.execute("CREATE TABLE e AS SELECT *, CAST(engaged_at AS TIMESTAMP) AS t FROM engagements")
        rows = log.connection.execute(
            "SELECT i.dwell, i.rounded_dwell, coalesce(i.sometimes, -1), i.row IN (SELECT i2.row FROM e "
            "ASOF JOIN impressions i2 ON e.user_id = i2.user_id AND e.post_id = i2.post_id AND e.t >= i2.served_at "
            "WHERE e.type = 'click') FROM impressions i ORDER BY row"
        ).fetchall()
    values = np.array(rows, dtype=float)
    found = {outcome.column: outcome for outcome in facts.outcomes}
    for place, name in enumerate(("dwell", "rounded_dwell", "sometimes")):
        auc = roc_auc_score(values[:, 3], values[:, place])
        if name in found:
            assert found[name].engagement == "click"
            assert found[name].auc == pytest.approx(auc)
            assert found[name].is_suspicious == (auc >= 0.9)
        else:
            assert auc < 0.9
    assert found["scroll_past"].auc == pytest.approx(found["dwell"].auc)
    assert found["dwell"].is_suspicious
    assert "hour" not in found
    assert "promoted" not in found


def plant(name: str, content: dict[str, list[dict[str, Any]]]) -> None:
    impressions, engagements = content["impressions"], content["engagements"]
    late = NOW + timedelta(days=1)
    match name:
        case "duplicates":
            impressions += impressions[:11]
        case "future":
            for row in impressions[-9:]:
                row["served_at"] = late
        case "engagements of the future":
            engagements[0]["engaged_at"] = late
        case "order":
            impressions[100:200] = impressions[100:200][::-1]
        case "posts":
            del content["posts"][3]
        case "authors":
            content["posts"][3]["author_id"] = None
        case "created":
            content["posts"][3]["created_at"] = START + timedelta(days=3)
        case "users":
            del content["users"][7:9]
        case "follows":
            content["follows"].append({"user_id": 12345, "followed_id": 1000})
        case "gap":
            content["impressions"] = [row for row in impressions if row["served_at"].day != 3]
        case "few":
            engagements += [{**row, "type": "report"} for row in engagements[:5]]
        case "sessions":
            for number, row in enumerate(impressions):
                row["session_id"] = number
        case "several":
            impressions[5]["session_id"] = impressions[0]["session_id"]


@pytest.mark.parametrize(
    ("name", "level", "words"),
    [
        ("duplicates", "fine", "11 exact duplicates of impressions"),
        ("future", "wrong", "9 impressions are later than now (0.3%)"),
        ("engagements of the future", "wrong", "1 engagement is later than now"),
        ("order", "fine", "impressions come after a later one"),
        ("posts", "wrong", "impressions are of posts that the table posts lacks"),
        ("authors", "wrong", "1 post has no author (2.5%)"),
        ("created", "wrong", "impressions are older than their post"),
        ("users", "wrong", "2 viewers are not in the table users (3.3%)"),
        ("follows", "wrong", "1 follow is of or by people seen nowhere else (1.6%)"),
        ("gap", "odd", "no impression on 2026-01-03"),
        ("few", "odd", "report has fewer than 100 positives"),
        ("sessions", "odd", "sessions have 1.0 impressions in the mean"),
        ("several", "wrong", "1 session is of several people"),
    ],
)
def test_a_planted_fault_is_found_and_no_other(folder: Path, name: str, level: str, words: str) -> None:
    clean, content = make(), make()
    write(folder, clean)
    usual = {finding.what.split("(")[0] for finding in check(folder).findings}
    plant(name, content)
    write(folder, content)
    found = [finding for finding in check(folder).findings if finding.what.split("(")[0] not in usual]
    assert any(finding.level == level and words in finding.what for finding in found), found
    # Engagements that lost their impression may be missed, too; nothing else may be.
    rest = [
        f for f in found if words not in f.what and "shown" not in f.what and "older than their first" not in f.what
    ]
    assert [f for f in rest if "after a later one" not in f.what and "later than now" not in f.what] == []


def test_what_cannot_be_used_is_said_and_the_rest_is_looked_at(folder: Path) -> None:
    content = make()
    write(folder, content)
    (folder / "users.parquet").unlink()
    (folder / "users.jsonl").write_text('{"user_id": 1}\noops\n')
    result = check(folder)
    assert "users.jsonl, record 2: found text that is no JSON" in result.error
    assert not result.is_usable
    assert result.findings[0].what == "1 row of users.jsonl: text that is no JSON"
    assert "log.on_error: skip" in result.findings[0].advice
    result = check(folder, on_error="skip")
    assert result.is_usable
    assert result.findings[0].advice.startswith("left out, as log.on_error: skip says")


def test_gaps_in_the_numbers_of_files(folder: Path) -> None:
    content = make()
    write(folder, content)
    (folder / "impressions.parquet").unlink()
    (folder / "impressions").mkdir()
    for number, name in enumerate(("part-07", "part-08", "part-10", "part-11")):
        rows = content["impressions"][number::4]
        pq.write_table(pa.Table.from_pylist(rows), folder / "impressions" / f"{name}.parquet")
    assert any("no file part-09.parquet" in finding.what for finding in check(folder).findings)


@pytest.mark.parametrize("inline", [False, True])
def test_other_names_are_recognized_and_the_suggested_config_reads_the_log(folder: Path, inline: bool) -> None:
    content = make()
    if inline:
        liked = {(row["user_id"], row["post_id"]) for row in content.pop("engagements")}
        for row in content["impressions"]:
            row["is_like"] = int((row["user_id"], row["post_id"]) in liked)
    write(folder, content)
    labels = ImpressionsConfig(labels=("is_like",)) if inline else ImpressionsConfig()
    plain = check(folder, impressions=labels).facts
    for path in folder.iterdir():
        path.unlink()
    for row in content["impressions"]:
        ids = {"viewerId": row.pop("user_id"), "video_id": row.pop("post_id")}
        row |= {**ids, "ts": (row.pop("served_at") - datetime(1970, 1, 1)) // timedelta(milliseconds=1)}
    renamed = {
        "view_log": content["impressions"],
        "videos": [
            {"id": r["post_id"], "creator": r["author_id"], "upload_time": r["created_at"]} for r in content["posts"]
        ],
        "members": [{"uid": r["user_id"]} for r in content["users"]],
        "social_graph": [{"user": r["user_id"], "followee_id": r["followed_id"]} for r in content["follows"]],
    }
    if not inline:
        renamed["actions"] = [
            {"user": r["user_id"], "item_id": r["post_id"], "event": r["type"], "timestamp": r["engaged_at"]}
            for r in content["engagements"]
        ]
    write(folder, renamed)
    result = check(folder)
    assert "no impressions table" in result.error
    assert result.suggestion is not None
    assert result.suggestion.impressions.time_unit == "ms"
    assert result.facts.engagements == plain.engagements
    assert result.facts.per_unit == plain.per_unit
    assert [(t.name, t.kept) for t in result.facts.tables] == [(t.name, t.kept) for t in plain.tables]
    path = folder.parent / "suggested.yaml"
    path.write_text(suggestion_text(result.suggestion))
    assert check_log(load_log_config(path), NOW).is_usable


def test_where_there_is_nothing_to_suggest(folder: Path) -> None:
    (folder / "numbers.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no impressions table"):
        check(folder)


def test_a_log_is_named_by_its_folder_or_by_a_config(folder: Path, tmp_path: Path) -> None:
    assert load_log_config(folder) == LogConfig(path=folder)
    section = "path: my log\nposts: {file: p.csv}\n"
    job, alone = tmp_path / "job.yaml", tmp_path / "alone.yaml"
    alone.write_text(section)
    job.write_text("seed: 1\nnobody: knows\nlog:\n" + "".join(f"  {line}\n" for line in section.splitlines()))
    expected = LogConfig(path=Path("my log"), posts=TableConfig(file="p.csv"))
    assert load_log_config(job) == load_log_config(alone) == expected
    assert load_log_config(job, ["log.path=x"]).path == Path("x")
    assert load_log_config(alone, ["path=x"]).path == Path("x")
    job.write_text("log: {path: x, impresions: {}}")
    with pytest.raises(ConfigError, match=r"job\.yaml.*impresions.*did you mean impressions"):
        load_log_config(job)
    alone.write_text("simulator: {}")
    with pytest.raises(ConfigError, match=r"alone\.yaml.*a config of a job has a section log"):
        load_log_config(alone)
    with pytest.raises(ConfigError, match=r"gone: found no such folder"):
        load_log_config(tmp_path / "gone")


@pytest.mark.parametrize("width", [80, 160])
def test_the_view_fits_the_screen(folder: Path, width: int) -> None:
    content = make()
    plant("future", content)
    write(folder, content)
    console = Console(width=width, record=True, file=(folder / "out.txt").open("w"))
    with console.file:
        console.print(CheckView(check(folder)))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < 50
    text = "\n".join(lines)
    for part in ("3,000 impressions of 40 posts to 60 people", "dwell", "click", "9 impressions are later than now"):
        assert part in text


def test_bars_are_from_0_to_the_largest() -> None:
    assert sparkline([0, 1, 4, 8]) == " ▂▅█"
    assert sparkline([0]) == " "
    assert len(sparkline([1] * 1000)) <= 48
    assert set(sparkline([1] * 1000)) == {"█"}


def test_the_verb_says_whether_a_job_can_read_the_log(tml: Any, folder: Path, tmp_path: Path) -> None:
    content = make(rows=300)
    write(folder, content)
    done = tml("data", "check", "log", "--html", "check.html")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "300 impressions" in done.stdout
    assert (tmp_path / "check.html").is_file()
    (folder / "posts.parquet").rename(folder / "films.parquet")
    done = tml("data", "check", "log")
    assert done.returncode == 2
    assert "file: films.parquet" in done.stdout
    assert done.stderr.startswith("error: log: no posts table")
    assert done.stderr.endswith("; the config above reads it\n")


def test_names_and_types_that_mean_something_elsewhere(folder: Path) -> None:
    content = make(500)
    named = {"type": "promoted", "t": 1, "l0": 2.0, "n": 3, "created_at": START}
    content["impressions"] = [row | named for row in content["impressions"]]
    # Dwell tells these from the rest; in rich's markup the name would close what is not open.
    types = {"click": "[/b]", "like": "<script>"}
    content["engagements"] = [row | {"type": types[row["type"]]} for row in content["engagements"]]
    content["impressions"] = [row | {"dwell_time": row["dwell"] > 1.5} for row in content["impressions"]]
    write(folder, content)
    result = check(folder)
    console = Console(record=True, width=150, quiet=False, file=StringIO())
    console.print(CheckView(result))
    assert "[/b]" in console.export_text()
    assert {one.type for one in result.facts.engagements} == set(types.values())
    assert result.facts.impressions == 500
