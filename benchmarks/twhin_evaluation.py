"""Full filtered evaluation: 20,000 edges over 15,000 nodes and 20 relations at dimension 128, from both sides.

    twhin_evaluation.model      seconds to rank all edges by vectors, filters included
    twhin_evaluation.both       seconds of the whole, the degree product and all measures included

Known edges are 300,000, with a heavy tail. The limit is 6 seconds on 2 cores. Threads that wait for another process's
core are slower than one alone: on a busy machine run it with OMP_NUM_THREADS=1.

python benchmarks/twhin_evaluation.py [--short]
"""

import argparse
import contextlib
import io

import numpy as np
import pyarrow as pa
import torch
from _machine import print_figure, print_machine, seconds

from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.edges import Rows
from tml.projects.twhin.evaluate import EvaluationConfig, evaluate_graph
from tml.projects.twhin.graph import Graph, Relation, Split
from tml.projects.twhin.known import KnownEdges
from tml.projects.twhin.model import TwhinModel
from tml.projects.twhin.operators import Side
from tml.projects.twhin.ranking import rank_among_all

NODES, RELATIONS, DIMENSION, KNOWN = 15_000, 20, 128, 300_000


def graphs(edges: int) -> dict[Split, Graph]:
    """Known edges and those to be found, some nodes in far more of them than others."""
    rng = np.random.default_rng(0)
    relations = tuple(Relation(f"relation {number}", "node", "node") for number in range(RELATIONS))
    vocabularies = {"node": pa.array(range(NODES))}

    def drawn(count: int) -> Graph:
        ends: list[Rows] = [(NODES * rng.random(count) ** 2).astype(np.int64) for _ in range(2)]
        return Graph(relations, vocabularies, ends[0], rng.integers(0, RELATIONS, count), ends[1])

    return {"train": drawn(KNOWN), "test": drawn(edges)}


def rank(model: TwhinModel, splits: dict[Split, Graph]) -> None:
    """Rank every edge of the test from both sides."""
    test, known = splits["test"], KnownEdges(list(splits.values()))
    sides: tuple[Side, Side] = ("tail", "head")
    for relation in range(RELATIONS):
        edges = test.of_relation(relation)
        for side in sides:
            ends, targets = (test.lhs, test.rhs) if side == "tail" else (test.rhs, test.lhs)
            rank_among_all(model, relation, side, ends[edges], targets[edges], known.of(relation, side))


def whole(model: TwhinModel, splits: dict[Split, Graph]) -> None:
    """The evaluation as a user has it, its progress aside."""
    with contextlib.redirect_stderr(io.StringIO()):
        evaluate_graph(model, splits, EvaluationConfig())


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="fewer runs")
    runs = 2 if parser.parse_args().short else 5
    print_machine()
    splits = graphs(20_000)
    config = TwhinConfig(embedding_dim=DIMENSION)
    model = TwhinModel(splits["train"].sizes, splits["train"].relations, config, torch.Generator().manual_seed(0))
    rank(model, splits)
    print_figure(
        "twhin_evaluation.model", [seconds(lambda: rank(model, splits)) for _ in range(runs)], "seconds", False
    )
    print_figure(
        "twhin_evaluation.both", [seconds(lambda: whole(model, splits)) for _ in range(runs)], "seconds", False
    )


if __name__ == "__main__":
    main()
