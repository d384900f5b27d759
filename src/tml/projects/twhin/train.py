"""TwHIN from a log to vectors in files: extract the graph, train, measure, export.

    OUT/graph/            the edges and vocabularies (`data.py`)
    OUT/checkpoints/, metrics.jsonl, tensorboard/     of the training
    OUT/embeddings/       the vectors (`export.py`)

A few edges are held out; how well the vectors find them is printed and logged beside what popularity alone finds. The
split, the order, the negatives and the first vectors follow from the seed, and an interrupted training goes on from its
last checkpoint with the same bits.
"""

import math
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import torch
from torch import distributed, nn

from tml.core.distributed import gathered, is_first_rank, pick_device, ranks, unwrap
from tml.core.errors import ConfigError, DataError
from tml.core.training import TrainingConfig, TrainResult, TrainState, resume, train
from tml.embeddings.partitioned import PartitionedTables
from tml.embeddings.partitions import Partitions, cut_tables
from tml.embeddings.sharded import ShardedTables
from tml.projects.twhin.batches import EdgeBatches
from tml.projects.twhin.buckets import BucketBatches
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.data import extract_graph, hold_out, hold_out_on_disk
from tml.projects.twhin.evaluate import evaluate_edges
from tml.projects.twhin.export import export_embeddings, read_along
from tml.projects.twhin.first_vectors import load_first_vectors
from tml.projects.twhin.graph import Graph, GraphFolder, read_graph
from tml.projects.twhin.model import TwhinModel
from tml.projects.twhin.optimizer import build_optimizer, row_bytes, shard_model


def train_twhin(
    connection: duckdb.DuckDBPyConnection,
    config: TwhinConfig,
    until: datetime | None,
    out: Path,
    seed: int,
    fingerprint: str = "",
) -> TrainResult:
    """Learn vectors from the edges of a log, or go on with a training that was interrupted, and write them.

    Args:
        connection: has the log's views; see `data.extract_graph`.
        config: what to train.
        until: an edge must be older than this; None takes every edge.
        out: takes `graph/`, `embeddings/`, and the training's checkpoints and metrics.
        seed: of the split, the first vectors, the order and the negatives.
        fingerprint: of everything the training depends on; checkpoints of another are not resumed.

    Raises:
        DataError: the log lacks what a relation needs, or a relation has no edge.
    """
    extract_graph(connection, config, until, out / "graph")
    hold_out_on_disk(out / "graph", config.validation_fraction, np.random.default_rng([seed, 1]))
    return train_on_graph(out / "graph", config, out, seed, fingerprint)


def train_on_graph(path: Path, config: TwhinConfig, out: Path, seed: int, fingerprint: str = "") -> TrainResult:
    """Learn vectors from the edges of a graph's folder, or go on with a training that was interrupted.

    Args:
        path: the folder. Where it has validation edges, those are measured on; else some are held out.
        config: what to train; the graph brings its relations with it.
        out: takes `embeddings/` and the training's checkpoints and metrics, and `graph`, a link to the folder.
        seed: of the split, the first vectors, the order and the negatives.
        fingerprint: of everything the training depends on; checkpoints of another are not resumed.

    Raises:
        DataError: the folder is no graph, a relation has no edge, or `out` holds another graph.
    """
    _require_own(path, out)
    if distributed.is_initialized():
        return _train_on_ranks(GraphFolder(path), config, out, seed, fingerprint)
    cut = _partitions(config, GraphFolder(path))
    if cut is not None:
        return _train_in_partitions(GraphFolder(path), cut, config, out, seed, fingerprint)
    graph = read_graph(path)
    if GraphFolder(path).has("validation"):
        kept, held_out = graph, read_graph(path, "validation").edges_alone()
    else:
        rng = np.random.default_rng([seed, 1])
        kept, held_out = hold_out(graph.edges_alone(), config.validation_fraction, rng)
    model = TwhinModel(graph.sizes, graph.relations, config, torch.Generator().manual_seed(seed))
    batches = EdgeBatches(kept, config, seed)
    batches_per_step = config.training.accumulate_batches
    steps = config.training.num_steps or max(1, round(config.epochs * batches.batches_per_epoch / batches_per_step))
    training = config.training.model_copy(update={"num_steps": steps})
    evaluate = _evaluator(kept, held_out, seed) if len(held_out) else None
    result = _train(model.to(_device()), batches, training, graph.vocabularies, evaluate, out, seed, fingerprint)
    print(_summary(graph, len(kept), len(held_out), result.metrics), file=sys.stderr)
    export_embeddings(model, graph, out / "embeddings")
    _link(path, out)
    return result


def _partitions(config: TwhinConfig, folder: GraphFolder) -> Partitions | None:
    memory = config.embeddings.memory_bytes
    if memory is None:
        return None
    return cut_tables(folder.sizes, {node: row_bytes(config, node) for node in folder.sizes}, memory)


def _train_in_partitions(
    folder: GraphFolder, cut: Partitions, config: TwhinConfig, out: Path, seed: int, fingerprint: str
) -> TrainResult:
    """The same for tables larger than memory; no edges are held out beside those of the folder's validation."""
    place = out / "partitions"
    tables = partial(PartitionedTables, folder=place, partitions=cut)
    model = TwhinModel(folder.sizes, folder.relations, config, torch.Generator().manual_seed(seed), tables)
    epochs = None if config.training.num_steps else math.ceil(config.epochs)
    place.mkdir(parents=True, exist_ok=True)
    batches = BucketBatches(folder, cut, config, seed, place / "edges", epochs)
    # Of the partitions only the newest are kept.
    training = config.training.model_copy(update={"checkpoints_to_keep": 1})
    evaluate, held_out = None, 0
    if folder.has("validation"):
        edges = folder.read("validation").edges_alone()
        evaluate, held_out = _evaluator(folder, edges, seed), len(edges)
    graph = folder.nodes()
    result = _train(model.to(_device()), batches, training, graph.vocabularies, evaluate, out, seed, fingerprint)
    print(_summary(graph, len(batches.buckets), held_out, result.metrics), file=sys.stderr)
    export_embeddings(model, graph, out / "embeddings")
    _link(folder.path, out)
    return result


def _train_on_ranks(folder: GraphFolder, config: TwhinConfig, out: Path, seed: int, fingerprint: str) -> TrainResult:
    """The same for tables over the processes of a group, each of which reads its part of the edges."""
    if config.embeddings.memory is not None:
        raise ConfigError(f"embeddings.memory: found {config.embeddings.memory!r}, allowed under torchrun is null")
    folder.edges_by_relation()
    device = _device()
    generator = torch.Generator(device).manual_seed(seed)
    model = TwhinModel(folder.sizes, folder.relations, config, generator, ShardedTables)
    rank, world_size = ranks()
    # Another seed for each, so that their negatives differ.
    batches = EdgeBatches(folder.part(rank, world_size), config, seed + 1_000_003 * rank)
    batches_per_step = config.training.accumulate_batches
    most = max(gathered(batches.batches_per_epoch))
    steps = config.training.num_steps or max(1, round(config.epochs * most / batches_per_step))
    training = config.training.model_copy(update={"num_steps": steps})
    evaluate, held_out = None, 0
    if folder.has("validation"):
        edges = folder.read("validation").edges_alone()
        evaluate, held_out = _evaluator(folder, edges, seed), len(edges)
    graph, edges_here = folder.nodes(), len(batches.graph) if isinstance(batches.graph, Graph) else 0
    result = _train(shard_model(model, config), batches, training, graph.vocabularies, evaluate, out, seed, fingerprint)
    kept = sum(gathered(edges_here))
    if is_first_rank():
        print(_summary(graph, kept, held_out, result.metrics), file=sys.stderr)
        export_embeddings(model, graph, out / "embeddings")
        _link(folder.path, out)
    else:
        read_along(model, graph)
    return result


def _train(
    model: nn.Module,
    batches: EdgeBatches | BucketBatches,
    training: TrainingConfig,
    vocabularies: Mapping[str, pa.Array],
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None,
    out: Path,
    seed: int,
    fingerprint: str,
) -> TrainResult:
    bare = unwrap(model)
    assert isinstance(bare, TwhinModel)
    optimizer, scheduler = build_optimizer(model, bare.config)
    # Dropout and the rounding of narrow tables draw from torch's own state; ranks differ.
    torch.manual_seed(seed + ranks().rank)
    state = TrainState(model, optimizer, scheduler, batches)
    if not resume(state, out, fingerprint):
        load_first_vectors(bare, vocabularies, bare.config)
    return train(state, training, out, evaluate, label="train TwHIN", fingerprint=fingerprint)


def _require_own(graph: Path, out: Path) -> None:
    """Refuse a run folder that holds a graph of its own, unless it is trained on: evaluation looks there."""
    beside = out / "graph"
    if beside.exists() and not beside.is_symlink() and beside.resolve() != graph.resolve():
        raise DataError(f"{beside}: found another graph than {graph}, allowed is a run folder without one")


def _link(graph: Path, out: Path) -> None:
    beside = out / "graph"
    if beside.resolve() != graph.resolve():
        beside.unlink(missing_ok=True)
        beside.symlink_to(graph.resolve(), target_is_directory=True)


def _device() -> torch.device:
    device = pick_device()
    # Apple's GPU has no sparse gradients.
    return torch.device("cpu") if device.type == "mps" else device


def _evaluator(kept: Graph | GraphFolder, held_out: Graph, seed: int) -> Callable[[nn.Module], Mapping[str, float]]:
    def evaluate(model: nn.Module) -> Mapping[str, float]:
        bare = unwrap(model)
        assert isinstance(bare, TwhinModel)
        # The same candidates every time, so that values differ only by what was learnt.
        return evaluate_edges(bare, kept, held_out, np.random.default_rng([seed, 2]))

    return evaluate


def _summary(graph: Graph, kept: int, held_out: int, metrics: Mapping[str, float]) -> str:
    nodes = ", ".join(f"{size:,} {node}s" for node, size in graph.sizes.items())
    text = f"TwHIN: {kept:,} edges of {len(graph.relations)} relations, {nodes}"
    if "validation/auc" not in metrics:
        return text
    auc, degree_auc, mrr, degree_mrr = (
        metrics[f"validation/{name}"] for name in ("auc", "degree_auc", "mrr", "degree_mrr")
    )
    return (
        f"{text}; {held_out:,} held-out edges against 100 uniform candidates a side: AUC {auc:.3f} "
        f"(by degrees alone {degree_auc:.3f}), MRR {mrr:.3f} ({degree_mrr:.3f})"
    )
