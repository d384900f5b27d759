"""TwHIN by itself: a graph of a job's log, and training on a graph, with no ranker behind it."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

from tml import __version__
from tml.core.config import fingerprint, load_config, parse_config, to_yaml
from tml.core.distributed import is_first_rank, process_group
from tml.core.errors import ConfigError, UserError
from tml.core.files import require_replaceable, whole_folder, write_text
from tml.core.lock import alone
from tml.data.log import open_log
from tml.features.build import train_start
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.data import extract_graph, extract_new_edges
from tml.projects.twhin.graph import PARTS, GraphFolder, graph_digest
from tml.projects.twhin.published import PublishedConfig, is_published, notes, prepare_published
from tml.projects.twhin.train import train_on_graph
from tml.run_config import RunConfig


def train_graph(config: RunConfig, graph: Path, folder: Path) -> None:
    """Train TwHIN on a prepared graph, with the job's `twhin` and `seed` and nothing else of it.

    Raises:
        ConfigError: the job goes without TwHIN.
        DataError: the folder is no graph.
    """
    twhin = _twhin_of(config)
    digest = graph_digest(GraphFolder(graph).path)
    with process_group(), alone(folder) if is_first_rank() else nullcontext():
        if is_first_rank():
            write_text(folder / "config.yaml", to_yaml(config))
        mark = fingerprint(__version__, "twhin on a graph", digest, twhin, config.seed)
        train_on_graph(graph, twhin, folder, config.seed, mark)


def graph_config(path: Path | None, overrides: Sequence[str]) -> RunConfig:
    """The job of a config file for training on a graph; of TwHIN's published configuration, too."""
    if not is_published(path):
        return load_config(RunConfig, path, overrides)
    published = load_config(PublishedConfig, path, overrides)
    for line in notes(published):
        print(line, file=sys.stderr)
    return parse_config(RunConfig, published.job(), str(path))


def prepare_config(
    path: Path, overrides: Sequence[str], out: Path, until: datetime | None, test_until: datetime | None
) -> dict[str, int]:
    """Make the graph of a config file: of a job's log, or of TwHIN's published configuration; see `prepare_log`."""
    config = graph_config(path, overrides)
    if not is_published(path):
        return prepare_log(config, out, until, test_until)
    if until is not None or test_until is not None:
        raise UserError(f"--until: found with the published configuration {path}, allowed only with an engagement log")
    return prepare_published(load_config(PublishedConfig, path, overrides), _twhin_of(config), out)


def prepare_log(config: RunConfig, out: Path, until: datetime | None, test_until: datetime | None) -> dict[str, int]:
    """Make TwHIN's graph of a job's log.

    Args:
        config: names the log and the relations.
        out: the folder to write.
        until: an edge is older than this; None is the start of the ranker's training.
        test_until: edges that are new from then on until this are the test's; None writes no test.

    Returns:
        The number of edges of each split.

    Raises:
        ConfigError: the job goes without TwHIN, or reads no log.
        UserError: `out` has something else than an older graph in it.
        DataError: the log lacks what a relation needs, or no edge is new.
    """
    twhin = _twhin_of(config)
    if config.log is None:
        raise ConfigError("log: found no log to make a graph of, allowed is a job that reads one")
    require_replaceable(out, PARTS, ["relations.json"])
    with open_log(config.log) as log, whole_folder(out) as folder:
        if log.skipped:
            print(log.skipped_line(), file=sys.stderr)
        since = until or train_start(log, config.split)
        edges = {"train": len(extract_graph(log.connection, twhin, since, folder))}
        if test_until is not None:
            edges["test"] = extract_new_edges(log.connection, twhin, folder, since, test_until)
    return edges


def _twhin_of(config: RunConfig) -> TwhinConfig:
    if config.twhin is None:
        raise ConfigError("twhin: found null, allowed here is a config of TwHIN")
    return config.twhin
