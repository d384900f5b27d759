"""KuaiRand (Gao et al., CIKM 2022, doi 10.1145/3511808.3557624): impressions of a short-video feed with eight labels.

All three versions, Pure, 1K and 27K, under their original names: `log_standard_*`, `log_random_*` (a few impressions of
random videos, put into the feed: `is_rand`), `user_features_*`, `video_features_basic_*`; and an extract with one
`log.csv` and edges from before it, `history_edges_*`. Labels are columns of the impressions. Play and stay times are
outcomes and left out. Days are Beijing's.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from tml.core.errors import DataError
from tml.data.converters.writer import Converted, LogWriter, text_relation, writing
from tml.data.faults import first_line
from tml.data.readers.csv import UNREADABLE, read_header
from tml.data.tables import quote

BEIJING = timezone(timedelta(hours=8))

LABELS = ("is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter")
OUTCOMES = ("play_time_ms", "profile_stay_time", "comment_stay_time")
RELATIONS = {"shown": "impression", "long_watch": "long_view", "like": "is_like"}

_LOGS = ("log_standard_*.csv*", "log_random_*.csv*", "log.csv*")
_FLOATS = ("visible_status", "video_duration", "server_width", "server_height", "music_type")
_INTEGERS = (
    "user_id", "video_id", "author_id", "music_id", "date", "hourmin", "time_ms", "duration_ms", "is_rand", "tab",
    *LABELS, *OUTCOMES, "is_lowactive_period", "is_live_streamer", "is_video_author", "follow_user_num",
    "fans_user_num", "friend_user_num", "register_days", "onehot_feat0", "onehot_feat1", "onehot_feat2", "onehot_feat3",
    "onehot_feat8", "position",
)  # fmt: skip
_TYPES = {
    **dict.fromkeys(_FLOATS, "DOUBLE"),
    **dict.fromkeys(_INTEGERS, "BIGINT"),
    "upload_dt": "DATE",
}
"""Of columns that are not text."""


def convert_kuairand(source: Path, out: Path) -> Converted:
    """Convert KuaiRand.

    Raises:
        DataError: a file that is missing, or not what it should be, by name and line.
    """
    folder = source if source.is_dir() else source.parent
    # The archives hold their files in a folder `data`.
    folder = folder / "data" if (folder / "data").is_dir() else folder
    logs = [file for pattern in _LOGS for file in sorted(folder.glob(pattern))]
    users, videos = (sorted(folder.glob(f"{name}_*.csv*")) for name in ("user_features", "video_features_basic"))
    history = sorted(folder.glob("history_edges_*.csv*"))
    for name, files in (("log_standard_*.csv", logs), ("video_features_basic_*.csv", videos)):
        if not files:
            raise DataError(f"{folder}: no file {name}, allowed is a folder of KuaiRand as it is published")
    with writing(out, steps=3 + bool(users) + bool(history)) as log:
        log.read("raw", " UNION ALL BY NAME ".join(_log(file) for file in logs))
        log.write("impressions", _impressions(log))
        log.write("posts", _features(videos, {"video_id": "post_id", "upload_dt": "created_at", "tag": "topic"}))
        if users:
            log.write("users", _features(users, {}))
        if history:
            renames = " ".join(f"WHEN '{own}' THEN '{ours}'" for own, ours in RELATIONS.items())
            edges = _features(history, {"video_id": "post_id", "relation": "type"})
            log.write("history", f"SELECT * REPLACE (CASE type {renames} ELSE type END AS type) FROM ({edges})")
        notes = _write_config(log, bool(users), bool(history))
    return Converted(out, log.rows, notes)


def _columns(file: Path) -> Mapping[str, str]:
    try:
        header = read_header(file)
    except UNREADABLE as error:
        raise DataError(f"{file}: not a readable CSV file ({first_line(error)})") from None
    if header is None:
        raise DataError(f"{file}: found an empty file, allowed is one of KuaiRand as it is published")
    return {name: _TYPES.get(name, "VARCHAR") for name in header.names}


def _relation(file: Path, columns: Mapping[str, str]) -> str:
    return text_relation([file], columns, ",", header=True, quote='"')


def _log(file: Path) -> str:
    columns = _columns(file)
    missing = [name for name in ("user_id", "video_id", "time_ms", *LABELS) if name not in columns]
    if missing:
        raise DataError(f"{file}: found no column {', '.join(missing)}, allowed are the columns as they are published")
    new = {
        "video_id": "video_id AS post_id",
        "time_ms": "make_timestamp(time_ms * 1000) AT TIME ZONE 'UTC' AS served_at",
    }
    new |= {label: f"CAST({label} AS TINYINT) AS {label}" for label in LABELS}
    return f"SELECT {', '.join(new.get(name, quote(name)) for name in columns)} FROM {_relation(file, columns)}"


def _impressions(log: LogWriter) -> str:
    """Each impression once and numbered in the order in which a log would be: what differs in an outcome stays two."""
    names = [row[0] for row in log.connection.execute("DESCRIBE raw").fetchall()]
    first = ("served_at", "user_id", "post_id")
    order = ", ".join(map(quote, (*first, *(name for name in names if name not in first))))
    numbered = f"SELECT row_number() OVER () - 1 AS impression_id, * FROM (SELECT DISTINCT * FROM raw ORDER BY {order})"
    return f"SELECT * EXCLUDE ({', '.join(name for name in OUTCOMES if name in names)}) FROM ({numbered})"


def _features(files: list[Path], names: Mapping[str, str]) -> str:
    parts = []
    for file in files:
        columns = _columns(file)
        selected = ", ".join(f"{quote(name)} AS {quote(names.get(name, name))}" for name in columns)
        parts.append(f"SELECT {selected} FROM {_relation(file, columns)}")
    return " UNION ALL BY NAME ".join(parts)


def _write_config(log: LogWriter, has_users: bool, has_history: bool) -> tuple[str, ...]:
    start, end = (_beijing(log.one(f"SELECT epoch({which}(served_at)) FROM raw")) for which in ("min", "max"))
    last_day = end.replace(hour=0, minute=0, second=0, microsecond=0)
    first_hour = start.replace(minute=0, second=0, microsecond=0)
    # The published log has two weeks before 22 April, from which a graph can be learnt.
    graph_until = datetime(2022, 4, 22, tzinfo=BEIJING)
    train_start: Any = first_hour if has_history else graph_until if start < graph_until < last_day else 0.25
    users = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
    flags = ("is_live_streamer", "is_lowactive_period", "is_video_author")
    categories = ("user_active_degree", *(f"onehot_feat{number}" for number in (0, 1, 2, 3, 8)))
    graph = "history" if has_history else "engagements"
    section: dict[str, Any] = {"session_gap_minutes": 720, "impressions": {"labels": list(LABELS)}}
    if has_history:
        section["history"] = {"ended_at": _text(first_hour)}
    tree = {
        "log": section,
        "tasks": {name: {"engagement": name} for name in ("is_click", "long_view", "is_like", "is_profile_enter")},
        "features": {
            "windows": ["3d", "all"],
            "continuous": ["posts.video_duration", *(f"users.{name}" for name in users if has_users)],
            "binary": [f"users.{name}" for name in flags if has_users],
            "discrete": [
                *("impressions.tab", "posts.topic", "posts.upload_type", "posts.music_type"),
                *(f"users.{name}" for name in categories if has_users),
            ],
        },
        "split": {
            "train_start": train_start if isinstance(train_start, float) else _text(train_start),
            "validation_start": _text(last_day),
            "validation_end": _text(last_day + timedelta(days=1)),
        },
        "twhin": {
            "relations": [
                {"name": "long_watch", "source": graph, "type": "long_view", "tail": "post"},
                {"name": "like", "source": graph, "type": "is_like", "tail": "post"},
            ]
        },
        "recap": {
            "batch_size": 256,
            "embeddings": {
                "user_embedding": {"nodes": "user", "key": "user_id"},
                "post_embedding": {"nodes": "post", "key": "post_id"},
            },
        },
        "weights": {"is_click": 1.0, "long_view": 2.0, "is_like": 10.0, "is_profile_enter": 5.0},
    }
    duplicates = log.one("SELECT count(*) FROM raw") - log.rows["impressions"]
    notes = (
        f"{duplicates:,} exact duplicates of impressions are left out",
        f"{', '.join(OUTCOMES)} are outcomes and left out",
        f"the held-out part is the last day, {last_day:%d %B %Y} in Beijing",
        "the log is a sample of impressions: a session is what one person saw in one stretch of a day",
    )
    log.config("\n".join(("KuaiRand, converted.", *(f"- {note}" for note in notes))), tree)
    return notes


def _beijing(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, BEIJING)


def _text(at: datetime) -> str:
    return at.isoformat()
