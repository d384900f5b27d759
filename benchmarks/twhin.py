"""Training of TwHIN: edges a second on a graph with a heavy tail, and how near that is to what the machine can do.

One million nodes, 8 relations by translation, 100 negatives in the batch and 100 uniform a side, row-wise Adagrad;
edges are read from Parquet. The whole loop is timed, with reading, shuffling, drawing, loss, gradients and update.

    twhin.edges_64, twhin.edges_128   edges a second at these dimensions
    twhin.of_bound_64, …_128          the bound of a batch over what it took, its pieces timed by themselves between the
                                      runs: matrix products; a sigmoid and a weight a score; of every edge the
                                      translation, its own score and the gradients of these, which no training can
                                      leave out; rows gathered, summed, scaled and added
    twhin.vs_pytorch_biggraph_64      our edges a second over PyTorch-BigGraph's on the same graph, where
                                      `torchbiggraph` can be imported

python benchmarks/twhin.py [--short]
"""

import argparse
import importlib.util
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _machine import print_figure, print_machine, seconds
from torch.nn import functional as F

from tml.core.step import take_step
from tml.core.training import TrainState
from tml.optimizers import OptimizerConfig
from tml.projects.twhin.batches import EdgeBatches
from tml.projects.twhin.config import EmbeddingsConfig, TwhinConfig
from tml.projects.twhin.graph import GraphFolder
from tml.projects.twhin.model import TwhinModel
from tml.projects.twhin.negatives import Batch
from tml.projects.twhin.optimizer import build_optimizer

NODES, RELATIONS, NEGATIVES = 1_000_000, 8, 100
BATCH, CHUNK = 32_768, 512
BLOCK = 4
"""Chunks that the bound works on at a time."""


def write_graph(path: Path, edges: int) -> None:
    """A graph whose nodes and relations are drawn by a power law, in random order."""
    rng = np.random.default_rng(0)
    (path / "vocabulary").mkdir(parents=True)
    pq.write_table(pa.table({"id": np.arange(NODES)}), path / "vocabulary" / "node.parquet")
    names = [{"name": f"relation_{number}", "head": "node", "tail": "node"} for number in range(RELATIONS)]
    (path / "relations.json").write_text(json.dumps(names))
    popular = rng.permutation(NODES)
    columns = {}
    for side in ("lhs", "rhs"):
        # By inversion: the density falls as rank to the power of -0.75.
        columns[side] = popular[(NODES * rng.random(edges) ** 4).astype(np.int64)]
    share = 1 / np.arange(1, RELATIONS + 1)
    columns["rel"] = rng.choice(RELATIONS, edges, p=share / share.sum())
    table = pa.table({name: columns[name] for name in ("lhs", "rel", "rhs")})
    pq.write_table(table, path / "edges.parquet", row_group_size=1 << 17)


def config_of(dim: int) -> TwhinConfig:
    rate = OptimizerConfig(rowwise_adagrad={}, learning_rate=0.05)
    return TwhinConfig(
        embedding_dim=dim,
        embeddings=EmbeddingsConfig(optimizer=rate),
        in_batch_negatives=NEGATIVES,
        global_negatives=NEGATIVES,
        batch_size=BATCH,
        chunk_size=CHUNK,
    )


class Training:
    """Ours: the state of a training, and how many edges a second some steps of it make."""

    def __init__(self, path: Path, dim: int) -> None:
        folder, config = GraphFolder(path), config_of(dim)
        model = TwhinModel(folder.sizes, folder.relations, config, torch.Generator().manual_seed(0))
        optimizer, scheduler = build_optimizer(model, config)
        self.state = TrainState(model, optimizer, scheduler, EdgeBatches(folder, config, seed=0))
        self.batches = iter(self.state.batches)
        self.run(2)

    def run(self, steps: int) -> float:
        start, edges = time.perf_counter(), 0
        for _ in range(steps):
            batch = next(self.batches)
            take_step(self.state, [batch], measure=False, start=time.perf_counter())
            edges += len(batch["edges"])
        return edges / (time.perf_counter() - start)


class Bound:
    """The least that a batch costs: its work timed piece by piece, with nothing between the pieces.

    Blocks are of a few chunks and stay in cache; rows are of another batch each time, as in training. Edges are counted
    as they are, without what fills up chunks.
    """

    def __init__(self, batches: list[Batch], dim: int) -> None:
        self.edges = len(batches[0]["edges"])
        self.reads = itertools.cycle(batch["reads"]["node"] for batch in batches)
        self.table, self.sums = torch.randn(NODES, dim), torch.zeros(NODES)
        self.rows = torch.randn(max(len(batch["reads"]["node"]["rows"]) for batch in batches), dim)
        self.heads, self.tails = torch.randn(2, BLOCK, CHUNK, dim)
        self.candidates, self.translation = torch.randn(BLOCK, 2 * NEGATIVES, dim), torch.randn(BLOCK, 1, dim)
        self.scores = torch.randn(BLOCK, CHUNK, 2 * NEGATIVES)
        self.share, self.positive = torch.rand(BLOCK, CHUNK, 1), torch.empty(BLOCK * CHUNK, 1, 1)
        self.queries = self.heads.clone()
        self.of_heads, self.of_tails = torch.empty_like(self.heads), torch.empty_like(self.tails)
        self.of_candidates = torch.empty_like(self.candidates)

    def _products(self) -> None:
        torch.bmm(self.queries, self.candidates.transpose(1, 2), out=self.scores)
        torch.bmm(self.scores, self.candidates, out=self.of_heads)
        torch.bmm(self.scores.transpose(1, 2), self.queries, out=self.of_candidates)

    def _elements(self) -> None:
        self.scores.sigmoid_().mul_(self.share)

    def _edges(self) -> None:
        torch.add(self.heads, self.translation, out=self.queries)
        dim = self.queries.shape[2]
        torch.bmm(self.queries.view(-1, 1, dim), self.tails.view(-1, dim, 1), out=self.positive)
        self.of_heads.addcmul_(self.tails, self.share)
        self.of_tails.addcmul_(self.queries, self.share)
        self.of_heads.sum(1)

    def _rows(self) -> None:
        read = next(self.reads)
        rows = torch.index_select(self.table, 0, read["rows"], out=self.rows[: len(read["rows"])])
        summed = F.embedding_bag(read["order"], rows, read["starts"], mode="sum")
        norms = torch.linalg.vector_norm(summed, dim=1)
        self.sums.index_add_(0, read["unique"], norms)
        self.table.index_add_(0, read["unique"], summed.mul_(norms.reciprocal_().unsqueeze(1)))

    def run(self) -> float:
        """Edges a second: of blocks, as many as a batch has for its two sides, of its edges and of its rows."""
        blocks = self.edges / (BLOCK * CHUNK)
        of_sides = [seconds(self._products) + seconds(self._elements) for _ in range(8)]
        of_edges, rows = [seconds(self._edges) for _ in range(8)], [seconds(self._rows) for _ in range(5)]
        of_blocks = 2 * statistics.median(of_sides) + statistics.median(of_edges)
        return self.edges / (of_blocks * blocks + statistics.median(rows))


def biggraph_speed(path: Path, edges: int) -> float:
    """PyTorch-BigGraph's edges a second at dimension 64 on the same graph, from its own log.

    Its trainer, its HDF5 edges and its settings as its documentation has them: batches of 1,000 edges in chunks of 50,
    100 negatives of each kind, one worker a core.
    """
    import h5py
    from torchbiggraph.config import ConfigSchema
    from torchbiggraph.train import train

    base = path / "biggraph"
    (base / "entities").mkdir(parents=True)
    (base / "entities" / "entity_count_node_0.txt").write_text(str(NODES))
    (base / "edges").mkdir()
    table = pq.read_table(path / "edges.parquet")
    with h5py.File(base / "edges" / "edges_0_0.h5", "w") as file:
        file.attrs["format_version"] = 1
        for name in ("lhs", "rel", "rhs"):
            file.create_dataset(name, data=table[name].to_numpy())
    config = ConfigSchema.from_dict(
        {
            "entity_path": str(base / "entities"),
            "edge_paths": [str(base / "edges")],
            "checkpoint_path": str(base / "model"),
            "entities": {"node": {"num_partitions": 1}},
            "relations": [
                {"name": f"relation_{n}", "lhs": "node", "rhs": "node", "operator": "translation"}
                for n in range(RELATIONS)
            ],
            "dimension": 64,
            "comparator": "dot",
            "loss_fn": "logistic",
            "num_epochs": 1,
            "num_uniform_negs": NEGATIVES,
            "num_batch_negs": NEGATIVES,
            "batch_size": 1000,
            "lr": 0.05,
            "workers": torch.get_num_threads(),
            "eval_fraction": 0.0,
        }
    )
    return edges / seconds(lambda: train(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="few runs")
    short = parser.parse_args().short
    print_machine()
    edges, runs, steps = (1_500_000, 2, 10) if short else (8_000_000, 5, 60)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph"
        write_graph(path, edges)
        for dim in (64, 128):
            training = Training(path, dim)
            bound = Bound([next(training.batches) for _ in range(5)], dim)
            speeds, shares = [], []
            for _ in range(runs):
                before = bound.run()
                speeds.append(training.run(steps))
                shares.append(speeds[-1] / max(before, bound.run()))
            print_figure(f"twhin.edges_{dim}", speeds, "edges/s", True)
            print_figure(f"twhin.of_bound_{dim}", shares, "ratio", True)
            training.state.batches.close()
            if dim == 64:
                ours = speeds
        if importlib.util.find_spec("torchbiggraph"):
            theirs = biggraph_speed(path, edges)
            print_figure("twhin.pytorch_biggraph_64", [theirs], "edges/s", True)
            print_figure("twhin.vs_pytorch_biggraph_64", [speed / theirs for speed in ours], "ratio", True)
        else:
            print("torchbiggraph cannot be imported: no comparison with it", file=sys.stderr)


if __name__ == "__main__":
    main()
