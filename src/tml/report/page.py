"""The report of a run: one HTML file that holds everything it shows and asks no network for anything.

Its content follows from the run folder's files alone, so the same run gives the same page, byte for byte.
"""

from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from tml import __version__
from tml.core.files import write_text
from tml.report.embedding_map import map_card
from tml.report.figures import task_cards, training_cards
from tml.report.run_files import RunFiles
from tml.report.segments import segment_cards
from tml.report.style import CSS
from tml.report.tables import explanations, number, order_bars, task_table
from tml.report.timeline import timeline

BACKBONES = {
    "mask_net_config": "a MaskNet backbone",
    "mlp_config": "an MLP backbone",
    "dcn_config": "a DCN backbone",
    "dlrm_config": "a DLRM backbone",
}


def write_report(run: Path) -> Path:
    """Write `report.html` of a run folder from its other files.

    Returns:
        The path of the report.

    Raises:
        MissingStage: the run was not evaluated yet.
        DataError: a file of the run that cannot be read.
    """
    files = RunFiles.read(run)
    path = run / "report.html"
    write_text(path, page(files))
    return path


def page(files: RunFiles) -> str:
    """The whole page."""
    parts = (_predictions, _order, _timeline, _tasks, _segments, _embeddings, _training)
    sections = "".join(part(files) for part in parts)
    footer = f"<footer>Made by tml {escape(__version__)} from the files of this run.</footer>"
    return document(f"{files.name}: report", f"{_header(files)}{sections}{_config(files)}{footer}")


def document(title: str, body: str) -> str:
    """A whole HTML file around what is in its main part, with the style inside."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Says to the browser what the page promises: nothing is fetched, no script runs.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{CSS}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


def _section(title: str, about: str, body: str) -> str:
    return f'<section><h2>{title}</h2><p class="about">{about}</p>{body}</section>'


def _header(files: RunFiles) -> str:
    facts = "".join(
        f"<div><dt>{label}</dt><dd>{value}<small>{escape(note)}</small></dd></div>"
        for label, value, note in _facts(files)
    )
    return (
        f'<header><div class="eyebrow">Ranking report</div><h1>{escape(files.name)}</h1>'
        f'<p class="lede">{escape(_lede(files))}</p><dl class="facts">{facts}</dl></header>'
    )


def _lede(files: RunFiles) -> str:
    backbone = files.setting("recap", "model", "backbone")
    kinds = [BACKBONES[name] for name, value in (backbone or {}).items() if value is not None and name in BACKBONES]
    towers = f"{len(files.tasks)} tower{'s' * (len(files.tasks) != 1)}"
    model = f"A Heavy Ranker with {' and '.join([*kinds[:1], towers])}"
    part = files.schema.get("parts", {}).get("train", {})
    trained = f", trained on {part['rows']:,} impressions of {_span(part)}" if part else ""
    return f"{model}{trained}, judged on {files.evaluation['examples']:,} later ones{_held_out_span(files)}."


def _held_out_span(files: RunFiles) -> str:
    if files.predictions is None or "served_at" not in files.predictions.column_names:
        return ""
    span = pc.min_max(files.predictions["served_at"]).as_py()
    return f" of {_days(span['min'], span['max'])}" if span["min"] else ""


def _span(part: dict[str, Any]) -> str:
    start, end = (datetime.fromisoformat(part[name]) for name in ("start", "end"))
    return _days(start, end - timedelta(microseconds=1))


def _days(first: datetime, last: datetime) -> str:
    """The days from first to last, as `1 to 12 May 2024`, without saying twice what is the same."""
    first, last = (t.replace(tzinfo=UTC) if t.tzinfo is None else t.astimezone(UTC) for t in (first, last))
    end = f"{last.day} {last:%B %Y}"
    if first.date() == last.date():
        return end
    if (first.year, first.month) == (last.year, last.month):
        return f"{first.day} to {end}"
    return f"{first.day} {first:%B}{f' {first.year}' * (first.year != last.year)} to {end}"


def _facts(files: RunFiles) -> list[tuple[str, str, str]]:
    """Label, value and note of the figures at the top."""
    facts = []
    ranking = files.evaluation["ranking"]
    ranker, served = (ranking["orders"].get(name, {}).get("ndcg") for name in ("ranker", "served"))
    if ranker is not None:
        facts.append(("NDCG", number(ranker, 3), f"{number(served, 3)} as served"))
    won, compared = _won(files)
    if compared:
        facts.append(("Better than LR", f"{won} of {compared}", "tasks, by RCE"))
    if files.recap_metrics:
        seconds, speed = (_latest(files, key) for key in ("seconds", "train/examples_per_second"))
        if seconds is not None:
            note = f"{speed:,.0f} examples a second" if speed is not None else "of the ranker"
            facts.append(("Training", _duration(seconds), note))
    positives = sum(task["positives"] for task in files.evaluation["tasks"].values())
    facts.append(("Held out", f"{files.evaluation['examples']:,}", f"impressions, {positives:,} engagements"))
    facts.append(("Sessions", f"{ranking['sessions']:,}", "ranked anew"))
    return facts


def _latest(files: RunFiles, key: str) -> float | None:
    return next((line[key] for line in reversed(files.recap_metrics) if line.get(key) is not None), None)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return (
        f"{round(seconds) // 60} min {round(seconds) % 60} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60} min"
    )


def _won(files: RunFiles) -> tuple[int, int]:
    """On how many tasks the ranker's RCE is above the logistic regression's, and on how many both have one."""
    pairs = [
        (task["models"]["ranker"]["rce"], task["models"].get("logistic_regression", {}).get("rce"))
        for task in files.evaluation["tasks"].values()
    ]
    both = [(ranker, other) for ranker, other in pairs if ranker is not None and other is not None]
    return sum(ranker > other for ranker, other in both), len(both)


def _predictions(files: RunFiles) -> str:
    about = "Each task's probabilities against what happened, on impressions later than all that was learnt from."
    return _section("Predictions", about, task_table(files.evaluation) + explanations(files.evaluation))


def _order(files: RunFiles) -> str:
    ranking = files.evaluation["ranking"]
    k = ranking["k"]
    about = (
        f"{ranking['sessions']:,} sessions, each put in the order of the weighted score. The worth of a post is the "
        "weighted sum of the engagements that really followed; at random is the mean over all orders."
    )
    cards = (
        ("NDCG", "1 puts every session's most valuable posts first.", order_bars(ranking, "ndcg")),
        (
            f"Weighted engagement in the top {k}",
            f"Mean worth of a session's first {k} posts.",
            order_bars(ranking, f"weighted_engagement_at_{k}"),
        ),
    )
    body = "".join(
        f'<article class="card"><h3>{title}</h3><p>{note}</p>{bars}</article>' for title, note, bars in cards
    )
    return _section("Order", about, f'<div class="columns">{body}</div>')


def _timeline(files: RunFiles) -> str:
    if files.timelines is None or not len(files.timelines):
        return ""
    about, cards = timeline(files.timelines, files.evaluation["weights"])
    return _section(
        "A timeline",
        f"{escape(about)} Bars are the three likeliest engagements; green marks what the viewer really did.",
        cards,
    )


def _tasks(files: RunFiles) -> str:
    about = (
        "ROC: positives found against negatives let in. Reliability: what came true against what was predicted, in "
        "ten bins of equal size with 95% intervals; on the diagonal, promises are kept."
    )
    return _section("Task by task", about, task_cards(files))


def _embeddings(files: RunFiles) -> str:
    card = map_card(files.folder, files.setting("log"))
    about = "Vectors of people and posts, learnt by TwHIN from the graph alone before the ranker's training starts."
    return _section("Embeddings", about, card) if card else ""


def _segments(files: RunFiles) -> str:
    cards = segment_cards(files.evaluation.get("segments", {}), files.tasks)
    about = (
        "The same figures where the examples are cut: who is served well, and who is not. In the pictures, on the "
        "dashed line the engagements promised are those that came; above it too many were promised."
    )
    return _section("By segment", about, cards) if cards else ""


def _training(files: RunFiles) -> str:
    cards = training_cards(files)
    return _section("Training", "How the models got there, step by step.", cards) if cards else ""


def _config(files: RunFiles) -> str:
    if files.config is None:
        return ""
    text = f"<details><summary>Every setting of this run</summary><pre>{escape(files.config)}</pre></details>"
    return f"<section><h2>Config</h2>{text}</section>"
