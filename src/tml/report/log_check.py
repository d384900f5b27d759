"""The check of a log as a page: what is in the log, what is wrong with it, and pictures of both. It works offline.

Its content follows from the check alone, so the same log gives the same page, byte for byte.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from tml import __version__
from tml.core.errors import UserError
from tml.core.files import write_text
from tml.data.check import LogCheck
from tml.data.check_facts import QUANTILES, Facts
from tml.data.check_findings import Level, counted, percent
from tml.data.check_tables import duration, size, span
from tml.data.suggest import suggestion_text
from tml.report.log_charts import activity_bars, delay_curves, time_bars
from tml.report.page import document
from tml.report.style import SERIES_COLORS
from tml.report.tables import legend

WIDE, HALF, LOW = 1024, 466, 220
"""Width of a picture over the page and of one beside another, and height; in CSS pixels."""
MOST_LINES = 8
"""Engagement types whose delays are drawn."""

MARKS: dict[Level, tuple[str, str, str]] = {
    "wrong": ("✗", "var(--bad)", "Wrong"),
    "odd": ("▲", "var(--served)", "Odd"),
    "fine": ("✓", "var(--good)", "Taken care of"),
}
WORDS = "text-align:left;white-space:normal;color:var(--muted);vertical-align:top"
"""Style of a column of words; columns of figures stand to the right."""


def write_check(check: LogCheck, path: Path) -> None:
    """Write the page of a check.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        write_text(path, check_page(check))
    except OSError as error:
        raise UserError(f"{path}: not a file that can be written ({error.strerror})") from None


def check_page(check: LogCheck) -> str:
    """The whole page."""
    facts = check.facts
    parts = [_header(check), _suggestion(check), _findings(check), _time(facts), _engagements(facts), _people(facts)]
    parts += [_outcomes(facts), _tables(facts), f"<footer>Made by tml {escape(__version__)}.</footer>"]
    return document(f"{check.config.path.name}: check of the log", "".join(parts))


def _header(check: LogCheck) -> str:
    facts = check.facts
    usable = "A job can read this log as it is."
    lede = usable if check.is_usable else f"A job cannot read this log as it is: {check.error}."
    figures = (
        ("Impressions", f"{facts.impressions:,}", duration((facts.end - facts.start).total_seconds())),
        ("People", f"{facts.people:,}", f"{facts.impressions / facts.people:.1f} impressions each"),
        ("Posts shown", f"{facts.posts_shown:,}", f"of {facts.posts:,} by {facts.authors:,} authors"),
        ("Sessions", f"{facts.sessions:,}", f"{facts.impressions / facts.sessions:.1f} impressions each"),
        ("Wrong or odd", f"{sum(one.level != 'fine' for one in check.findings)}", "things to look at"),
    )
    entries = "".join(
        f"<div><dt>{label}</dt><dd>{value}<small>{note}</small></dd></div>" for label, value, note in figures
    )
    color = "" if check.is_usable else ' style="color:var(--bad)"'
    return (
        f'<header><div class="eyebrow">Check of a log</div><h1>{escape(str(check.config.path))}</h1>'
        f'<p class="lede"{color}>{escape(lede)}</p><p class="about">{span(facts.start, facts.end)}</p>'
        f'<dl class="facts">{entries}</dl></header>'
    )


def _suggestion(check: LogCheck) -> str:
    if check.suggestion is None:
        return ""
    text = f'<div class="card"><pre style="padding:0">{escape(suggestion_text(check.suggestion))}</pre></div>'
    return _section("A config that reads it", "What its columns seem to mean; all below is read so.", text)


def _findings(check: LogCheck) -> str:
    if not check.findings:
        return _section("What to look at", "Nothing is wrong with it.", "")
    about = "&emsp;".join(
        f'<span style="color:{color}">{mark}</span> {name.lower()}' for mark, color, name in MARKS.values()
    )
    rows = []
    for one in check.findings:
        mark, color, name = MARKS[one.level]
        mark = f'<span style="color:{color}" title="{name}">{mark}</span>'
        rows.append([f"{mark}&ensp;{escape(one.what)}", escape(one.advice)])
    return _section("What to look at", about, _card(_table(["", ""], rows)))


def _time(facts: Facts) -> str:
    title = f"Impressions by {facts.unit}"
    svg = time_bars(title, facts.per_unit, facts.unit, WIDE, LOW)
    return _section(title, "UTC. A gap may be a file that is missing.", f'<div class="card">{svg}</div>')


def _engagements(facts: Facts) -> str:
    if not facts.engagements:
        return ""
    top = max(one.positives for one in facts.engagements) or 1
    bars = "".join(
        f'<dt>{escape(one.type)}</dt><div class="track"><i style="width:{100 * one.positives / top:.2f}%;'
        f'background:{SERIES_COLORS[n % len(SERIES_COLORS)]}"></i></div>'
        f'<dd class="value" style="margin:0">{one.positives:,} <span style="color:var(--muted)">'
        f"{percent(one.positives / facts.impressions)}</span></dd>"
        for n, one in enumerate(facts.engagements)
    )
    positives = (
        '<article class="card"><h3>Positives</h3><p>Impressions that the engagement followed.</p>'
        f'<dl class="orders">{bars}</dl></article>'
    )
    about = "What followed an impression: an engagement belongs to the latest impression before it."
    if facts.inline:
        about = "What followed an impression, as its own row says."
    return _section("Engagements", about, f'<div class="columns">{positives}{_delays(facts)}</div>')


def _delays(facts: Facts) -> str:
    """How long after the impression engagements come: a label window must wait for most of them."""
    drawn = [one for one in facts.engagements if one.delays][:MOST_LINES]
    if not drawn:
        return ""
    colored = [(one, SERIES_COLORS[facts.engagements.index(one)]) for one in drawn]
    svg = delay_curves("Delays of engagements", colored, HALF, LOW)
    lines = legend([(one.type, color, False) for one, color in colored])
    return (
        '<article class="card"><h3>Delays</h3><p>The share that had come so long after its impression. A label window '
        f'waits for most of them.</p><div class="chart">{svg}</div>{lines}</article>'
    )


def _people(facts: Facts) -> str:
    svg = activity_bars("Impressions of a person", facts.activity_bins, HALF, LOW)
    at = dict(zip(QUANTILES, facts.activity, strict=True))
    activity = (
        '<article class="card"><h3>Activity</h3>'
        f"<p>The median person was shown {counted(at[0.5], 'post')}, one in ten more than {at[0.9]:,}, the most active "
        f'{at[1.0]:,}.</p><div class="chart">{svg}</div></article>'
    )
    shown, known = facts.posts_shown, facts.posts_shown - facts.counts["posts unknown"]
    rows = [
        ["Sessions", f"{facts.sessions:,}", "the log's own" if facts.own_sessions else "from pause to pause"],
        ["Impressions of a session", f"{facts.impressions / facts.sessions:.2f}", "in the mean"],
        ["Of a post seen before", f"{facts.repeats:,}", f"{percent(facts.repeats / facts.impressions)} of impressions"],
        ["Impressions of a post", f"{facts.impressions / shown:,.1f}", "of those shown, in the mean"],
        ["Posts never shown", f"{facts.posts - known:,}", f"of {facts.posts:,}"],
        ["Posts of an author", f"{facts.posts / max(facts.authors, 1):,.1f}", "in the mean"],
    ]
    table = _table(["", ">", ""], rows)
    figures = f'<article class="card scroll" style="padding:8px 0">{table}</article>'
    return _section("People and posts", "", f'<div class="columns">{activity}{figures}</div>')


def _outcomes(facts: Facts) -> str:
    if not facts.outcomes:
        return ""
    rows = []
    for one in facts.outcomes:
        auc = "—" if one.auc is None else f"{one.auc:.3f}"
        if one.is_suspicious:
            auc = f'<span style="color:var(--bad);font-weight:620">{auc}</span>'
        why = "known only afterwards" if one.is_suspicious else "by its name only"
        rows.append([escape(one.column), auc, escape(one.engagement) or "—", why])
    about = (
        "Columns of the impressions that may be outcomes: known only after the impression, they must be no input of "
        "features. AUC: how well the column alone tells who will engage; 0.5 is a coin toss, 1 perfect."
    )
    return _section("May be outcomes", about, _card(_table(["Column", "AUC>", "Tells", "Why"], rows)))


def _tables(facts: Facts) -> str:
    rows = [
        [
            table.name,
            f"{table.rows:,}",
            f"{table.files:,} {escape(table.ending)}",
            size(table.bytes),
            escape(", ".join(table.columns)),
        ]
        for table in facts.tables
    ]
    about = "Columns under the contract's names; what it does not know keeps its own."
    return _section("Tables", about, _card(_table(["Table", "Rows>", "Files>", "Size>", "Columns"], rows)))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML cells; a column whose name ends in > has figures."""
    styles = ["vertical-align:top" if name.endswith(">") else WORDS for name in columns]
    names = [name.rstrip(">") for name in columns]
    head = "".join(f'<th style="{style}">{name}</th>' for name, style in zip(names, styles, strict=True))
    body = "".join(
        f'<tr><th scope="row" style="vertical-align:top">{row[0]}</th>'
        + "".join(f'<td style="{style}">{cell}</td>' for cell, style in zip(row[1:], styles[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<table>{f'<thead><tr>{head}</tr></thead>' * any(names)}<tbody>{body}</tbody></table>"


def _card(table: str) -> str:
    return f'<div class="card scroll">{table}</div>'


def _section(title: str, about: str, body: str) -> str:
    return f'<section><h2>{title}</h2><p class="about">{about}</p>{body}</section>'
