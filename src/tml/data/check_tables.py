"""A check of a log as the terminal shows it: one screen, what is wrong in colour and with what can be done."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from tml.data.check import LogCheck
from tml.data.check_facts import QUANTILES, Facts, TableFacts
from tml.data.check_findings import Level, counted, percent
from tml.data.suggest import suggestion_text

BARS = "▁▂▃▄▅▆▇█"
MOST_BARS = 48
MOST_ENGAGEMENTS = 12
BESIDE_COLUMNS = 50
"""Characters that a table's figures take beside the names of its columns."""

STYLES: dict[Level, tuple[str, str]] = {"wrong": ("✗", "bold red"), "odd": ("▲", "yellow"), "fine": ("✓", "green")}


@dataclass(frozen=True)
class CheckView:
    """A check that rich can print."""

    check: LogCheck

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The parts from top to bottom."""
        check, facts = self.check, self.check.facts
        if check.suggestion is not None:
            yield Text("The contract's columns have other names here. This config reads them:", style="yellow")
            yield Text(f"\n{suggestion_text(check.suggestion)}\n", style="cyan")
        yield Text.assemble((str(check.config.path), "bold"), (f"  {span(facts.start, facts.end)}", "dim"))
        shown = f"{counted(facts.impressions, 'impression')} of {counted(facts.posts_shown, 'post')}"
        yield Text(f"{shown} to {facts.people:,} people\n")
        yield _tables(facts.tables, options.max_width - BESIDE_COLUMNS)
        yield ""
        yield _people(facts)
        yield ""
        yield _engagements(facts)
        yield ""
        if facts.outcomes:
            yield _outcomes(facts)
            yield ""
        yield _findings(check)


def _tables(tables: Sequence[TableFacts], room: int) -> Table:
    view = _table("Table", "Rows>", "Files>", "Size>", "Columns")
    for table in tables:
        names = ", ".join(table.columns)
        shown = names if len(names) <= room else names[: room - 1].rsplit(",", 1)[0] + ", …"
        view.add_row(
            table.name,
            f"{table.rows:,}",
            f"{table.files:,} {table.ending}",
            size(table.bytes),
            Text(shown, style="dim", no_wrap=True, overflow="ellipsis"),
        )
    return view


def _people(facts: Facts) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    counts = [count for _, count in facts.per_unit]
    bars = sparkline(counts)
    range_ = f"{min(counts):,} to {max(counts):,}" if len(counts) > 1 else f"{counts[0]:,}"
    grid.add_row(f"Impressions a {facts.unit}", Text.assemble((bars, "blue"), f"  {range_}"))
    at = dict(zip(QUANTILES, facts.activity, strict=True))
    most = f"median {at[0.5]:,}, 90% have up to {at[0.9]:,}, the most {at[1.0]:,}"
    grid.add_row("Impressions a person", most)
    own = "of the log's own" if facts.own_sessions else "made by pauses"
    mean = facts.impressions / facts.sessions
    grid.add_row("Sessions", f"{facts.sessions:,} {own}, {mean:.1f} impressions each")
    grid.add_row("Authors", f"{facts.authors:,} of {facts.posts:,} posts")
    if facts.repeats:
        share = percent(facts.repeats / facts.impressions)
        grid.add_row("Shown again", f"{counted(facts.repeats, 'impression')} of a post seen before ({share})")
    return grid


def _engagements(facts: Facts) -> Table:
    columns = ["Engagement", "Positives>", "Rate>"]
    view = _table(*columns, *(["Happened>", "Half within>", "90% within>"] if not facts.inline else []))
    for one in facts.engagements[:MOST_ENGAGEMENTS]:
        cells: list[str | Text] = [Text(one.type), f"{one.positives:,}", percent(one.positives / facts.impressions)]
        if not facts.inline:
            cells += [f"{one.events:,}", duration(one.delay(0.5)), duration(one.delay(0.9))]
        view.add_row(*cells)
    if len(facts.engagements) > MOST_ENGAGEMENTS:
        view.add_row(Text(f"and {len(facts.engagements) - MOST_ENGAGEMENTS} more", style="dim"))
    return view


def _outcomes(facts: Facts) -> Table:
    view = _table("May be an outcome", "Tells", "AUC>", "")
    for one in facts.outcomes:
        style = "yellow" if one.is_suspicious else "dim"
        why = "known only afterwards" if one.is_suspicious else "by name only"
        auc = "" if one.auc is None else f"{one.auc:.3f}"
        engagement = Text(one.engagement)
        view.add_row(Text(one.column, style=style), engagement, Text(auc, style=style), Text(why, style=style))
    return view


def _findings(check: LogCheck) -> Table:
    view = _table("", "Found", "What to do")
    for finding in check.findings:
        mark, style = STYLES[finding.level]
        view.add_row(Text(mark, style=style), Text(finding.what, style=style), Text(finding.advice, style="dim"))
    if not check.findings:
        mark, style = STYLES["fine"]
        view.add_row(Text(mark, style=style), Text("nothing is wrong with it", style=style), "")
    return view


def _table(*columns: str) -> Table:
    """A table; a column whose name ends in > stands to the right."""
    view = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1))
    for column in columns:
        view.add_column(column.rstrip(">"), justify="right" if column.endswith(">") else "left")
    return view


def sparkline(counts: Sequence[int]) -> str:
    """Counts as bars from 0 to the largest; many are put together."""
    step = -(-len(counts) // MOST_BARS)
    # The last group may be of fewer, and would look like a fall: means, not sums.
    groups = [counts[start : start + step] for start in range(0, len(counts), step)]
    means = [sum(group) / len(group) for group in groups]
    top = max(means) or 1
    return "".join(BARS[min(int(len(BARS) * mean / top), len(BARS) - 1)] if mean else " " for mean in means)


def duration(seconds: float | None) -> str:
    """A length of time in its largest unit."""
    if seconds is None:
        return "—"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            amount = seconds / length
            return f"{amount:.0f} {unit}" if amount >= 10 else f"{amount:.1f} {unit}"
    return f"{seconds:.0f} s"


def size(amount: float) -> str:
    """A number of bytes in its largest unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def span(start: datetime, end: datetime) -> str:
    """From the first impression to the last, and how long that is."""
    length = duration((end - start).total_seconds())
    return f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, {length}"
