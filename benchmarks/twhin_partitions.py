"""TwHIN on a table that is larger than memory: speed against a table in memory, and resident memory.

A table of 20 million nodes by 128 numbers, 10.2 GB, is trained in partitions on disk with 2.2 GB for vectors and state;
10 edges a node, 8 relations by translation, 100 negatives in the batch and 100 uniform a side, row-wise Adagrad. The
other side has as many nodes in memory as the partitions have at a time, and the same batches. Each is a process of its
own, which trains for some stages (a stage is a swap of one partition), swaps included, and tells its peak of resident
memory; before, first vectors are drawn and written and the edges are sorted into buckets, whose times are told too.

    twhin.partitioned_128        edges a second with partitions on disk
    twhin.partitioned_of_memory  that by the edges a second in memory
    twhin.partitioned_resident   GiB of resident memory, at most, from start to end

And on a graph of 70,000 nodes in communities, 20 edges a node, which fits in memory, trained to its end both ways:

    twhin.partitioned_mrr        MRR of held-out edges with tables in partitions, by that in memory

python benchmarks/twhin_partitions.py [--short]      (about 25 GB of disk in the system's temporary folder; TMPDIR)
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _machine import print_figure, print_machine, seconds

from tml.core.step import take_step
from tml.core.training import TrainState
from tml.embeddings.partitioned import PartitionedTables
from tml.embeddings.partitions import cut_tables
from tml.optimizers import OptimizerConfig
from tml.projects.twhin.batches import EdgeBatches
from tml.projects.twhin.buckets import BucketBatches
from tml.projects.twhin.config import EmbeddingsConfig, TwhinConfig, TwhinTraining
from tml.projects.twhin.graph import GraphFolder
from tml.projects.twhin.model import TwhinModel
from tml.projects.twhin.optimizer import build_optimizer, row_bytes
from tml.projects.twhin.train import train_on_graph

DIM, RELATIONS, NEGATIVES, EDGES_A_NODE = 128, 8, 100, 10
BATCH, CHUNK = 32_768, 512


def write_graph(path: Path, nodes: int) -> None:
    """A graph whose nodes and relations are drawn by a power law."""
    rng = np.random.default_rng(0)
    (path / "vocabulary").mkdir(parents=True)
    pq.write_table(pa.table({"id": np.arange(nodes)}), path / "vocabulary" / "node.parquet")
    names = [{"name": f"relation_{number}", "head": "node", "tail": "node"} for number in range(RELATIONS)]
    (path / "relations.json").write_text(json.dumps(names))
    popular = rng.permutation(nodes).astype(np.int32)
    share = 1 / np.arange(1, RELATIONS + 1)
    block = 1 << 20
    kind = pa.schema([("lhs", pa.int32()), ("rel", pa.int32()), ("rhs", pa.int32())])
    with pq.ParquetWriter(path / "edges.parquet", kind, use_dictionary=False) as writer:
        for start in range(0, nodes * EDGES_A_NODE, block):
            edges = min(block, nodes * EDGES_A_NODE - start)
            lhs, rhs = (popular[(nodes * rng.random(edges) ** 4).astype(np.int64)] for _ in range(2))
            rel = rng.choice(RELATIONS, edges, p=share / share.sum()).astype(np.int32)
            writer.write_table(pa.table({"lhs": lhs, "rel": rel, "rhs": rhs}, schema=kind))


def write_communities(path: Path, users: int) -> None:
    """People follow the authors of their community, some far more popular than others, and know each other."""
    rng = np.random.default_rng(0)
    sizes = {"user": users, "author": users * 2 // 5}
    (path / "vocabulary").mkdir(parents=True)
    for name, size in sizes.items():
        pq.write_table(pa.table({"id": np.arange(size)}), path / "vocabulary" / f"{name}.parquet")
    relations = [{"name": tail, "head": "user", "tail": tail} for tail in ("author", "user")]
    (path / "relations.json").write_text(json.dumps(relations))
    communities = {name: np.sort(rng.integers(0, 100, size)) for name, size in sizes.items()}
    edges = users * 28
    rel = rng.integers(0, 2, edges)
    lhs, rhs = rng.integers(0, users, edges), np.empty(edges, np.int64)
    for number, name in enumerate(("author", "user")):
        here = rel == number
        # A tail of the same community for 8 edges in 10, of any for the others.
        of = np.where(rng.random(edges) < 0.8, communities["user"][lhs], rng.integers(0, 100, edges))[here]
        first, last = (np.searchsorted(communities[name], of, side=side) for side in ("left", "right"))
        rhs[here] = first + ((last - first) * rng.random(here.sum()) ** 3).astype(np.int64)
    # The numbers of nodes say nothing.
    shuffled = {name: rng.permutation(size) for name, size in sizes.items()}
    lhs, rhs = (
        shuffled["user"][lhs],
        np.where(rel == 0, shuffled["author"][rhs % sizes["author"]], shuffled["user"][rhs]),
    )
    table = pa.table({"lhs": lhs, "rel": rel, "rhs": rhs})
    pq.write_table(table.slice(10_000), path / "edges.parquet", row_group_size=1 << 16)
    pq.write_table(table.slice(0, 10_000), path / "validation.parquet")


def quality(path: Path, memory: str | None) -> float:
    """MRR of held-out edges after training to the end."""
    config = TwhinConfig(
        embedding_dim=32,
        embeddings=EmbeddingsConfig(optimizer=OptimizerConfig(rowwise_adagrad={}, learning_rate=0.1), memory=memory),
        epochs=10,
        training=TwhinTraining(num_steps=None, log_every=100, evaluate_every=10**9, checkpoint_every=10**9),
    )
    with tempfile.TemporaryDirectory() as out:
        return train_on_graph(path, config, Path(out), seed=0).metrics["validation/mrr"]


def config_of(memory: str | None) -> TwhinConfig:
    rate = OptimizerConfig(rowwise_adagrad={}, learning_rate=0.05)
    return TwhinConfig(
        embedding_dim=DIM,
        embeddings=EmbeddingsConfig(optimizer=rate, memory=memory),
        in_batch_negatives=NEGATIVES,
        global_negatives=NEGATIVES,
        batch_size=BATCH,
        chunk_size=CHUNK,
    )


def train(path: Path, memory: str | None, stages: int, steps: int) -> dict[str, float]:
    """Train for some stages, or some steps in memory; what it took."""
    folder, config = GraphFolder(path), config_of(memory)
    told: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    if memory is None:
        batches = EdgeBatches(folder, config, seed=0)
        model = TwhinModel(folder.sizes, folder.relations, config, generator)
    else:
        bytes_ = config.embeddings.memory_bytes
        cut = cut_tables(folder.sizes, {node: row_bytes(config, node) for node in folder.sizes}, bytes_)
        start = time.perf_counter()
        batches = BucketBatches(folder, cut, config, 0, path / "buckets")
        told["sorting edges, s"] = time.perf_counter() - start
        told["partitions"] = cut.count
        told["stages an epoch"] = len(batches.stages(0))
        tables = partial(PartitionedTables, folder=path / "partitions", partitions=cut)
        model = TwhinModel(folder.sizes, folder.relations, config, generator, tables)
    optimizer, scheduler = build_optimizer(model, config)
    state = TrainState(model, optimizer, scheduler, batches)
    if memory is not None:
        told["first vectors, s"] = seconds(lambda: model.embeddings.hold(batches.stages(0)[0].resident))
    stream = iter(batches)
    for _ in range(2):
        take_step(state, [next(stream)], measure=False, start=time.perf_counter())
    first = {}
    edges, begun = 0, time.perf_counter()
    for _ in range(steps):
        batch = next(stream)
        # The first stage, which brings in several partitions, is no measure of the others.
        if memory is not None:
            if batches.place[1] == 0:
                continue
            if not first:
                first["begun"], edges = time.perf_counter(), 0
            if batches.place[1] > stages:
                break
        take_step(state, [batch], measure=False, start=time.perf_counter())
        edges += len(batch["edges"])
    took = time.perf_counter() - first.get("begun", begun)
    batches.close()
    told |= {"edges": edges, "edges/s": edges / took}
    told["resident, GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return told


def in_process(*arguments: object) -> dict[str, float]:
    """`train` in a process of its own."""
    command = [sys.executable, __file__, "--train", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a table of 1 GB")
    parser.add_argument("--train", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        path, memory, stages, steps = arguments.train
        print(json.dumps(train(Path(path), None if memory == "none" else memory, int(stages), int(steps))))
        return
    print_machine()
    nodes, megabytes, stages, steps = (2_000_000, 300, 4, 12) if arguments.short else (20_000_000, 2_200, 6, 120)
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder) / "large", Path(folder) / "small"
        write_graph(large, nodes)
        write_graph(small, megabytes * 1_000_000 // (4 * DIM + 4) * 4 // 5)
        memory = in_process(small, "none", 0, steps)
        print(json.dumps({"in memory": memory}), flush=True)
        cut = in_process(large, f"{megabytes}MB", stages, 1_000_000)
        print(json.dumps({"in partitions": cut}), flush=True)
        again = in_process(small, "none", 0, steps)
        speeds = [memory["edges/s"], again["edges/s"]]
        print_figure("twhin.partitioned_128", [cut["edges/s"]], "edges/s", True)
        print_figure("twhin.partitioned_of_memory", [cut["edges/s"] / speed for speed in speeds], "ratio", True)
        print_figure("twhin.partitioned_resident", [cut["resident, GiB"]], "GiB", False)
        users = 5_000 if arguments.short else 50_000
        write_communities(Path(folder) / "communities", users)
        whole, partitioned = (quality(Path(folder) / "communities", memory) for memory in (None, f"{users // 25}KB"))
        print(json.dumps({"mrr in memory": whole, "mrr in partitions": partitioned}), flush=True)
        print_figure("twhin.partitioned_mrr", [partitioned / whole], "ratio", True)


if __name__ == "__main__":
    main()
