"""TwHIN on TorchRec's sharded tables, on one rank and on two, against TwHIN in memory."""

import json
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import distributed

from reference.ranks import run_script

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    pytest.importorskip("torchrec")

from tml.core.errors import ConfigError
from tml.core.sharding import full_state
from tml.embeddings.files import read_embeddings
from tml.embeddings.sharded import ShardedTables
from tml.optimizers import OptimizerConfig
from tml.projects.twhin.batches import EdgeBatches
from tml.projects.twhin.config import EmbeddingsConfig, TableConfig, TwhinConfig, TwhinTraining
from tml.projects.twhin.graph import GraphFolder
from tml.projects.twhin.model import TwhinModel
from tml.projects.twhin.optimizer import build_optimizer, shard_model
from tml.projects.twhin.train import train_on_graph

SIZES = {"user": 301, "author": 200}
COMMUNITIES, EDGES = 10, 9_000
CONFIG = TwhinConfig(
    embedding_dim=8,
    batch_size=256,
    chunk_size=64,
    epochs=8.0,
    embeddings=EmbeddingsConfig(optimizer=OptimizerConfig(rowwise_adagrad={}, learning_rate=0.1)),
    training=TwhinTraining(num_steps=None, log_every=50, evaluate_every=10_000, checkpoint_every=100),
)


def write_graph(path: Path) -> Path:
    """People follow authors of their community, and know each other."""
    rng = np.random.default_rng(0)
    (path / "vocabulary").mkdir(parents=True)
    for name, size in SIZES.items():
        pq.write_table(pa.table({"id": np.arange(size)}), path / "vocabulary" / f"{name}.parquet")
    relations = [
        {"name": "follow", "head": "user", "tail": "author"},
        {"name": "know", "head": "user", "tail": "user"},
    ]
    (path / "relations.json").write_text(json.dumps(relations))
    rel, lhs = rng.integers(0, 2, EDGES), rng.integers(0, 300, EDGES)
    rhs = (rng.random(EDGES) ** 2 * np.array([200, 300])[rel]).astype(np.int64)
    rhs = np.where(rng.random(EDGES) < 0.9, rhs // COMMUNITIES * COMMUNITIES + lhs % COMMUNITIES, rhs)
    table = pa.table({"lhs": lhs, "rel": rel, "rhs": rhs})
    pq.write_table(table.slice(0, EDGES - 1000), path / "edges.parquet", row_group_size=777)
    pq.write_table(table.slice(EDGES - 1000), path / "validation.parquet")
    return path


@contextmanager
def group(folder: Path, rank: int, ranks: int):
    """A process group of threads or processes that share a folder."""
    store = distributed.FileStore(str(folder / f"store {ranks}"), ranks)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def work(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    with group(folder, rank, 2):
        stopped = CONFIG.training.model_copy(update={"num_steps": 60})
        train_on_graph(folder / "graph", CONFIG.model_copy(update={"training": stopped}), folder / "two", seed=0)
        train_on_graph(folder / "graph", CONFIG, folder / "two", seed=0)
        steps_of_two_ranks(folder, rank)
        distributed.barrier()


def steps_of_two_ranks(folder: Path, rank: int) -> None:
    """Each rank trains on its half of every batch's edges; the first writes what became of the vectors."""
    model = start(GraphFolder(folder / "graph"))
    learn(model, halves(folder)[rank])
    state = full_state(model.state_dict())
    if rank == 0:
        torch.save(state, folder / "steps.pt")


def start(graph: GraphFolder) -> torch.nn.Module:
    """A sharded model whose first vectors are known."""
    model = TwhinModel(graph.sizes, graph.relations, CONFIG, torch.Generator().manual_seed(0), ShardedTables)
    sharded = shard_model(model, CONFIG)
    for node, size in SIZES.items():
        model.embeddings.write(node, slice(None), first_vectors(size))
    return sharded


def first_vectors(size: int) -> torch.Tensor:
    return torch.randn(size, 8, generator=torch.Generator().manual_seed(size)) / 3


def learn(model: torch.nn.Module, batches: list) -> None:
    optimizer, scheduler = build_optimizer(model, CONFIG)
    for batch in batches:
        optimizer.zero_grad()
        model(batch)[0].backward()
        optimizer.step()
        scheduler.step()


def halves(folder: Path) -> list[list]:
    """Batches for two ranks, from streams of their own."""
    streams = [EdgeBatches(GraphFolder(folder / "graph").part(rank, 2), CONFIG, rank) for rank in range(2)]
    taken = [[next(stream) for _ in range(6)] for stream in streams]
    for stream in streams:
        stream.close()
    return taken


def reference(folder: Path, batches: list[list]) -> TwhinModel:
    """Vectors in memory, by the mean of the gradients of all ranks' losses, and row-wise Adagrad by hand."""
    graph = GraphFolder(folder / "graph")
    model = TwhinModel(graph.sizes, graph.relations, CONFIG, torch.Generator().manual_seed(0))
    sums = {}
    for node, size in SIZES.items():
        model.embeddings.write(node, slice(None), first_vectors(size))
        sums[node] = torch.zeros(size)
    operators = torch.optim.Adagrad(
        [model.operators.weights], lr=0.1, eps=CONFIG.translation_optimizer.algorithm.epsilon
    )
    for step in zip(*batches, strict=True):
        model.zero_grad()
        for batch in step:
            (model(batch)[0] / len(step)).backward()
        for number, (node, size) in enumerate(SIZES.items()):
            table = model.embeddings.tables[number].weight
            if table.grad is None:
                continue
            gradient = table.grad.to_dense()
            sums[node] += gradient.square().mean(dim=1)
            table.data -= 0.1 * gradient / (sums[node].sqrt() + 1e-10)[:, None]
            assert len(gradient) == size
        operators.step()
    return model


def assert_equal(state: dict, model: TwhinModel) -> None:
    # Adagrad makes the first steps of small gradients as large as others, and their rounding with them.
    for number, node in enumerate(SIZES):
        torch.testing.assert_close(
            state[f"embeddings.collection.embeddings.{node}.weight"],
            model.embeddings.tables[number].weight.detach(),
            rtol=0,
            atol=3e-4,
        )
    torch.testing.assert_close(state["operators.weights"], model.operators.weights.detach(), rtol=0, atol=3e-4)


def metrics(out: Path) -> dict:
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])


def test_one_rank_learns_as_a_table_in_memory(tmp_path):
    write_graph(tmp_path / "graph")
    batches = halves(tmp_path)[:1]
    with group(tmp_path, 0, 1):
        model = start(GraphFolder(tmp_path / "graph"))
        learn(model, batches[0])
        assert_equal(full_state(model.state_dict()), reference(tmp_path, batches))


def test_two_ranks_learn_as_one_and_find_held_out_edges_as_well(tmp_path):
    write_graph(tmp_path / "graph")
    run_script(__file__, tmp_path)
    assert_equal(torch.load(tmp_path / "steps.pt"), reference(tmp_path, halves(tmp_path)))

    train_on_graph(tmp_path / "graph", CONFIG, tmp_path / "one", seed=0)
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert one["validation/mrr"] > 1.3 * one["validation/degree_mrr"]
    assert two["validation/mrr"] == pytest.approx(one["validation/mrr"], rel=0.05)
    users = read_embeddings(tmp_path / "two" / "embeddings" / "user.parquet", width=8)
    assert users.ids.to_pylist() == list(range(SIZES["user"]))


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        ({"memory": "4GB"}, "embeddings.memory: found '4GB', allowed under torchrun is null"),
        ({"tables": (TableConfig(name="user", frozen=True),)}, "user is frozen, allowed under torchrun is fp32 that"),
        ({"tables": (TableConfig(name="user", data_type="bf16"),)}, "user is kept as bf16, allowed under torchrun is"),
    ],
)
def test_what_ranks_cannot_do_is_refused(tmp_path, embeddings, message):
    write_graph(tmp_path / "graph")
    config = CONFIG.model_copy(update={"embeddings": CONFIG.embeddings.model_copy(update=embeddings)})
    with group(tmp_path, 0, 1), pytest.raises(ConfigError, match=message):
        train_on_graph(tmp_path / "graph", config, tmp_path / "out", seed=0)


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
