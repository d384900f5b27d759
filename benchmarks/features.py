"""The default features on simulated logs of two sizes: rate, memory, growth, a request's time, and against SQL alone.

python benchmarks/features.py [--short] [--logs FOLDER]

Without --short the logs have 1 and 10 million impressions; they take some minutes to simulate, and --logs keeps them.
Each size is built in a process of its own, whose peak memory counts from its start: opening the log is in it, and
simulating is not. The way from the open log to the written dataset is timed, labels and all.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from _machine import print_figure, print_machine, seconds

from tml.data.config import PUBLISHED_ENGAGEMENTS, LogConfig, published_tasks
from tml.data.examples import Schema
from tml.data.log import Log, open_log
from tml.features.aggregates import Aggregates
from tml.features.build import build_examples
from tml.features.config import AggregateConfig, FeaturesConfig, SplitConfig
from tml.features.events import create_lines
from tml.features.lines import Folder
from tml.features.resolve import DEFAULT_KEYS
from tml.features.serving import open_features
from tml.features.sides import create_sides
from tml.features.static import StaticColumns
from tml.simulator.config import SimulatorConfig
from tml.simulator.simulate import simulate

USERS = {"full": (7_500, 75_000), "short": (750, 2_250)}
POSTS_PER_USER = 20 / 3
CANDIDATES = 500
WINDOWS = {"30m": "30 minutes", "3d": "3 days", "50d": "50 days"}


def make_log(folder: Path, users: int) -> LogConfig:
    """A simulated log of about 134 impressions a user, if it is not there."""
    path = folder / f"users-{users}"
    if not path.exists():
        simulate(SimulatorConfig(users=users, posts=round(users * POSTS_PER_USER)), path, seed=0)
    return LogConfig(path=path)


def build(config: LogConfig) -> None:
    """Build the example dataset of a log, and print rows, seconds and this process's peak memory."""
    with tempfile.TemporaryDirectory() as out, open_log(config) as log:
        arguments = (published_tasks(), FeaturesConfig(), SplitConfig(train_start=0.0), Path(out) / "examples", 0, "")
        took = seconds(lambda: build_examples(log, *arguments))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"rows": log.rows, "seconds": took, "bytes": peak}))


def built(config: LogConfig, runs: int) -> list[dict[str, float]]:
    """What `build` prints in fresh processes."""
    command = [sys.executable, __file__, "--build", str(config.path)]
    return [
        json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout) for _ in range(runs)
    ]


def request_milliseconds(config: LogConfig, runs: int) -> list[float]:
    """The time of requests of some viewer for the features of 500 posts at the end of the log."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as out, open_log(config) as log:
        arguments = (published_tasks(), FeaturesConfig(), SplitConfig(train_start=0.9, validation_start=0.99))
        schema: Schema = build_examples(log, *arguments, Path(out) / "examples", 0, "")
        users = log.connection.execute("SELECT DISTINCT user_id FROM impressions ORDER BY 1").fetchnumpy()["user_id"]
        posts = log.connection.execute("SELECT post_id FROM posts ORDER BY 1").fetchnumpy()["post_id"]
        found = []
        with open_features(log, schema) as features:
            for _ in range(runs + 1):
                candidates = pa.table(
                    {
                        "user_id": np.repeat(random.choice(users), CANDIDATES),
                        "post_id": random.choice(posts, CANDIDATES),
                        "served_at": pa.array([log.end] * CANDIDATES, pa.timestamp("us")),
                        "position": np.arange(CANDIDATES),
                    }
                )
                found.append(seconds(lambda candidates=candidates: features.compute(candidates)) * 1000)
    return found[1:]  # the first one reads the time lines from disk


def against_sql(log: Log) -> list[float]:
    """How often quicker time lines are than prefix sums and an ASOF join for each window.

    Both give, in the order of the impressions, eleven counts for every default key and window.
    """
    return [seconds(lambda: count_with_sql(log)) / seconds(lambda: count_with_lines(log))]


def count_with_lines(log: Log) -> None:
    """The counts by time lines, a chunk at a time."""
    block = AggregateConfig(
        keys=DEFAULT_KEYS, engagements=PUBLISHED_ENGAGEMENTS, windows=tuple(WINDOWS), statistics=("count",)
    )
    aggregates, chunk = Aggregates.of((block,), 10.0), FeaturesConfig().chunk_rows
    with tempfile.TemporaryDirectory() as folder:
        codes = create_sides(log, aggregates.columns, StaticColumns((), (), (), ()))
        instants, lines = create_lines(log, aggregates, codes, Folder(Path(folder)))
        packs = ", ".join(f"{codes.pack(key)} AS pack{n}" for n, key in enumerate(aggregates.keys))
        for first in range(0, log.rows, chunk):
            table = log.connection.sql(
                f"SELECT {packs}, epoch_us(i.served_at) AS t "
                f"FROM (FROM impressions WHERE row BETWEEN {first} AND {first + chunk - 1}) i "
                "JOIN post_side p USING (post_id) JOIN user_side u USING (user_id) ORDER BY i.row"
            ).to_arrow_table()
            of_keys = {key: table[f"pack{n}"].to_numpy() for n, key in enumerate(aggregates.keys)}
            out = np.empty((len(table), len(aggregates.names)), np.float32)
            aggregates.compute(lines, of_keys, instants, table["t"].to_numpy(), out)


def count_with_sql(log: Log) -> None:
    """The counts by DuckDB alone."""
    run = log.connection.execute
    kinds = ", ".join(f"'{kind}'" for kind in PUBLISHED_ENGAGEMENTS)
    run(
        "CREATE OR REPLACE TEMP TABLE happened AS SELECT user_id, author_id, post_id, topic, t, k FROM "
        "(SELECT user_id, post_id, served_at AS t, 0 AS k FROM impressions UNION ALL "
        f"SELECT user_id, post_id, engaged_at, list_position([{kinds}], type) FROM engagements) "
        "JOIN posts USING (post_id)"
    )
    counts = ", ".join(f"count(*) FILTER (k = {k}) AS n{k}" for k in range(11))
    sums = ", ".join(f"CAST(sum(n{k}) OVER line AS INTEGER) AS n{k}" for k in range(11))
    for key in DEFAULT_KEYS:
        columns = ", ".join(key)
        run(
            f"CREATE OR REPLACE TEMP TABLE totals AS SELECT {columns}, t, {sums} FROM "
            f"(SELECT {columns}, t, {counts} FROM happened GROUP BY ALL) "
            f"WINDOW line AS (PARTITION BY {columns} ORDER BY t ROWS UNBOUNDED PRECEDING)"
        )
        joins, values = "", []
        for alias, back in {"now": "0 seconds", **WINDOWS}.items():
            same = " AND ".join(f'i.{c} = "{alias}".{c}' for c in key)
            joins += f' ASOF LEFT JOIN totals "{alias}" ON {same} AND i.t - INTERVAL \'{back}\' > "{alias}".t'
        for window in WINDOWS:
            values += [f'CAST(coalesce(now.n{k}, 0) - coalesce("{window}".n{k}, 0) AS FLOAT)' for k in range(11)]
        shown = f"SELECT row, {columns}, served_at AS t FROM impressions JOIN posts USING (post_id)"
        named = ", ".join(f"{value} AS f{n}" for n, value in enumerate(values))
        run(f"CREATE OR REPLACE TEMP TABLE counted AS SELECT i.row, {named} FROM ({shown}) i {joins} ORDER BY i.row")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="logs of 0.1 and 0.3 million impressions")
    parser.add_argument("--logs", type=Path, help="where the simulated logs are kept")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        build(LogConfig(path=options.build))
        return
    print_machine()
    with tempfile.TemporaryDirectory() as made:
        folder = options.logs or Path(made)
        small, large = (make_log(folder, users) for users in USERS["short" if options.short else "full"])
        figures = {"small": built(small, runs=3), "large": built(large, runs=3 if options.short else 1)}
        for name, found in figures.items():
            print_figure(f"features.{name}.impressions", [f["rows"] for f in found], "1", True)
            rates = [f["rows"] / f["seconds"] for f in found]
            print_figure(f"features.{name}.impressions_per_second", rates, "1/s", True)
            print_figure(f"features.{name}.peak_memory", [f["bytes"] / 2**30 for f in found], "GiB", False)
        each = {name: min(f["seconds"] / f["rows"] for f in found) for name, found in figures.items()}
        print_figure("features.time_per_impression_large_vs_small", [each["large"] / each["small"]], "ratio", False)
        print_figure("features.request_of_500", request_milliseconds(small, 20), "ms", False)
        with open_log(small) as log:
            print_figure("features.counts_vs_sql_asof", against_sql(log), "ratio", True)


if __name__ == "__main__":
    main()
