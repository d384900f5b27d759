"""The canonical log of a simulation: impressions, engagements, posts, users, follows as Parquet."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tml.simulator.clock import DAY, epoch_microseconds
from tml.simulator.sampling import Integers
from tml.simulator.vocabulary import ENGAGEMENT_TYPES, LANGUAGES, MEDIA, topic_names
from tml.simulator.world import Hour, World


@dataclass(frozen=True)
class Log:
    """All hours together. Impressions are sorted by time, engagements by theirs."""

    user: Integers  # (impressions,)
    post: Integers
    served_at: Integers  # microseconds since the start
    position: Integers
    session: Integers  # from 0 in the order of the sessions' starts
    order: Integers  # (impressions,), where each was in the concatenated hours
    engaged: Integers  # (engagements,), the impression
    kind: Integers
    engaged_at: Integers


def collect_log(hours: list[Hour]) -> Log:
    """Put the hours together and give sessions and impressions their ids."""
    size = np.cumsum([0, *(len(hour.session) for hour in hours)])
    most = np.cumsum([0, *(int(hour.session.max(initial=-1)) + 1 for hour in hours)])
    session = np.concatenate([hour.session + first for hour, first in zip(hours, most, strict=False)])
    # Sessions that had nothing to show leave no number out.
    session = np.unique(session, return_inverse=True)[1].astype(np.int64)
    served_at = np.concatenate([hour.shown.served_at for hour in hours])
    order = np.lexsort((session, served_at))
    impression_id = np.empty(len(order), dtype=np.int64)
    impression_id[order] = np.arange(len(order))
    engaged = impression_id[np.concatenate([hour.engaged + first for hour, first in zip(hours, size, strict=False)])]
    kind = np.concatenate([hour.kind for hour in hours])
    engaged_at = np.concatenate([hour.engaged_at for hour in hours])
    by_time = np.lexsort((kind, engaged, engaged_at))
    return Log(
        user=np.concatenate([hour.shown.user for hour in hours])[order],
        post=np.concatenate([hour.shown.post for hour in hours])[order],
        served_at=served_at[order],
        position=np.concatenate([hour.shown.position for hour in hours])[order],
        session=session[order],
        order=order,
        engaged=engaged[by_time],
        kind=kind[by_time],
        engaged_at=engaged_at[by_time],
    )


def write_log(folder: Path, world: World, log: Log) -> None:
    """Write the five tables into an empty folder."""
    start, posts, graph, population = world.config.start, world.posts, world.graph, world.population
    impressions = {
        "impression_id": np.arange(len(log.user)),
        "user_id": log.user,
        "post_id": log.post,
        "served_at": _timestamps(log.served_at, start),
        "position": log.position.astype(np.int16),
        "session_id": log.session,
    }
    engagements = {
        "user_id": log.user[log.engaged],
        "post_id": log.post[log.engaged],
        "type": _names(ENGAGEMENT_TYPES, log.kind),
        "engaged_at": _timestamps(log.engaged_at, start),
    }
    post_columns = {
        "post_id": np.arange(len(posts.author)),
        "author_id": posts.author,
        "created_at": _timestamps(posts.created_at, start),
        "topic": _names(topic_names(world.config.topics), posts.topic),
        "language": _names(LANGUAGES, posts.language),
        "media": _names(MEDIA, posts.media),
        "length": posts.length.astype(np.int32),
    }
    users = {
        "user_id": np.arange(len(population.language)),
        "language": _names(LANGUAGES, population.language),
        "signed_up_at": _timestamps((-population.account_age_days * DAY).astype(np.int64), start),
    }
    follows = {
        "user_id": graph.user,
        "followed_id": graph.followed,
        "followed_at": _timestamps(graph.followed_at, start),
    }
    write_table(impressions, folder / "impressions.parquet")
    write_table(engagements, folder / "engagements.parquet")
    write_table(post_columns, folder / "posts.parquet")
    write_table(users, folder / "users.parquet")
    write_table(follows, folder / "follows.parquet")


def write_table(columns: dict[str, Any], path: Path) -> None:
    """Write columns as one Parquet file, always with the same settings, so that equal values give equal bytes."""
    pq.write_table(pa.table(columns), path, compression="zstd", row_group_size=1 << 17, version="2.6")


def _timestamps(since_start: Integers, start: datetime) -> pa.Array:
    return pa.array(since_start + epoch_microseconds(start)).cast(pa.timestamp("us", tz="UTC"))


def _names(names: tuple[str, ...] | list[str], index: Integers) -> pa.Array:
    return pa.array(names, type=pa.string()).take(pa.array(index))
