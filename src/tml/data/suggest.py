"""A config for a folder whose tables and columns have other names than the contract's: what is most likely meant.

Every file that looks like a table is looked into. Which table of the contract it is, is told by the contract's columns
that its own columns can stand for, and by its name; which column stands for which, by a list of the usual names.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import yaml

from tml.data.config import ImpressionsConfig, LogConfig, TableConfig
from tml.data.contract import REQUIRED, TIMES
from tml.data.readers.raw import file_list
from tml.data.tables import ending_of, table_files

SAMPLE_ROWS = 2000

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "user_id": ("user", "uid", "viewer", "member", "account", "customer", "profile", "visitor", "person", "reader"),
    "post_id": (
        "post", "item", "iid", "video", "movie", "film", "tweet", "status", "article", "news", "content", "product",
        "doc", "document", "photo", "pin", "object", "asset", "track", "song", "story", "clip",
    ),
    "author_id": ("author", "creator", "owner", "publisher", "channel", "seller", "producer", "uploader", "artist",
                  "writer", "page", "poster"),
    "followed_id": ("followed", "followee", "friend", "target", "destination", "dst", "following"),
    "served_at": ("served", "shown", "happened", "timestamp", "time", "ts", "datetime", "eventtime",
                  "impressiontime", "date"),
    "engaged_at": ("engaged", "happened", "timestamp", "time", "ts", "datetime", "eventtime", "actiontime", "date"),
    "created_at": ("created", "createtime", "publishtime", "published", "posted", "uploaddt", "uploadtime",
                   "uploaded", "releasedate"),
    "followed_at": ("timestamp", "time", "ts", "datetime", "followtime", "date"),
    "type": ("event", "eventtype", "action", "actiontype", "behavior", "behaviour", "engagement", "kind", "relation"),
    "topic": ("category", "tag", "genre", "genres", "subject", "section", "cat"),
    "impression_id": ("impression", "exposure"),
    "session_id": ("session", "request", "visit", "pageview"),
    "position": ("rank", "slot", "pos"),
}  # fmt: skip
"""Column of the contract → other names of it, without `_id`, `_at` and the like, lower case, letters only."""

OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "impressions": ("impression_id", "session_id", "position"),
    "posts": ("created_at", "topic"),
    "follows": ("followed_at",),
}
TABLES: Mapping[str, str] = {
    "impressions": r"impression|exposure|view|log|interaction|rating|behavio|session|feed|served",
    "engagements": r"engage|action|feedback|reaction|event|click|like",
    "posts": r"post|item|video|movie|film|tweet|article|news|content|product|photo|pin|track|song|stor",
    "users": r"user|member|profile|account|customer|viewer|people|person",
    "follows": r"follow|friend|social|graph|edge",
}
"""Table of the contract → what the names of such tables have in them."""

_LABEL = re.compile(
    r"click|like|love|fav|follow|comment|repl|share|forward|retweet|repost|hate|dislike|hide|report|enter|open|tap"
    r"|view|watch|play|finish|complet|read|save|collect|bookmark|buy|bought|purchase|order|cart|download|subscri"
    r"|engag|skip|negative|positive|label|visit",
    re.IGNORECASE,
)
_SUFFIX = re.compile(r"(id|idx|index|key|no|at|ms|sec|us|unix|utc)$")


@dataclass(frozen=True)
class _Found:
    """A table-like thing of the folder: what the config would call it, and a sample of its columns."""

    file: str
    stem: str
    sample: Mapping[str, Sequence[Any]]


def suggest_config(config: LogConfig) -> LogConfig | None:
    """A config of the tables in a log's folder, or None where no impressions and posts can be made out.

    What the config says already is kept.
    """
    found = list(_look(config.path))
    chosen: dict[str, tuple[_Found, dict[str, str]]] = {}
    for name in ("impressions", "posts", "engagements", "follows", "users"):
        free = [one for one in found if all(one is not taken for taken, _ in chosen.values())]
        scored = [(score, one, columns) for one in free for score, columns in [_score(name, one)] if score > 0]
        if scored:
            _, best, columns = max(scored, key=lambda entry: entry[0])
            chosen[name] = (best, columns)
    if not {"impressions", "posts"} <= chosen.keys():
        return None
    tables = {name: _table(name, *chosen[name]) for name in chosen}
    if "engagements" not in tables:
        impressions, columns = chosen["impressions"]
        labels = _labels(impressions.sample, columns)
        tables["impressions"] = ImpressionsConfig(**tables["impressions"].model_dump(), labels=labels)
    else:
        tables["impressions"] = ImpressionsConfig(**tables["impressions"].model_dump())
    given = {name: value for name, value in config if name in config.model_fields_set and name not in tables}
    return LogConfig(**{**given, "path": config.path, **tables, "on_error": "skip"})


def suggestion_text(config: LogConfig) -> str:
    """The `log` section of a suggested config as YAML, without what is at its default."""
    tree = config.model_dump(mode="json", exclude_defaults=True, exclude={"on_error"})
    text: str = yaml.safe_dump({"log": tree}, sort_keys=False, allow_unicode=True, width=88, default_flow_style=None)
    return text.rstrip()


def _look(folder: Path) -> Iterable[_Found]:
    entries: list[tuple[str, Sequence[Path]]] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not path.name.startswith((".", "_")):
            entries.append((path.name, table_files(path)))
        elif path.is_file() and ending_of(path):
            entries.append((path.name, [path]))
    for name, files in entries:
        sample = _sample(files[0]) if files else None
        if sample:
            yield _Found(name, name.split(".")[0], sample)


def _sample(file: Path) -> dict[str, list[Any]] | None:
    """The first rows of a file, by column; None where it cannot be read."""
    reader = {".parquet": "read_parquet", ".csv": "read_csv", ".tsv": "read_csv"}.get(str(ending_of(file)), "read_json")
    try:
        with duckdb.connect() as connection:
            sample = connection.sql(f"SELECT * FROM {reader}({file_list([file])}) LIMIT {SAMPLE_ROWS}").to_arrow_table()
    except (duckdb.Error, pa.ArrowException):
        return None
    return {name: [value for value in sample[name].to_pylist() if value is not None] for name in sample.column_names}


def _score(name: str, found: _Found) -> tuple[float, dict[str, str]]:
    """How well a thing can be a table of the contract, 0 if it cannot, and contract's column → own column."""
    columns: dict[str, str] = {}
    for column in (*REQUIRED[name], *OPTIONAL.get(name, ())):
        own = _own_name(column, name, found, taken=columns.values())
        if own is not None:
            columns[column] = own
    if not all(column in columns for column in REQUIRED[name]):
        return 0.0, {}
    by_name = bool(re.search(TABLES[name], found.stem, re.IGNORECASE))
    exact = found.stem.lower() == name
    # Users and posts need so few columns that their table must be called like one.
    if name in ("users", "posts") and not (by_name or exact):
        return 0.0, {}
    rows = next((len(values) for values in found.sample.values()), 0)
    return len(columns) + 3.0 * exact + 1.5 * by_name + (0.5 if rows == SAMPLE_ROWS else 0.0), columns


def _own_name(column: str, table: str, found: _Found, taken: Iterable[str]) -> str | None:
    free = [own for own in found.sample if own not in taken]
    if column in free:
        return column
    singular = table.removesuffix("s")
    synonyms = (_plain(column)[1], *COLUMNS.get(column, ()))
    if column == f"{singular}_id" or (table == "users" and column == "user_id"):
        # The key of a table is often called just that.
        synonyms += ("id",)
    for synonym in synonyms:
        for own in free:
            is_meant = synonym in _plain(own)
            if is_meant and (column not in TIMES.get(table, ()) or _is_time(found.sample[own])):
                return own
    return None


def _plain(name: str) -> tuple[str, str]:
    """A name in letters only, with and without what says nothing: of `VIDEO_ID` and `videoId` it is `video`."""
    letters = re.sub(r"[^a-z]", "", name.lower())
    return letters, _SUFFIX.sub("", letters)


def _is_time(values: Sequence[Any]) -> bool:
    if not values or isinstance(values[0], date):
        return bool(values)
    try:
        return _unit(values) is not None or bool(datetime.fromisoformat(values[0]))
    except (TypeError, ValueError):
        return False


def _unit(values: Sequence[Any]) -> str | None:
    """The unit in which numbers are times from 1990 to 2100, if there is one."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return None
    for unit, per_second in (("s", 1), ("ms", 1_000), ("us", 1_000_000)):
        if all(631_152_000 * per_second <= value <= 4_102_444_800 * per_second for value in values):
            return unit
    return None


def _table(name: str, found: _Found, columns: Mapping[str, str]) -> TableConfig:
    times = [columns[column] for column in TIMES.get(name, ()) if column in columns]
    unit = next((unit for own in times if (unit := _unit(found.sample[own]))), None)
    return TableConfig(
        file=None if found.stem == name else found.file,
        columns={column: own for column, own in columns.items() if column != own},
        time_unit=unit,
    )


def _labels(sample: Mapping[str, Sequence[Any]], columns: Mapping[str, str]) -> tuple[str, ...]:
    """The columns that are 0 or 1 and called like something that people do."""
    return tuple(
        own
        for own, values in sample.items()
        if own not in columns.values()
        and values
        and all(value in (0, 1) for value in values if not isinstance(value, str | list | dict))
        and not any(isinstance(value, str | list | dict | date) for value in values)
        and _LABEL.search(own)
    )
