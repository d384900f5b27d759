"""Several vectors for each user, from clusters of what the user engaged with (kNN-Embed, El-Kishky et al. 2022,
arXiv 2205.06205).

One vector is a compromise between a person's interests, and may lie near none of them. Here the items of a relation
are clustered once, by k-means. The interest of user u in cluster c weighs

    w(u, c) = (n(u, c) + s · m(u, c)) / (n(u) + s)

where n counts the user's edges, m(u, c) is the mean share of c among the users nearest to u, and s says how many edges
these neighbours are worth: who engaged little leans on people alike. The vector of an interest is the mean of the
items behind it, weighted in the same way, and compared with items by cosine (by distance where the model does): a dot
product would give every interest the same long vectors. To retrieve k items, each interest brings the nearest to its
vector, as many as its weight says.

PinnerSage's medoids (Pal et al. 2020) need a clustering for each user and know nothing of those who engaged little;
global clusters cost one k-means, can be smoothed, and mean the same for all users.

It pays where people have a few of many interests, more than the vectors have dimensions. Where they are few, the one
vector of a dot product stands for their mixture well, and knows of popularity besides.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tml.core.errors import DataError
from tml.core.files import whole_file
from tml.embeddings.files import Vectors
from tml.embeddings.nearest import Comparison, NearestIndex, Rows, build_index
from tml.projects.twhin.graph import GraphFolder
from tml.projects.twhin.vectors import TrainedVectors

Weights = npt.NDArray[np.float64]

NEIGHBOURS, WORTH = 10, 1.0
"""People alike that an interest is smoothed by, and s, the edges that they are worth together."""
MOST = 8
"""Interests that are kept of a user, the weightiest."""
ROUNDS = 20
"""Of k-means."""


@dataclass(frozen=True)
class Interests:
    """The interests of users in items of a relation.

    Attributes:
        users: rows in the table of the relation's heads, in order.
        start: where each user's interests begin, (users + 1,).
        cluster: (interests,) the number of the cluster, the weightiest of a user first.
        weight: (interests,) of a user they sum to 1.
        vectors: (interests, dimension) float32, to be compared with `items`.
        items: (items, dimension) float32, the items as they are compared.
        comparison: how.
    """

    users: Rows
    start: Rows
    cluster: Rows
    weight: Weights
    vectors: Vectors
    items: Vectors
    comparison: Comparison

    def of(self, user: int) -> slice:
        """Where the interests of a user are, given its row; empty where the user has none."""
        place = int(np.searchsorted(self.users, user))
        if place == len(self.users) or self.users[place] != user:
            return slice(0, 0)
        return slice(int(self.start[place]), int(self.start[place + 1]))


def graph_edges(vectors: TrainedVectors, relation: int) -> tuple[Rows, Rows]:
    """Rows of heads and tails of the edges of a relation that the vectors were trained on.

    Raises:
        DataError: the vectors stand alone, without a graph beside them, or it has other nodes or relations.
    """
    path = (vectors.run or vectors.folder) / "graph"
    if not path.is_dir():
        raise DataError(f"{path}: no such graph, needed for what users engaged with; allowed is the folder of a run")
    graph = GraphFolder(path)
    same = graph.relations == vectors.relations
    if not same or any(not graph.vocabulary(node).equals(vectors.table(node).ids) for node in vectors.node_types):
        raise DataError(f"{path}: found other nodes or relations than the vectors', allowed is the graph trained on")
    heads, tails = [], []
    for edges in graph.stream():
        here = edges.rel == relation
        heads.append(edges.lhs[here])
        tails.append(edges.rhs[here])
    return np.concatenate(heads), np.concatenate(tails)


def find_interests(
    vectors: TrainedVectors, relation: int, heads: Rows, tails: Rows, clusters: int | None = None, seed: int = 0
) -> Interests:
    """Find the interests of the heads of edges.

    Args:
        vectors: the trained ones.
        relation: the edges' relation.
        heads: (edges,) rows of users.
        tails: (edges,) rows of the items that they engaged with.
        clusters: of items; None takes the root of their number.
        seed: of k-means.

    Raises:
        DataError: there is no edge.
    """
    if not len(heads):
        raise DataError(f"{vectors.relations[relation].name}: found no edge, allowed is at least one to cluster")
    comparison: Comparison = vectors.score if vectors.score in ("l1", "l2") else "cosine"
    items = vectors.candidates(relation, "tail").numpy()
    if comparison == "cosine":
        items = items / np.maximum(np.linalg.norm(items, axis=1, keepdims=True), np.float32(1e-12))
    count = min(clusters or round(len(items) ** 0.5), len(items))
    cluster_of = _cluster(items, count, comparison == "cosine", seed)

    users, user_of = np.unique(heads, return_inverse=True)
    keys, sizes, sums = _sums(user_of * count + cluster_of[tails], np.ones(len(tails)), items[tails])
    degree = np.bincount(user_of, minlength=len(users)).astype(np.float64)
    by_user = _Entries(len(users), keys // count, keys % count, sizes, sums)
    alike = _alike(vectors.table(vectors.relations[relation].head).vectors[users])
    blocks = [by_user.smoothed(block, alike, degree, count) for block in _blocks(len(users))]
    owners, cluster, weight, sums = (np.concatenate([block[at] for block in blocks]) for at in range(4))
    owners, cluster, weight, sums = _weightiest(owners, cluster, weight, sums)
    total = np.bincount(owners, weight, minlength=len(users))
    start = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(users)))]).astype(np.int64)
    found = (sums / weight[:, None]).astype(np.float32)
    return Interests(users, start, cluster, weight / total[owners], found, items, comparison)


def retrieve(
    interests: Interests, index: NearestIndex, user: int, k: int, known: Rows | None = None
) -> tuple[Rows, Weights]:
    """The k items for a user: of each interest the nearest, as many as its weight says.

    Args:
        interests: of users.
        index: of `interests.items`.
        user: its row.
        k: how many items.
        known: rows of items that are left out, such as those that the user engaged with.

    Returns:
        Rows of items, the nearest of each interest first and interests in turn, and of each the weight of its interest;
        fewer than k where there are no more.
    """
    here = interests.of(user)
    if here.start == here.stop:
        return np.empty(0, np.int64), np.empty(0)
    seen = set() if known is None else set(known.tolist())
    _, rows = index.search(interests.vectors[here], k + len(seen))
    weight = interests.weight[here]
    lines = [iter(row[row >= 0].tolist()) for row in rows]
    chosen: list[tuple[int, float]] = []
    # In turn, so that the start of the list has every interest; what one cannot give, the weightiest others do.
    for shares in (_shares(weight, k), np.full(len(weight), k)):
        for turn in range(int(shares.max())):
            for number in np.flatnonzero(shares > turn):
                item = next((one for one in lines[number] if one not in seen), None)
                if item is not None and len(chosen) < k:
                    seen.add(item)
                    chosen.append((item, float(weight[number])))
    return np.array([item for item, _ in chosen], np.int64), np.array([w for _, w in chosen])


def interests_path(folder: Path, relation: str) -> Path:
    """Where the interests of a relation are written; a slash in its name begins no folder."""
    return folder / f"{relation.replace('/', '%2F')}.interests.parquet"


def write_interests(interests: Interests, ids: pa.Array, path: Path) -> None:
    """Write interests as Parquet: `id`, `cluster`, `weight`, `vector`, the weightiest of each user first.

    Args:
        interests: of users.
        ids: of all nodes of the users' type, by row.
        path: the file.
    """
    owners = np.repeat(interests.users, np.diff(interests.start))
    flat = pa.array(interests.vectors.reshape(-1))
    table = pa.table(
        {
            "id": ids.take(pa.array(owners)),
            "cluster": interests.cluster,
            "weight": interests.weight.astype(np.float32),
            "vector": pa.FixedSizeListArray.from_arrays(flat, interests.vectors.shape[1]),
        }
    )
    with whole_file(path) as partial:
        pq.write_table(table, partial)


@dataclass(frozen=True)
class _Entries:
    """Edges summed by user and cluster, ordered by user: how many, and the sum of the items' vectors."""

    users: int
    user: Rows
    cluster: Rows
    size: Weights
    sums: Weights

    def smoothed(self, block: Rows, alike: Rows, degree: Weights, count: int) -> tuple[Rows, Rows, Weights, Weights]:
        """User, cluster, n + s · m and the sum of vectors weighted alike, for some users."""
        first = np.searchsorted(self.user, np.arange(self.users + 1))
        friends = alike[block]
        owner = np.concatenate([block, np.repeat(block, friends.shape[1])[friends.reshape(-1) >= 0]])
        source = np.concatenate([block, friends[friends >= 0]])
        factor = np.full(len(owner), 1.0)
        having = np.maximum((friends >= 0).sum(axis=1), 1)
        place = np.searchsorted(block, owner[len(block) :])
        factor[len(block) :] = WORTH / (having[place] * degree[source[len(block) :]])
        lengths = first[source + 1] - first[source]
        entry = np.repeat(first[source] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        factor = np.repeat(factor, lengths)
        keys = np.repeat(owner, lengths) * count + self.cluster[entry]
        keys, size, sums = _sums(keys, factor * self.size[entry], factor[:, None] * self.sums[entry])
        return keys // count, keys % count, size, sums


def _cluster(items: Vectors, count: int, spherical: bool, seed: int) -> Rows:
    means = faiss.Kmeans(
        items.shape[1], count, niter=ROUNDS, seed=seed + 1, spherical=spherical, min_points_per_centroid=1
    )
    means.train(np.ascontiguousarray(items))
    _, nearest = means.index.search(np.ascontiguousarray(items), 1)
    rows: Rows = nearest[:, 0]
    return rows


def _alike(users: Vectors) -> Rows:
    """The users nearest to each by cosine, (users, NEIGHBOURS); -1 where there are fewer."""
    _, found = build_index(users, "cosine").search(users, NEIGHBOURS + 1)
    own = found == np.arange(len(users))[:, None]
    order = np.argsort(own, axis=1, kind="stable")
    return np.take_along_axis(np.where(own, -1, found), order, axis=1)[:, :NEIGHBOURS]


def _sums(keys: Rows, sizes: Weights, vectors: npt.NDArray[np.floating]) -> tuple[Rows, Weights, Weights]:
    """Different keys in order, and the sums of what belongs to each."""
    order = np.argsort(keys, kind="stable")
    different, starts = np.unique(keys[order], return_index=True)
    return different, np.add.reduceat(sizes[order], starts), np.add.reduceat(vectors[order].astype(np.float64), starts)


def _weightiest(owners: Rows, cluster: Rows, weight: Weights, sums: Weights) -> tuple[Rows, Rows, Weights, Weights]:
    """The MOST weightiest interests of each user, the weightiest first."""
    order = np.lexsort((cluster, -weight, owners))
    order = order[weight[order] > 0]
    sorted_owners = owners[order]
    place = np.arange(len(order)) - np.searchsorted(sorted_owners, sorted_owners)
    order = order[place < MOST]
    return owners[order], cluster[order], weight[order], sums[order]


def _shares(weight: Weights, k: int) -> Rows:
    """k in whole shares by weight, the largest remainders rounded up."""
    exact = weight * k
    shares = np.floor(exact).astype(np.int64)
    rest = np.argsort(-(exact - shares), kind="stable")[: k - int(shares.sum())]
    shares[rest] += 1
    return shares


def _blocks(users: int, size: int = 4096) -> Iterator[Rows]:
    for start in range(0, users, size):
        yield np.arange(start, min(start + size, users))
