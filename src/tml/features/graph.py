"""What the follows that are there by then tell of a viewer and an author.

    follows_author   the viewer follows the author
    mutual_follow    both follow each other
    common_follows   how many accounts both of them follow

A follow counts from strictly after its time; one without a time has held since before the log.
"""

from collections.abc import Sequence

from tml.core.errors import DataError
from tml.data.log import Log
from tml.features.config import FeaturesConfig, GraphFeature

BINARY: tuple[GraphFeature, ...] = ("follows_author", "mutual_follow")
CONTINUOUS: tuple[GraphFeature, ...] = ("common_follows",)


def graph_features(log: Log, config: FeaturesConfig) -> tuple[GraphFeature, ...]:
    """The graph features of a config, in order; by default all, none in a log without follows.

    Raises:
        DataError: the config names some, but the log has no follows.
    """
    if config.graph and not log.has("follows"):
        raise DataError(
            f"features.graph: found {', '.join(config.graph)} with a log that has no table follows, "
            "allowed is only null or []"
        )
    wanted = config.graph if config.graph is not None else (*BINARY, *CONTINUOUS) * log.has("follows")
    return tuple(name for name in (*BINARY, *CONTINUOUS) if name in wanted)


def create_following(log: Log) -> None:
    """Make the tables that the graph features read.

    `following(user_id, followed_id, since)` has a row a pair, `since` null where it has always held;
    `follow_counts(user_id, n)` says how many accounts one follows.
    """
    if log.has("follows"):
        log.connection.execute(
            "CREATE OR REPLACE TEMP TABLE following AS SELECT user_id, followed_id, "
            "CASE WHEN count(*) = count(followed_at) THEN min(followed_at) END AS since FROM follows GROUP BY ALL "
            "ORDER BY user_id, followed_id"
        )
        log.connection.execute(
            "CREATE OR REPLACE TEMP TABLE follow_counts AS SELECT user_id, count(*) AS n FROM following GROUP BY ALL"
        )


def select_graph(features: Sequence[str], relation: str) -> tuple[dict[str, str], str]:
    """SQL of graph features: name → expression, and the joins to impressions `i` of `relation` and the side `p`.

    `follows_author` is always there, and 0 where it is not among the features.
    """
    expressions, joins = {"follows_author": "0"}, ""
    if "follows_author" in features or "mutual_follow" in features:
        joins += _follow("f", "i.user_id", "p.author_id")
    if "follows_author" in features:
        expressions["follows_author"] = "CAST(f.user_id IS NOT NULL AS INTEGER)"
    if "mutual_follow" in features:
        joins += _follow("g", "p.author_id", "i.user_id")
        expressions["mutual_follow"] = "CAST(f.user_id IS NOT NULL AND g.user_id IS NOT NULL AS INTEGER)"
    if "common_follows" in features:
        joins += f" LEFT JOIN ({_common(relation)}) c ON c.row = i.row"
        expressions["common_follows"] = "coalesce(c.n, 0)"
    return expressions, joins


def _common(relation: str) -> str:
    """SQL of how many accounts viewer and author both follow: `row` and `n`, where there is one.

    Each account of whoever follows fewer is looked up among those of the other, so that one who follows everybody costs
    no more than others.
    """
    fewer = "u.n <= a.n"
    pairs = (
        f"SELECT i.row, i.served_at, CASE WHEN {fewer} THEN u.user_id ELSE a.user_id END AS few, "
        f"CASE WHEN {fewer} THEN a.user_id ELSE u.user_id END AS many "
        f"FROM {relation} i JOIN post_side p ON p.post_id = i.post_id "
        "JOIN follow_counts u ON u.user_id = i.user_id JOIN follow_counts a ON a.user_id = p.author_id"
    )
    return (
        f"SELECT i.row, count(*) AS n FROM ({pairs}) i "
        f"JOIN following f ON f.user_id = i.few AND {_before('f')} "
        f"JOIN following g ON g.user_id = i.many AND g.followed_id = f.followed_id AND {_before('g')} "
        "GROUP BY i.row"
    )


def _follow(alias: str, user: str, followed: str) -> str:
    match = f"{alias}.user_id = {user} AND {alias}.followed_id = {followed}"
    return f" LEFT JOIN following {alias} ON {match} AND {_before(alias)}"


def _before(alias: str) -> str:
    return f"coalesce({alias}.since < i.served_at, true)"
