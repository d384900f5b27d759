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
    """Make the table `following(user_id, followed_id, since)`, a row a pair, `since` null where it has always held."""
    if log.has("follows"):
        log.connection.execute(
            "CREATE OR REPLACE TEMP TABLE following AS SELECT user_id, followed_id, "
            "CASE WHEN count(*) = count(followed_at) THEN min(followed_at) END AS since FROM follows GROUP BY ALL "
            "ORDER BY user_id, followed_id"
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
        common = (
            f"SELECT i.row, count(*) AS n FROM {relation} i JOIN post_side p USING (post_id) "
            f"JOIN following a ON a.user_id = i.user_id AND {_before('a')} "
            f"JOIN following b ON b.user_id = p.author_id AND b.followed_id = a.followed_id AND {_before('b')} "
            "GROUP BY i.row"
        )
        joins += f" LEFT JOIN ({common}) c ON c.row = i.row"
        expressions["common_follows"] = "coalesce(c.n, 0)"
    return expressions, joins


def _follow(alias: str, user: str, followed: str) -> str:
    match = f"{alias}.user_id = {user} AND {alias}.followed_id = {followed}"
    return f" LEFT JOIN following {alias} ON {match} AND {_before(alias)}"


def _before(alias: str) -> str:
    return f"coalesce({alias}.since < i.served_at, true)"
