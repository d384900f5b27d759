"""One viewer's timeline as a list of cards: what the ranker expects of each post, and what the viewer really did."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pyarrow as pa

from tml.projects.home.recap.evaluate import interesting_session, likeliest, session_rows
from tml.projects.home.recap.names import age, percent, plain_name
from tml.report.tables import number

MOST_POSTS = 10


def timeline(timelines: pa.Table, weights: Mapping[str, float]) -> tuple[str, str]:
    """A sentence about an interesting session, and its first posts as cards.

    Args:
        timelines: the columns of `timelines.parquet`.
        weights: combination weight of each task.
    """
    tasks = list(weights)
    session = interesting_session(timelines, tasks, MOST_POSTS)
    rows = session_rows(timelines, session, len(timelines))
    served = sorted(range(len(rows)), key=lambda row: rows[row]["served_position"])
    served_rank = {row: rank for rank, row in enumerate(served, start=1)}
    when = min(row["served_at"] for row in rows)
    shown = min(len(rows), MOST_POSTS)
    about = (
        f"User {rows[0]['user_id']} on {when.day} {when:%B %Y} at {when:%H:%M} UTC: "
        + (f"the first {shown} of {len(rows)} posts" if shown < len(rows) else f"all {shown} posts")
        + " of the session, by the ranker's score."
    )
    cards = "".join(_card(rows[row], served_rank[row], tasks, weights) for row in range(shown))
    return about, f'<ol class="timeline">{cards}</ol>'


def _card(row: Mapping[str, Any], served_rank: int, tasks: Sequence[str], weights: Mapping[str, float]) -> str:
    done = [task for task in tasks if row[f"label/{task}"] == 1]
    chips = "".join(
        f'<span class="chip{" bad" if weights[task] < 0 else ""}">✓ {escape(plain_name(task))}</span>' for task in done
    )
    bars = "".join(_bar(task, probability, weights[task]) for task, probability, _ in likeliest(row, tasks))
    meta = [age(row["age_seconds"]), f"score {number(row['score'], 3)}", _movement(row["rank"], served_rank)]
    return (
        f'<li class="{"engaged" if any(weights[task] > 0 for task in done) else ""}">'
        f'<div class="rank">{row["rank"]}</div>'
        f'<div class="post"><div class="author">Author {escape(str(row["author_id"]))}</div>'
        f'<div class="meta">Post {escape(str(row["post_id"]))}</div>'
        f'<div class="meta">{" · ".join(meta)}</div>'
        + (f'<div class="chips" title="What the viewer really did">{chips}</div>' if chips else "")
        + f'</div><dl class="likely">{bars}</dl></li>'
    )


def _bar(task: str, probability: float, weight: float) -> str:
    worth = f"{number(weight * probability, 3)} of the score: {percent(probability)} at a weight of {number(weight, 3)}"
    return (
        f'<dt>{escape(plain_name(task))}</dt><div class="track" title="{escape(worth)}">'
        f'<i style="width:{100 * probability:.1f}%"></i></div><dd class="value">{escape(percent(probability))}</dd>'
    )


def _movement(rank: int, served_rank: int) -> str:
    served = f"served {_ordinal(served_rank)}"
    if rank == served_rank:
        return served
    kind, arrow = ("up", "▲") if rank < served_rank else ("down", "▼")
    return f'{served} <span class="{kind}">{arrow}\u2009{abs(served_rank - rank)}</span>'


def _ordinal(rank: int) -> str:
    suffix = "th" if 10 <= rank % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}{suffix}"
