"""Aggregates on Spark: the totals of a key strictly before a moment, and the shared arithmetic on them.

A key's events and the moments that are asked for (each impression, each start of a window or of a block of decayed
counts) are put together, and one window brings them into order:

    sum(…) OVER (PARTITION BY key ORDER BY time RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)

with times in whole microseconds. Such a frame only grows, so that it costs one pass; one that slides would be summed
anew for every row. The totals of an impression's moments are then brought into one row, and `tml.features.statistics`
makes the values of them, with Spark's columns as operands.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from tml.data.log import Log
from tml.data.tables import quote
from tml.features.aggregates import Aggregates, Group, microseconds
from tml.features.events import select_events
from tml.features.sides import ALIASES, code_name, key_column
from tml.features.spark.database import LATEST_IMPRESSIONS, Database, uri
from tml.features.statistics import (
    BLOCKS,
    NEVER,
    block_start,
    count,
    decayed,
    rate,
    rate_of_everyone,
    since,
    weight,
)

DAY = 86_400_000_000
NOW = "now"

Point = tuple[str, Callable[[Column], Column]]
"""A moment that is asked for: its name, and how it comes from the time of the impression."""


class SparkAggregates:
    """Computes the aggregates of one config, a table a key, each with `row` and the values in the order of the columns.

    Args:
        database: holds the log and both sides, in which a key column's code is its value.
        log: says which table a key column is from.
        aggregates: the aggregates.
    """

    def __init__(self, database: Database, log: Log, aggregates: Aggregates) -> None:
        self.database, self.aggregates = database, aggregates
        self.kinds = range(len(aggregates.types) + 1)
        self.log = log
        self._columns = [key_column(log, name) for name in aggregates.columns]
        self._codes = "".join(
            f", {ALIASES[table]}.{quote(column if table == 'impressions' else code_name(name))} AS k{place}"
            for place, (name, (table, column)) in enumerate(zip(aggregates.columns, self._columns, strict=True))
        )

    def write(self, first: int, last: int, folder: Path) -> list[Path]:
        """Compute the aggregates of the impressions from row `first` to `last`: a Parquet folder a key, sorted."""
        if not self.aggregates.keys:
            return []
        sides = "LEFT JOIN post_side p ON p.post_id = {0}.post_id LEFT JOIN user_side u ON u.user_id = {0}.user_id"
        of_impressions = any(table == "impressions" for table, _ in self._columns)
        latest = LATEST_IMPRESSIONS if of_impressions else None
        impressions = " LEFT JOIN impressions i ON i.row = e.row" if of_impressions else ""
        events = self.database.sql(
            f"SELECT e.kind, epoch_us(e.happened_at) AS time{self._codes} "
            f"FROM ({select_events(self.aggregates.types, self.log, latest)}) e {sides.format('e')}{impressions}"
        )
        asked = self.database.sql(
            f"SELECT i.row, epoch_us(i.served_at) AS time{self._codes} "
            f"FROM (FROM impressions WHERE row BETWEEN {first} AND {last}) i {sides.format('i')}"
        )
        events, asked = self.database.keep("events", events), self.database.keep("asked", asked)
        everyone = self._rates_of_everyone(events, asked)
        asked = self.database.keep("asked", asked.join(everyone, "row"))
        paths = []
        for number, (key, groups) in enumerate(self.aggregates.keys.items()):
            paths.append(folder / f"key-{number}")
            self._of_key(key, groups, events, asked).orderBy("row").write.parquet(uri(paths[-1]))
        return paths

    def _of_key(self, key: tuple[str, ...], groups: Sequence[Group], events: DataFrame, asked: DataFrame) -> DataFrame:
        codes = [f"k{self.aggregates.columns.index(column)}" for column in key]
        points = _points(groups, self.aggregates.half_lives(key))
        totals = self._totals(groups, self.aggregates.half_lives(key))
        moments = F.array(
            *(F.struct(F.lit(name).alias("point"), at(F.col("time")).alias("time")) for name, at in points)
        )
        rates = [f"everyone {kind}" for kind in _kinds(groups) if kind]
        queries = asked.select("row", *codes, *rates, F.explode(moments).alias("moment"))
        queries = queries.select("row", *codes, *rates, "moment.point", "moment.time")
        # Where a value is missing nothing happens to the key, but Spark puts all that miss it together.
        has_key = " AND ".join(f"{code} IS NOT NULL" for code in codes)
        known = events.where(has_key).select("kind", "time", *codes)
        both = queries.unionByName(known, allowMissingColumns=True)
        before = Window.partitionBy(*codes).orderBy("time").rangeBetween(Window.unboundedPreceding, -1)
        running = both.select(
            "row", "point", "time", *rates, *(total.over(before).alias(name) for name, total in totals.items())
        ).where("row IS NOT NULL")
        wanted = {f"{name} {total}": (name, total) for name, _ in points for total in totals if _is_used(name, total)}
        found = running.groupBy("row").agg(
            *(_at(name, total).alias(column) for column, (name, total) in wanted.items()),
            *(F.max(F.col(f"`{rate}`")).alias(rate) for rate in rates),
            _at(NOW, "time").alias("time"),
        )
        values = [value for group in groups for value in self._values(group)]
        return found.select("row", *(value.cast("float").alias(f"c{place}") for place, value in enumerate(values)))

    def _totals(self, groups: Sequence[Group], half_lives: Sequence[int]) -> dict[str, Column]:
        """What is totalled over the events of a key: name → aggregate."""
        kind, time = F.col("kind"), F.col("time")
        totals = {f"count {k}": F.count(F.when(kind == k, 1)) for k in _kinds(groups)}
        if any(group.statistic == "since" for group in groups):
            totals |= {f"last {k}": F.max(F.when(kind == k, time)) for k in _kinds(groups)}
        for half_life, k in itertools.product(half_lives, _kinds(groups)):
            # What happened before the log has no time, and so no weight.
            weighed = F.rint(weight(time, half_life)).cast("bigint")
            totals[f"weight {half_life} {k}"] = F.sum(F.when((kind == k) & (time > 0), weighed))
        return totals

    def _values(self, group: Group) -> list[Column]:
        return [self._value(group, kind) for kind in group.kinds]

    def _value(self, group: Group, kind: int) -> Column:
        if group.statistic == "count":
            return _window(group.length, kind)
        if group.statistic == "rate":
            happened, shown = _window(group.length, kind), _window(group.length, 0)
            smoothed: Column = rate(happened, shown, F.col(f"`everyone {kind}`"), self.aggregates.smoothing)
            return smoothed
        if group.statistic == "since":
            last = F.col(f"`{NOW} last {kind}`")
            return F.when(last > 0, since(F.col("time"), last)).otherwise(NEVER)
        half_life = microseconds(group.length)
        ends = [NOW, *(_block(half_life, back) for back in range(BLOCKS))]
        sums = [F.coalesce(F.col(f"`{end} weight {half_life} {kind}`"), F.lit(0)) for end in ends]
        weights = [later - earlier for later, earlier in itertools.pairwise(sums)]
        value: Column = decayed(weights, F.col("time"), half_life)
        return value

    def _rates_of_everyone(self, events: DataFrame, asked: DataFrame) -> DataFrame:
        """The rate of each engagement type in the whole log before each impression.

        A key's line is one task's work. That of everyone would be the whole log, so it is cut into days: the totals
        before a day, and those of the day so far.
        """
        counts = {f"count {k}": F.count(F.when(F.col("kind") == k, 1)) for k in self.kinds}
        both = asked.select("row", "time").unionByName(events.select("kind", "time"), allowMissingColumns=True)
        both = both.withColumn("day", F.floor(F.col("time") / DAY))
        earlier = Window.orderBy("day").rowsBetween(Window.unboundedPreceding, -1)
        of_day = both.groupBy("day").agg(*(total.alias(name) for name, total in counts.items()))
        days = of_day.select(
            "day", *(_or_zero(F.sum(f"`{name}`").over(earlier)).alias(f"days {name}") for name in counts)
        )
        so_far = Window.partitionBy("day").orderBy("time").rangeBetween(Window.unboundedPreceding, -1)
        running = both.select("row", "day", *(total.over(so_far).alias(name) for name, total in counts.items()))
        totals = running.where("row IS NOT NULL").join(F.broadcast(days), "day")
        shown, *engaged = (F.col(f"`days {name}`") + F.col(f"`{name}`") for name in counts)
        rates = [rate_of_everyone(total, shown) for total in engaged]
        return totals.select("row", *(value.alias(f"everyone {k}") for k, value in enumerate(rates, start=1)))


def _kinds(groups: Sequence[Group]) -> list[int]:
    """The kinds of events that some groups look at; a rate looks at impressions, too."""
    return sorted({0, *(kind for group in groups for kind in group.kinds)})


def _points(groups: Sequence[Group], half_lives: Sequence[int]) -> list[Point]:
    windows = dict.fromkeys(g.length for g in groups if g.statistic in ("count", "rate") and g.length != "all")
    points: list[Point] = [(NOW, lambda now: now)]
    points += [(window, partial(_earlier, length=microseconds(window))) for window in windows]
    for half_life, back in itertools.product(half_lives, range(BLOCKS)):
        points.append((_block(half_life, back), partial(block_start, half_life=half_life, back=back)))
    return points


def _earlier(now: Column, length: int) -> Column:
    return now - length


def _block(half_life: int, back: int) -> str:
    return f"block {half_life} {back}"


def _is_used(point: str, total: str) -> bool:
    """Whether a total is asked for at a point: weights at blocks of their half-life, counts at windows, all now."""
    if point.startswith("block "):
        return total.startswith(f"weight {point.split()[1]} ")
    return point == NOW or total.startswith("count ")


def _at(point: str, total: str) -> Column:
    return F.max(F.when(F.col("point") == point, F.col(f"`{total}`")))


def _window(window: str, kind: int) -> Column:
    """What happened in a window."""
    then = F.lit(0) if window == "all" else F.col(f"`{window} count {kind}`")
    happened: Column = count(F.col(f"`{NOW} count {kind}`"), then)
    return happened


def _or_zero(total: Column) -> Column:
    return F.coalesce(total, F.lit(0))
