"""RecSys Challenge 2020 and 2021: public tweets that were shown, and four engagements with their times.

A line is a tweet that was shown to someone, in 24 fields separated by \\x01; lists in a field are separated by tabs.
The time of the impression is not given: that of the tweet stands in, which is earlier. Engagements have their own
times. In the data set's words the author of a tweet is the engagee and its viewer the engager, and
`engagee_follows_engager` gives an edge from author to viewer. Followers were counted when the tweet was shown, so their
numbers are columns of the impression.
"""

from pathlib import Path
from typing import Any

from tml.core.errors import DataError
from tml.data.converters.writer import Converted, LogWriter, text_relation, writing
from tml.data.tables import table_files

SEPARATOR = "\x01"
FIELDS = (
    "text_tokens", "hashtags", "tweet_id", "present_media", "present_links", "present_domains", "tweet_type",
    "language", "tweet_timestamp",
    "engaged_with_user_id", "engaged_with_user_follower_count", "engaged_with_user_following_count",
    "engaged_with_user_is_verified", "engaged_with_user_account_creation",
    "engaging_user_id", "engaging_user_follower_count", "engaging_user_following_count",
    "engaging_user_is_verified", "engaging_user_account_creation",
    "engagee_follows_engager", "reply_timestamp", "retweet_timestamp", "retweet_with_comment_timestamp",
    "like_timestamp",
)  # fmt: skip
"""The documented order."""

ENGAGEMENTS = {
    "favorited": "like_timestamp",
    "retweeted": "retweet_timestamp",
    "replied": "reply_timestamp",
    "quoted": "retweet_with_comment_timestamp",
}
"""Engagement type → the field that has its time, empty where it did not happen."""

_INTEGERS = tuple(name for name in FIELDS if name.endswith(("_timestamp", "_count", "_creation")))
_FLAGS = ("engaged_with_user_is_verified", "engaging_user_is_verified", "engagee_follows_engager")
_TYPES = {name: "BIGINT" if name in _INTEGERS else "BOOLEAN" if name in _FLAGS else "VARCHAR" for name in FIELDS}
NOTES = (
    "the time of an impression is not given: served_at is the time of the tweet",
    "a follow says that the author follows the viewer, as engagee_follows_engager does; its time is not known",
    "the tokens of the text are in text_tokens.parquet, beside the log's tables",
)


def convert_recsys(source: Path, out: Path) -> Converted:
    """Convert the data of the RecSys Challenge 2020 or 2021.

    Raises:
        DataError: a file that is missing, or a line that has other fields, by name and line.
    """
    files = _files(source)
    with writing(out, steps=8) as log:
        log.read("raw", f"SELECT * FROM {text_relation(files, _TYPES, SEPARATOR)}")
        _require_keys(log, source)
        log.write("impressions", _impressions())
        log.write("engagements", _engagements())
        log.write("posts", _posts())
        log.write("users", _users())
        log.write(
            "follows",
            "SELECT DISTINCT engaged_with_user_id AS user_id, engaging_user_id AS followed_id FROM raw "
            "WHERE engagee_follows_engager ORDER BY ALL",
        )
        log.write(
            "text_tokens",
            "SELECT tweet_id AS post_id, CAST(string_split(any_value(text_tokens), '\t') AS INTEGER[]) AS tokens "
            "FROM raw GROUP BY 1 ORDER BY 1",
        )
        if not log.rows["follows"]:
            (log.folder / "follows.parquet").unlink()
            del log.rows["follows"]
        about = ("The RecSys Challenge's tweets, converted.", *(f"- {note}" for note in NOTES))
        log.config("\n".join(about), _config(log))
    return Converted(out, log.rows, NOTES)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    # Parts of the challenge's data often have no ending.
    files = [file for file in sorted(source.rglob("*")) if file.is_file() and not file.name.startswith((".", "_"))]
    files = list(table_files(source)) or [file for file in files if file.suffix not in (".lzo", ".txt", ".md")]
    if not files:
        raise DataError(f"{source}: found no file of the challenge (as text, or .gz or .zst), allowed is one or more")
    return files


def _require_keys(log: LogWriter, source: Path) -> None:
    for field in ("tweet_id", "engaging_user_id", "tweet_timestamp"):
        missing = log.one(f"SELECT count(*) FROM raw WHERE {field} IS NULL")
        if missing:
            raise DataError(f"{source}: found {missing:,} lines without {field}, allowed are none")


def _time(field: str) -> str:
    return f"make_timestamp({field} * 1000000) AT TIME ZONE 'UTC'"


def _impressions() -> str:
    return (
        f"SELECT engaging_user_id AS user_id, tweet_id AS post_id, {_time('tweet_timestamp')} AS served_at, "
        "engaging_user_follower_count AS user_followers, engaging_user_following_count AS user_following, "
        "engaging_user_is_verified AS user_verified, engaged_with_user_follower_count AS author_followers, "
        "engaged_with_user_following_count AS author_following, engaged_with_user_is_verified AS author_verified "
        "FROM raw ORDER BY served_at, user_id, post_id"
    )


def _engagements() -> str:
    parts = (
        f"SELECT engaging_user_id AS user_id, tweet_id AS post_id, '{kind}' AS type, {_time(field)} AS engaged_at "
        f"FROM raw WHERE {field} IS NOT NULL"
        for kind, field in ENGAGEMENTS.items()
    )
    return f"{' UNION ALL '.join(parts)} ORDER BY engaged_at, user_id, post_id, type"


def _posts() -> str:
    def counted(field: str) -> str:
        return f"max(CASE WHEN {field} IS NULL THEN 0 ELSE len(string_split({field}, '\t')) END)"

    media = "array_to_string(list_sort(list_distinct(string_split(min(present_media), '\t'))), '+')"
    columns = {
        "tweet_id": "post_id",
        "min(engaged_with_user_id)": "author_id",
        _time("min(tweet_timestamp)"): "created_at",
        "min(language)": "language",
        f"coalesce({media}, 'none')": "media",
        "min(tweet_type)": "tweet_type",
        counted("text_tokens"): "length",
        counted("hashtags"): "hashtags",
        counted("present_links"): "links",
        counted("present_domains"): "domains",
    }
    selected = ", ".join(f"{value} AS {name}" for value, name in columns.items())
    return f"SELECT {selected} FROM raw GROUP BY tweet_id ORDER BY tweet_id"


def _users() -> str:
    sides = (
        f"SELECT {side}_user_id AS user_id, {side}_user_account_creation AS creation FROM raw"
        for side in ("engaging", "engaged_with")
    )
    return (
        f"SELECT user_id, {_time('min(creation)')} AS joined_at FROM ({' UNION ALL '.join(sides)}) "
        "WHERE user_id IS NOT NULL GROUP BY 1 ORDER BY 1"
    )


def _config(log: LogWriter) -> dict[str, Any]:
    types = [kind for kind, field in ENGAGEMENTS.items() if log.one(f"SELECT count({field}) FROM raw")]
    sides = [f"{side}_{what}" for side in ("user", "author") for what in ("followers", "following")]
    return {
        "tasks": {f"recap.engagement.is_{kind}": {"engagement": kind} for kind in types},
        "features": {
            "continuous": [
                *(f"posts.{name}" for name in ("length", "hashtags", "links", "domains")),
                *(f"impressions.{name}" for name in sides),
            ],
            "binary": ["impressions.user_verified", "impressions.author_verified"],
            "discrete": ["posts.language", "posts.media", "posts.tweet_type"],
        },
        "twhin": {
            "relations": [
                {"name": kind, "source": "engagements", "type": kind, "tail": "author"}
                for kind in types
                if kind in ("favorited", "retweeted")
            ]
            or [{"name": types[0], "source": "engagements", "type": types[0], "tail": "author"}]
        },
        "recap": {
            "embeddings": {
                "user_embedding": {"nodes": "user", "key": "user_id"},
                "author_embedding": {"nodes": "author", "key": "author_id"},
            }
        },
    }
