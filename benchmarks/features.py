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
import time
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
from tml.features.serving import open_features
from tml.features.sides import create_sides
from tml.features.static import StaticColumns
from tml.simulator.config import SimulatorConfig
from tml.simulator.simulate import simulate

USERS = {"full": (7_500, 75_000), "short": (750, 2_250)}
POSTS_PER_USER = 20 / 3
CANDIDATES = 500


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


def against_sql(log: Log, windows: list[str]) -> list[float]:
    """How often quicker time lines are than prefix sums and an ASOF join a window, for viewer and author.

    Both give, for every impression, eleven counts for each window; those of time lines are read out, too.
    """
    key = ("user_id", "author_id")
    block = AggregateConfig(
        keys=(key,), engagements=PUBLISHED_ENGAGEMENTS, windows=tuple(windows), statistics=("count",)
    )
    aggregates = Aggregates.of((block,), 10.0)
    times = log.connection.execute("SELECT epoch_us(served_at) AS t FROM impressions ORDER BY row").fetchnumpy()["t"]

    def with_lines() -> None:
        with tempfile.TemporaryDirectory() as folder:
            codes = create_sides(log, aggregates.columns, StaticColumns((), (), (), ()))
            instants, lines = create_lines(log, aggregates, codes, Folder(Path(folder)))
            packs = log.connection.execute(
                f"SELECT {codes.pack(key)} AS pack FROM impressions i JOIN post_side p USING (post_id) "
                "JOIN user_side u USING (user_id) ORDER BY i.row"
            ).fetchnumpy()["pack"]
            out = np.empty((len(packs), len(aggregates.names)), np.float32)
            aggregates.compute(lines, {key: packs}, instants, times, out)

    return [_with_sql(log, windows) / seconds(with_lines)]


def _with_sql(log: Log, windows: list[str]) -> float:
    run, start = log.connection.execute, time.perf_counter()
    kinds = ", ".join(f"'{kind}'" for kind in PUBLISHED_ENGAGEMENTS)
    run(
        "CREATE OR REPLACE TEMP TABLE happened AS SELECT user_id, author_id, t, k FROM "
        "(SELECT user_id, post_id, served_at AS t, 0 AS k FROM impressions UNION ALL "
        f"SELECT user_id, post_id, engaged_at, list_position([{kinds}], type) FROM engagements) "
        "JOIN posts USING (post_id)"
    )
    counts = ", ".join(f"count(*) FILTER (k = {k}) AS n{k}" for k in range(11))
    sums = ", ".join(f"CAST(sum(n{k}) OVER line AS INTEGER) AS n{k}" for k in range(11))
    run(
        f"CREATE OR REPLACE TEMP TABLE totals AS SELECT user_id, author_id, t, {sums} FROM "
        f"(SELECT user_id, author_id, t, {counts} FROM happened GROUP BY ALL) "
        "WINDOW line AS (PARTITION BY user_id, author_id ORDER BY t ROWS UNBOUNDED PRECEDING)"
    )
    same = "s.user_id = e.user_id AND s.author_id = e.author_id"
    columns = ", ".join(f"e.n{k}" for k in range(11))
    for back in ("0 seconds", *(window.replace("m", " minutes").replace("d", " days") for window in windows)):
        run(
            f"CREATE OR REPLACE TEMP TABLE before AS SELECT s.row, {columns} FROM (SELECT i.row, i.user_id, "
            "p.author_id, i.served_at AS t FROM impressions i JOIN posts p USING (post_id)) s "
            f"ASOF LEFT JOIN totals e ON {same} AND s.t - INTERVAL '{back}' > e.t"
        )
    return time.perf_counter() - start


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
            print_figure("features.one_key_vs_sql_asof", against_sql(log, ["30m", "3d", "50d"]), "ratio", True)


if __name__ == "__main__":
    main()
