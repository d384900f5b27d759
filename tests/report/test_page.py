"""The report of made-up runs: complete, self-contained, safe, and graceful about what is missing."""

import json
import re
import shutil
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tml.core.errors import DataError, MissingStage
from tml.report import write_report

VOID = {"meta", "link", "br", "wbr", "img", "hr"}


class Checker(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.headings: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if self.open and self.open[-1] != "style":
            self.text.append(data)


@pytest.fixture(scope="module")
def report(full_run):
    return write_report(full_run).read_text(encoding="utf-8")


def copy(run, target):
    shutil.copytree(run, target)
    return target


def test_every_section_is_there(full_run, report):
    page = Checker(report)
    assert page.headings == ["Predictions", "Order", "A timeline", "Task by task", "Training", "Config"]
    text = " ".join(page.text)
    assert "A Heavy Ranker with a MaskNet backbone and 10 towers" in text
    assert "212,310 impressions of 29 April to 12 May 2024" in text
    assert "13 to 14 May 2024" in text
    assert "Loss of TwHIN" in text
    assert "nothing to draw" in text
    evaluation = json.loads((full_run / "evaluation.json").read_text())
    for task in evaluation["tasks"].values():
        for metric, digits in (("auc", 3), ("pr_auc", 3), ("calibration", 2)):
            if task["models"]["ranker"][metric] is not None:
                assert f"{task['models']['ranker'][metric]:.{digits}f}" in text


def test_pictures_of_each_task_that_has_both_classes(report):
    titles = re.findall(r"<title>([^<]*)</title>", report)
    for kind in ("ROC", "Reliability", "RCE"):
        assert len({title for title in titles if title.startswith(f"{kind} of ")}) == 9


def test_nothing_is_fetched_and_nothing_runs(report):
    page = Checker(report)
    fetching = {"src", "srcset", "action", "data", "poster", "background", "href", "xlink:href"}
    assert {value for _, name, value in page.attributes if name in fetching} == {"data:,"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "<script" not in report
    assert not re.search(r"url\(|@import", report)
    assert set(re.findall(r"https?://[^\"' <)]+", report)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_ids_are_unique(report):
    ids = [value for _, name, value in Checker(report).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_same_run_same_bytes(full_run, report):
    assert write_report(full_run).read_text(encoding="utf-8") == report


def test_the_best_figure_is_bold(full_run, report):
    ranker = json.loads((full_run / "evaluation.json").read_text())["tasks"]["recap.engagement.is_favorited"]["models"][
        "ranker"
    ]
    row = re.search(r"<tr><th scope=\"row\">favorite.*?</tr>", report)[0]
    assert f'<td class="best first">{ranker["auc"]:.3f}</td>' in row


def test_the_timeline_shows_what_was_done_and_where_it_was_served(full_run, report):
    timelines = pq.read_table(full_run / "timelines.parquet").to_pylist()
    cards = re.findall(r"<li class=\"[a-z]*\"><div class=\"rank\">(\d+)</div>(.*?)</li>", report)
    assert [rank for rank, _ in cards] == [str(rank) for rank in range(1, 11)]
    user = re.search(r"User (\d+) on", report)[1]
    first_post = int(re.search(r"Post (\d+)", cards[0][1])[1])
    (row,) = (r for r in timelines if r["rank"] == 1 and r["post_id"] == first_post and str(r["user_id"]) == user)
    done = [name for name, value in row.items() if name.startswith("label/") and value == 1]
    assert cards[0][1].count("✓") == len(done)
    session = sorted((r for r in timelines if r["session_id"] == row["session_id"]), key=lambda r: r["served_position"])
    served = [r["rank"] for r in session].index(1)
    if served:
        assert f"▲\u2009{served}</span>" in cards[0][1]


def test_what_comes_from_data_is_escaped(full_run, tmp_path):
    run = copy(full_run, tmp_path / "<b>&run")
    evil = '<script>alert("1")</script>'
    timelines = pq.read_table(run / "timelines.parquet")
    for name in ("author_id", "user_id", "post_id"):
        column = pa.array([evil] * len(timelines))
        timelines = timelines.set_column(timelines.column_names.index(name), name, column)
    pq.write_table(timelines, run / "timelines.parquet")
    (run / "config.yaml").write_text(f"name: '{evil}'\n")
    evaluation = json.loads((run / "evaluation.json").read_text())
    task = next(iter(evaluation["tasks"].values()))
    evaluation["tasks"][f"is_{evil}"] = task
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    text = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>&run" not in text
    assert "&lt;script&gt;" in text
    Checker(text)


def test_missing_pieces_are_left_out(full_run, tmp_path):
    run = tmp_path / "bare"
    run.mkdir()
    shutil.copy(full_run / "evaluation.json", run)
    page = Checker(write_report(run).read_text(encoding="utf-8"))
    assert page.headings == ["Predictions", "Order", "Task by task"]


def test_without_oracle_and_twhin_nothing_speaks_of_them(tmp_path, make_run):
    run = make_run(tmp_path / "real", rates={"is_click": 0.3, "is_like": 0.02}, oracle=False, twhin=False)
    text = " ".join(Checker(write_report(run).read_text(encoding="utf-8")).text)
    assert "click" in text
    assert "racle" not in text
    assert "TwHIN" not in text


def test_one_line_of_metrics_and_unknown_config_do_no_harm(full_run, tmp_path):
    run = copy(full_run, tmp_path / "short")
    (run / "recap" / "metrics.jsonl").write_text('{"step": 1, "seconds": 0.5, "train/loss": 0.7}\n')
    (run / "config.yaml").write_text("recap: [1, 2]\n")
    text = " ".join(Checker(write_report(run).read_text(encoding="utf-8")).text)
    assert "A Heavy Ranker with 10 towers" in text


def test_an_unfinished_run_names_the_command(tmp_path):
    with pytest.raises(MissingStage, match=r"evaluation\.json: no such file.*`tml recap evaluate`"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["evaluation.json", "timelines.parquet", "recap/metrics.jsonl", "config.yaml"])
def test_a_damaged_file_is_named(full_run, tmp_path, name):
    run = copy(full_run, tmp_path / "damaged")
    (run / name).write_text("{ no\nno\n")
    with pytest.raises(DataError, match=re.escape(name)):
        write_report(run)


def test_segments_have_a_table_and_a_picture(full_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(full_run, run)
    evaluation = json.loads((run / "evaluation.json").read_text())
    figures = {"examples": 900, "positives": 40, "auc": 0.7654, "rce": 3.0, "calibration": 1.5}
    few = {**figures, "positives": 3, "auc": None, "calibration": 9.0}
    tasks = list(evaluation["tasks"])
    evaluation["segments"] = {"age": {"<1 h": dict.fromkeys(tasks, figures), "older": dict.fromkeys(tasks, few)}}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    text = write_report(run).read_text()
    assert "By the post&#x27;s age" in text
    assert "&lt;1 h" in text
    assert text.count("0.765") == len(tasks)
    assert "Calibration by the post" in text
    assert "By segment" not in write_report(full_run).read_text()
