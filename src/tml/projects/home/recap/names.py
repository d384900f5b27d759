"""What people call the engagements, and how probabilities and ages are written for people to read."""

from collections.abc import Mapping
from types import MappingProxyType

PREFIX = "recap.engagement."

UNDEFINED = "\N{EN DASH}"
"""Stands for a figure that there is not."""

PLAIN_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "is_favorited": "favorite",
        "is_retweeted": "retweet",
        "is_replied": "reply",
        "is_profile_clicked_and_profile_engaged": "profile visit",
        "is_video_playback_50": "half the video",
        "is_replied_reply_engaged_by_author": "reply the author answers",
        "is_good_clicked_convo_desc_favorited_or_replied": "conversation and a reaction",
        "is_good_clicked_convo_desc_v2": "conversation for a while",
        "is_negative_feedback_v2": "negative feedback",
        "is_report_tweet_clicked": "report",
    }
)


def short_name(task: str) -> str:
    """The task without the published prefix.

    Example:
        >>> short_name("recap.engagement.is_replied")
        'is_replied'
    """
    return task.removeprefix(PREFIX)


def plain_name(task: str) -> str:
    """The task in plain words.

    Example:
        >>> plain_name("recap.engagement.is_favorited"), plain_name("is_profile_enter")
        ('favorite', 'profile enter')
    """
    short = short_name(task)
    return PLAIN_NAMES.get(short) or short.removeprefix("is_").replace("_", " ")


def percent(probability: float) -> str:
    """A probability in percent, with two digits or so.

    Example:
        >>> percent(0.314), percent(0.0314), percent(0.00314), percent(0.00001)
        ('31%', '3.1%', '0.31%', '<0.01%')
    """
    value = 100 * probability
    if value < 0.01:
        return "<0.01%" if value > 0 else "0%"
    return f"{value:.0f}%" if value >= 9.95 else f"{value:.1f}%" if value >= 0.995 else f"{value:.2f}%"


def age(seconds: float | None) -> str:
    """An age in the largest unit that it has two of; an unknown one is a dash.

    Example:
        >>> age(90), age(7200), age(86400 * 3), age(None) == UNDEFINED
        ('90 s', '2 h', '3 d', True)
    """
    if seconds is None or seconds != seconds:
        return UNDEFINED
    for unit, size in (("y", 365 * 86400), ("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
