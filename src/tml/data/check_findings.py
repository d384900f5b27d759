"""What is wrong with a log, from its figures: each finding says what it is and what can be done."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from tml.data.check_facts import Facts
from tml.data.faults import Skipped

Level = Literal["wrong", "odd", "fine"]

FEW_POSITIVES = 100
"""Fewer than this teach a ranker nothing that lasts."""
SHORT_SESSIONS = 2
"""Fewer impressions than this in a session have no order."""
MUCH = 0.01
"""From this share on, what is odd is wrong."""
NAMED = 3
"""How many of many things are named."""


@dataclass(frozen=True)
class Finding:
    """Something that was found.

    Attributes:
        level: `wrong` where results will be, `odd` where they may be, `fine` where it is taken care of.
        what: what was found.
        advice: what can be done, or what is done.
    """

    level: Level
    what: str
    advice: str


def find_faults(facts: Facts, skipped: tuple[Skipped, ...], duplicates: int, may_skip: bool) -> tuple[Finding, ...]:
    """What is wrong with a log, the worst first.

    Args:
        facts: what is in it.
        skipped: what could not be used.
        duplicates: exact duplicates of impressions.
        may_skip: whether the config says that a job goes on without what cannot be used.
    """
    found = _unusable(skipped, may_skip) + _counted(facts) + _outcomes(facts) + _people(facts)
    found += _files(facts, duplicates)
    order: dict[Level, int] = {"wrong": 0, "odd": 1, "fine": 2}
    return tuple(sorted(found, key=lambda finding: order[finding.level]))


def _unusable(skipped: tuple[Skipped, ...], may_skip: bool) -> list[Finding]:
    if not skipped:
        return []
    advice = "mend it; a job stops here, or leaves it out with log.on_error: skip"
    if may_skip:
        advice = "left out, as log.on_error: skip says; mend it, if that is not meant"
    found = [
        Finding("wrong", f"{counted(one.rows, 'row')} of {one.file.name}: {one.reason}", advice)
        if one.rows
        else Finding("wrong", f"{one.file.name}: {one.reason}", advice)
        for one in skipped[:NAMED]
    ]
    more = len(skipped) - NAMED
    return found + [Finding("wrong", f"{counted(more, 'more file')} or reasons like these", advice)] * (more > 0)


def _outcomes(facts: Facts) -> list[Finding]:
    names = [outcome.column for outcome in facts.outcomes if outcome.is_suspicious]
    if not names:
        return []
    advice = "known only afterwards: keep it out of features"
    return [Finding("odd", f"{_named(names)} {'look' if len(names) > 1 else 'looks'} like an outcome", advice)]


@dataclass(frozen=True)
class _Rule:
    """A count that should be 0: of what it is a share, what it counts, what is the matter, and what can be done."""

    total: Callable[[Facts], int]
    noun: str
    verbs: tuple[str, str]
    what: str
    advice: str
    level: Level | None = None


_ARE, _HAVE, _COME = ("is", "are"), ("has", "have"), ("comes", "come")


def _impressions(facts: Facts) -> int:
    return facts.impressions


def _events(facts: Facts) -> int:
    return sum(one.events for one in facts.engagements)


RULES: Mapping[str, _Rule] = {
    "future impressions": _Rule(
        _impressions, "impression", _ARE, "later than now", "check time_unit and time zone: times are UTC", "wrong"
    ),
    "future engagements": _Rule(
        _events, "engagement", _ARE, "later than now", "check time_unit and time zone: times are UTC", "wrong"
    ),
    "orphans": _Rule(
        _events,
        "engagement",
        _ARE,
        "with posts that their user was never shown",
        "they count in features, but label nothing; are impressions missing, or ids of another kind?",
    ),
    "engaged before shown": _Rule(
        _events,
        "engagement",
        _ARE,
        "older than their first impression",
        "they label nothing; is one of the two times in another zone, or are impressions missing?",
    ),
    "impressions without post": _Rule(
        _impressions,
        "impression",
        _ARE,
        "of posts that the table posts lacks",
        "they have no author and no post features; add the posts",
    ),
    "shown before created": _Rule(
        _impressions,
        "impression",
        _ARE,
        "older than their post",
        "the age counts as 0; is one of the two times in another zone?",
    ),
    "sessions of several": _Rule(
        lambda facts: facts.sessions,
        "session",
        _ARE,
        "of several people",
        "a session is what one person saw; is session_id unique only within a person?",
        "wrong",
    ),
    "posts without author": _Rule(
        lambda facts: facts.posts, "post", _HAVE, "no author", "they have no author features"
    ),
    "viewers unknown": _Rule(
        lambda facts: facts.people, "viewer", _ARE, "not in the table users", "they have no user features; add them"
    ),
    "follows of unknown": _Rule(
        lambda facts: next(table.kept for table in facts.tables if table.name == "follows"),
        "follow",
        _ARE,
        "of or by people seen nowhere else",
        "they only make the graph larger; are ids of another kind?",
    ),
    "impressions out of order": _Rule(
        _impressions, "impression", _COME, "after a later one", "they are sorted", "fine"
    ),
    "engagements out of order": _Rule(_events, "engagement", _COME, "after a later one", "they are sorted", "fine"),
}


def _counted(facts: Facts) -> list[Finding]:
    found = []
    for name, count in facts.counts.items():
        if count and name in RULES:
            rule = RULES[name]
            share = count / max(rule.total(facts), 1)
            level: Level = rule.level or ("wrong" if share >= MUCH else "odd")
            subject = f"{counted(count, rule.noun)} {rule.verbs[count != 1]}"
            found.append(Finding(level, f"{subject} {rule.what} ({percent(share)})", rule.advice))
    return found


def _people(facts: Facts) -> list[Finding]:
    found = []
    few = [one.type for one in facts.engagements if one.positives < FEW_POSITIVES]
    if not facts.engagements:
        found.append(Finding("wrong", "nobody engaged with anything", "a ranker has nothing to learn"))
    if few:
        what = f"{_named(few)} {'have' if len(few) > 1 else 'has'} fewer than {FEW_POSITIVES} positives"
        found.append(Finding("odd", what, "too few to learn; leave such a task out, or log for longer"))
    if facts.impressions < SHORT_SESSIONS * facts.sessions:
        what = f"sessions have {facts.impressions / facts.sessions:.1f} impressions in the mean"
        advice = "there is hardly an order to judge; set log.session_gap_minutes, or give session_id"
        found.append(Finding("odd", what, advice))
    return found


def _files(facts: Facts, duplicates: int) -> list[Finding]:
    found = []
    empty = [at for at, count in facts.per_unit if not count]
    # By the hour, a night without impressions is nothing to speak of.
    if empty and facts.unit == "day":
        days = [f"{at:%Y-%m-%d}" for at in empty]
        found.append(Finding("odd", f"no impression on {_named(days)}", "are files missing?"))
    for table in facts.tables:
        if table.number_gaps:
            what = f"{table.name}: no file {_named(table.number_gaps)}"
            found.append(Finding("odd", what, "the numbers of the others leave them out; are they missing?"))
        if table.name != "impressions" and table.kept < table.rows:
            what = f"{counted(table.rows - table.kept, 'exact duplicate')} in {table.name}"
            found.append(Finding("fine", what, "each counts once"))
    if duplicates:
        what = f"{counted(duplicates, 'exact duplicate')} of impressions"
        found.append(Finding("fine", what, "each counts once"))
    return found


def counted(count: int | None, noun: str) -> str:
    """A number of things, as `1,234 rows`."""
    return f"{count or 0:,} {noun}{'s' * (count != 1)}"


def percent(share: float) -> str:
    """A share in percent with two digits that say something."""
    if share == 0:
        return "0%"
    return "under 0.01%" if share < 0.0001 else f"{100 * share:.2g}%" if share < 0.995 else f"{100 * share:.0f}%"


def _named(names: list[str] | tuple[str, ...]) -> str:
    """The first few names, and how many more there are."""
    if len(names) <= NAMED:
        return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
