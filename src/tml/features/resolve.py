"""A feature config with nothing left open: what it leaves at null, taken from what the log has."""

from collections.abc import Mapping, Sequence

from tml.core.errors import DataError
from tml.data.config import TaskConfig
from tml.data.log import IMPRESSION, Log
from tml.features.aggregates import key_name
from tml.features.config import AggregateConfig, FeaturesConfig, SequenceConfig
from tml.features.graph import graph_features
from tml.features.sides import key_column
from tml.features.static import static_columns

DEFAULT_KEYS = (
    ("user_id",),
    ("author_id",),
    ("post_id",),
    ("user_id", "author_id"),
    ("topic",),
    ("user_id", "topic"),
)
COUNT_WINDOWS = ("30m", "3d")
RATE_WINDOWS = ("50d",)
"""The published windows. The ranker reads logarithms of counts, so that the rate of a window is little more to it than
the difference of two; where most was seen, the smoothed rate has something of its own to say."""


def resolve_features(log: Log, tasks: Mapping[str, TaskConfig], config: FeaturesConfig) -> FeaturesConfig:
    """The config with every field said, as an example dataset's schema keeps it.

    Raises:
        DataError: a column or an engagement that the log does not have; two keys of one name.
    """
    static = static_columns(log, config)
    blocks = _blocks(log, tasks, config)
    engagements = {name for block in blocks for name in block.engagements or ()}
    _check_engagements(log, sorted(engagements))
    for block in blocks:
        for key in block.keys or ():
            for column in key:
                key_column(log, column)
    _check_names([key for block in blocks for key in block.keys or ()])
    return config.model_copy(
        update={
            "keys": None,
            "engagements": None,
            "windows": None,
            "statistics": None,
            "aggregates": blocks,
            "graph": graph_features(log, config),
            "continuous": static.continuous,
            "discrete": static.discrete,
            "sequence": _sequence(log, tasks, config),
        }
    )


def _blocks(log: Log, tasks: Mapping[str, TaskConfig], config: FeaturesConfig) -> tuple[AggregateConfig, ...]:
    keys = config.keys
    if keys is None:
        keys = tuple(key for key in DEFAULT_KEYS if all(_has(log, column) for column in key))
    engagements = config.engagements
    if engagements is None:
        engagements = tuple(dict.fromkeys(task.engagement for task in tasks.values()))
    long = (*RATE_WINDOWS, "all") if log.has("history") else RATE_WINDOWS
    base = AggregateConfig(
        keys=keys or None,
        engagements=engagements,
        windows=config.windows or (*COUNT_WINDOWS, *long),
        statistics=config.statistics or ("count", "rate"),
        half_lives=config.half_lives,
    )
    if config.aggregates is not None:
        given = [block.model_dump(exclude_none=True) for block in config.aggregates]
        return tuple(base.model_copy(update=fields) for fields in given)
    if not keys:
        return ()
    if config.windows is None and config.statistics is None:
        short = base.model_copy(update={"windows": COUNT_WINDOWS, "statistics": ("count",)})
        return short, base.model_copy(update={"windows": long})
    return (base,)


def _sequence(log: Log, tasks: Mapping[str, TaskConfig], config: FeaturesConfig) -> SequenceConfig | None:
    if config.sequence is None:
        return None
    engagements = config.sequence.engagements
    if engagements is None:
        engagements = tuple(dict.fromkeys(task.engagement for task in tasks.values()))
    _check_engagements(log, sorted(engagements))
    return config.sequence.model_copy(update={"engagements": engagements})


def _has(log: Log, column: str) -> bool:
    return column == "user_id" or log.has("posts", column) or log.has("users", column)


def _check_names(keys: Sequence[Sequence[str]]) -> None:
    named: dict[str, Sequence[str]] = {}
    for key in keys:
        other = named.setdefault(key_name(key), key)
        if other != key:
            raise DataError(
                f"features.keys: found [{', '.join(other)}] and [{', '.join(key)}], whose features would have the same "
                f"names, {key_name(key)}.…; allowed are keys that names tell apart"
            )


def _check_engagements(log: Log, wanted: list[str]) -> None:
    found = [row[0] for row in log.connection.execute(_types(log)).fetchall()]
    for name in wanted:
        if name not in (*found, IMPRESSION):
            raise DataError(
                f"features.engagements: found {name!r}, which never occurs in the log; "
                f"its engagement types are {', '.join(found) or 'none'}"
            )


def _types(log: Log) -> str:
    history = " UNION SELECT type FROM history" if log.has("history") else ""
    return f"SELECT DISTINCT type FROM (SELECT type FROM engagements{history}) ORDER BY 1"
