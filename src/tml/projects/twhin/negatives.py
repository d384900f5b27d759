"""Negatives: corrupted edges, made by putting another node in the place of an edge's head or of its tail.

Edges of one relation are laid out in chunks, and all edges of a chunk share the same replacements, so that the scores
of every edge against every replacement are one matrix product. A replacement is drawn in one of two ways:

- in the batch: the head (or tail) of a random edge of the same relation in the batch, so that a node is drawn as often
  as it has edges; this teaches more than popularity, for a popular node is as often a negative as a positive;
- globally: uniform over all nodes of the right type, so that nodes with few edges are negatives too.

A replacement can be the very node that stands in an edge; `model.py` leaves those pairs out by their row numbers.
"""

import numpy as np
import torch

from tml.projects.twhin.data import Graph, Rows

Batch = dict[str, torch.Tensor]


def arrange(
    graph: Graph,
    edges: Rows,
    rng: np.random.Generator,
    *,
    chunk_size: int,
    in_batch_negatives: int,
    global_negatives: int,
) -> Batch:
    """Lay a batch of edges out in chunks and draw the negatives of each.

    Args:
        graph: where the edges are from.
        edges: (n,) int64, positions in the graph of edges between the same two node types.
        rng: draws the negatives.
        chunk_size: edges a chunk; the last chunk of a relation is filled up with edges of weight 0.
        in_batch_negatives: replacements a chunk and side, drawn from the batch; 0 for none.
        global_negatives: replacements a chunk and side, drawn uniformly by node type; 0 for none.

    Returns:
        All int64 but for `weight`, and numbers of nodes are rows of the vocabulary of their type:
        `edges` (n,), as given, ordered by relation;
        `head`, `tail` (chunks, chunk_size) and `relation` (chunks,), the relation of all edges of a chunk;
        `weight` (chunks, chunk_size) float32, 1 for an edge and 0 for filling;
        `head_negatives`, `tail_negatives` (chunks, in_batch_negatives + global_negatives).
    """
    edges = edges[np.argsort(graph.rel[edges], kind="stable")]
    lhs, rel, rhs = graph.lhs[edges], graph.rel[edges], graph.rhs[edges]
    relations, starts, counts = np.unique(rel, return_index=True, return_counts=True)
    chunks = -(-counts // chunk_size)
    group = np.repeat(np.arange(len(relations)), counts)
    first_slot = (np.cumsum(chunks) - chunks) * chunk_size
    slots = first_slot[group] + np.arange(len(edges)) - starts[group]

    shape = (int(chunks.sum()), chunk_size)
    head, tail = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    weight = np.zeros(shape, np.float32)
    head.reshape(-1)[slots], tail.reshape(-1)[slots], weight.reshape(-1)[slots] = lhs, rhs, 1.0

    start, count = np.repeat(starts, chunks)[:, None], np.repeat(counts, chunks)[:, None]
    relation = graph.relations[rel[0]]
    sampled = {}
    for side, column, node in (("head", lhs, relation.head), ("tail", rhs, relation.tail)):
        in_batch = column[start + rng.integers(0, count, size=(shape[0], in_batch_negatives))]
        uniform = rng.integers(0, graph.sizes[node], size=(shape[0], global_negatives))
        sampled[f"{side}_negatives"] = np.concatenate([in_batch, uniform], axis=1)
    # The edges come first: the training loop counts the examples of a batch by its first tensor.
    arrays = {
        "edges": edges,
        "head": head,
        "tail": tail,
        "relation": np.repeat(relations, chunks),
        "weight": weight,
        **sampled,
    }
    return {name: torch.from_numpy(values) for name, values in arrays.items()}
