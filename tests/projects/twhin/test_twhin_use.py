"""What trained vectors are used for: neighbours, scores of given edges, new nodes, several vectors a user."""

import gzip
from dataclasses import replace
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from tml.core.errors import DataError, UserError
from tml.embeddings.files import read_embeddings
from tml.embeddings.nearest import build_index
from tml.projects.twhin.answers import ask
from tml.projects.twhin.clusters import find_interests, retrieve, write_interests
from tml.projects.twhin.config import RelationConfig, TwhinConfig
from tml.projects.twhin.edge_files import NamedEdges, read_edges
from tml.projects.twhin.export import export_embeddings
from tml.projects.twhin.graph import Graph, Relation
from tml.projects.twhin.losses import LogisticNegatives, Loss, of_negatives, of_positives
from tml.projects.twhin.model import TwhinModel
from tml.projects.twhin.neighbours import plain_search, read_names, relation_search
from tml.projects.twhin.project import loss_against, project_file, project_nodes
from tml.projects.twhin.score import score_file
from tml.projects.twhin.train import train_twhin
from tml.projects.twhin.vectors import Objective, load_vectors

GROUPS = 4


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """20 users, 15 authors, 30 posts with random vectors; follow, like and reply; distances of l2."""
    rng = np.random.default_rng(0)
    ends = (("follow", "user", "author"), ("like", "user", "post"), ("reply", "user", "author"))
    config = TwhinConfig(
        relations=tuple(RelationConfig(name=n, head=h, tail=t) for n, h, t in ends), embedding_dim=6, score="l2"
    )
    names = {"user": pa.array(range(20)), "author": pa.array(range(15)), "post": pa.array([f"p{i}" for i in range(30)])}
    empty = np.zeros(0, np.int64)
    graph = Graph(tuple(Relation(*one) for one in ends), names, empty, empty, empty)
    model = TwhinModel(graph.sizes, graph.relations, config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(size=parameter.shape)))
    out = tmp_path_factory.mktemp("vectors") / "out"
    export_embeddings(model, graph, out)
    return load_vectors(out)


def test_neighbours_through_a_relation_are_the_best_scored_edges(vectors):
    search = relation_search(vectors, "user", "reply")
    rows = np.array([3, 17])
    scores, found = search.nearest(search.index("exact"), rows, 4)
    for row, its_scores, its_found in zip(rows, scores, found, strict=True):
        edges = vectors.score_edges(2, np.full(15, row), np.arange(15)).numpy()
        assert its_found.tolist() == np.argsort(-edges)[:4].tolist()
        np.testing.assert_allclose(its_scores, np.sort(edges)[::-1][:4], rtol=1e-4)
    back = relation_search(vectors, "post", "like")
    assert (back.asked, back.found) == ("post", "user")
    edges = vectors.score_edges(1, np.arange(20), np.full(20, 5)).numpy()
    assert back.nearest(back.index("exact"), np.array([5]), 3)[1][0].tolist() == np.argsort(-edges)[:3].tolist()


def test_a_node_is_no_neighbour_of_itself(vectors):
    search = plain_search(vectors, "author")
    scores, found = search.nearest(search.index("hnsw"), np.arange(15), 15)
    assert all(row not in its for row, its in enumerate(found))
    assert (found[:, -1] == -1).all()
    assert np.isneginf(scores[:, -1]).all()
    assert np.isfinite(scores[:, :-1]).all()


def answer(vectors, node="user", ids=("1",), **options):
    defaults = {"relation": None, "to": None, "back": False, "k": 2, "kind": "exact", "folder": None, "names": None}
    return ask(vectors, node, ids, **{**defaults, "multi": False, **options})


def test_questions_that_cannot_be_answered_are_one_sentence(vectors, tmp_path):
    for options, message in (
        ({"node": "tag"}, "found no node type 'tag', allowed are user, author, post"),
        ({"ids": ["1", "77"]}, "found the unknown user 77, allowed are the 20 ids"),
        ({"relation": "likes"}, "found no relation 'likes', allowed are follow, like, reply"),
        ({"relation": "like", "to": "author"}, "like: found user to author, allowed is from user to post or back"),
        ({"node": "author", "relation": "like"}, "like: found author, allowed is from user to post or back"),
        ({"back": True}, "--back: found no relation"),
        ({"multi": True}, "--multi: found no relation"),
        ({"multi": True, "relation": "like", "node": "post"}, "--multi: allowed is from user to post"),
        ({"multi": True, "relation": "like"}, "graph: no such graph, needed for what users engaged with"),
        ({"names": "gone.csv:name"}, "gone.csv:name: no such file"),
    ):
        with pytest.raises(UserError, match=message):
            answer(vectors, **options)
    answer(vectors, kind="ivf", folder=tmp_path / "index")
    with pytest.raises(DataError, match="found an index of kind ivf, asked was hnsw"):
        answer(vectors, kind="hnsw", folder=tmp_path / "index")
    table, line = answer(vectors, kind="ivf", folder=tmp_path / "index")
    assert table.row_count == 2
    assert "ivf index: recall@2 1.000" in line


def test_names_come_from_a_column_of_a_table(tmp_path):
    (tmp_path / "users.csv").write_text("user_id,name\n7,Ann\n8,\n")
    assert read_names(f"{tmp_path}/users.csv:name", "author", pa.array([7, 8, 9])) == ["Ann", "8", "9"]
    with pytest.raises(DataError, match="found the columns user_id, name, allowed are title and one of user_id, id"):
        read_names(f"{tmp_path}/users.csv:title", "user", pa.array([7]))


EDGES = [("3", "follow", "4"), ("3", "like", "p7"), ("0", "reply", "14")]


@pytest.mark.parametrize("kind", ["tsv", "csv", "gz", "parquet"])
def test_given_edges_are_scored_in_their_order(vectors, tmp_path, kind):
    path = tmp_path / f"edges.{kind}"
    if kind == "parquet":
        columns = zip(*EDGES, strict=True)
        pq.write_table(pa.table(dict(zip(("lhs", "rel", "rhs"), map(list, columns), strict=True))), path)
    elif kind == "csv":
        path.write_text("tail,extra,relation,head\n" + "".join(f"{t},x,{r},{h}\n" for h, r, t in EDGES))
    else:
        path = tmp_path / ("edges.tsv.gz" if kind == "gz" else "edges.tsv")
        text = "".join("\t".join(edge) + "\n" for edge in EDGES).encode()
        path.write_bytes(gzip.compress(text) if kind == "gz" else text)
    assert score_file(vectors, path, tmp_path / "out.parquet").edges == 3
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.select(["head", "relation", "tail"]).to_pylist() == [
        dict(zip(("head", "relation", "tail"), edge, strict=True)) for edge in EDGES
    ]
    users, authors, posts = (vectors.table(node).vectors.astype(float) for node in ("user", "author", "post"))
    shift = [vectors.operators.weights[0, 0, number].numpy() for number in range(3)]
    expected = -np.array(
        [
            np.linalg.norm(users[3] + shift[0] - authors[4]),
            np.linalg.norm(users[3] + shift[1] - posts[7]),
            np.linalg.norm(users[0] + shift[2] - authors[14]),
        ]
    )
    np.testing.assert_allclose(table["score"], expected, rtol=1e-5)
    np.testing.assert_allclose(table["probability"], 1 / (1 + np.exp(-expected)), rtol=1e-5)


def test_probabilities_of_very_low_scores_are_0(vectors, tmp_path):
    (tmp_path / "edges.tsv").write_text("3\tfollow\t4\n")
    cold = replace(vectors, objective=replace(vectors.objective, temperature=1e-4))
    score_file(cold, tmp_path / "edges.tsv", tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["probability"].to_pylist() == [0.0]


def test_unknown_ends_are_named_or_skipped(vectors, tmp_path):
    path = tmp_path / "edges.tsv"
    path.write_text("99\tfollow\t4\n3\tfollow\t4\n3\tlike\tpx\n")
    with pytest.raises(DataError, match=r"edges\.tsv: found the unknown user 99, allowed are the 20 ids"):
        score_file(vectors, path, tmp_path / "out.parquet")
    assert not list(tmp_path.glob("*out*"))
    scored = score_file(vectors, path, tmp_path / "out.parquet", "skip")
    assert (scored.edges, scored.unknown) == (1, 2)
    assert [value is None for value in pq.read_table(tmp_path / "out.parquet")["score"].to_pylist()] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.tsv", None, "no such file of edges"),
        ("edges.json", "{}", r"found the ending \.json, allowed are"),
        ("edges.tsv", "", "found (no edge|nothing|0 columns|1 columns)"),
        ("edges.tsv", "1\tfollow\n", "the first line is .* allowed are 3 columns"),
        ("edges.csv", "a,b,c,d\n1,2,3,4\n", "the first line is 'a,b,c,d', allowed are 3 columns"),
        ("edges.csv", "head,relation,tail\n", "found no edge"),
        ("edges.tsv", "1\tfollow\t2\n1\t\t2\n", "relation is missing in an edge"),
        ("edges.tsv", "not an edge\n" + 9 * "1\tfollow\t2\n", "the first line is 'not an edge'"),
        ("edges.tsv", "1\tfollow\t2\n1\tfollow\n", "line 2 has 2 columns, allowed are 3"),
        ("edges.parquet", "no", "cannot be read as edges"),
        ("edges.tsv", "1\tlikes\t2\n", "found no relation 'likes'"),
    ],
)
def test_what_is_no_file_of_edges_is_refused(vectors, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        score_file(vectors, tmp_path / name, tmp_path / "out.parquet")


def communities(users, items, degree, seed, groups=GROUPS, groups_of=lambda user: [user % GROUPS]):
    """Edges of users with items of their groups, popular items more often: (user, item) without repetition."""
    rng = np.random.default_rng(seed)
    popularity = rng.lognormal(0, 0.5, items)
    edges = set()
    for user in range(users):
        weight = popularity * np.isin(np.arange(items) % groups, groups_of(user))
        edges |= {(user, int(item)) for item in rng.choice(items, degree, replace=False, p=weight / weight.sum())}
    return sorted(edges)


def trained(make_log, edges, folder, **config):
    """Vectors of follows between the users and authors of edges."""
    settings = {"embedding_dim": 16, "epochs": 30.0, "batch_size": 512, "validation_fraction": 0.0, **config}
    follow = TwhinConfig(relations=(RelationConfig(name="follow", source="follows"),), **settings)
    rows = [(user, item, 0) for user, item in edges]
    train_twhin(make_log(rows, [], [(0, 0)]), follow, None, folder, seed=0, fingerprint="f")
    return load_vectors(folder)


def auc(vectors, users, held_out, known):
    """How the held-out items of users rank among those that a user has no edge with."""
    candidates, values = vectors.candidates(0, "tail"), []
    for user, item in held_out:
        query = vectors.operators(torch.from_numpy(users[user][None]), 0, "head", "tail")
        scores = vectors.compare(query, candidates)[0].numpy()
        own = vectors.find("author", pa.array([item]))[0]
        seen = vectors.find("author", pa.array([i for u, i in [*known, *held_out] if u == user]))
        values.append((np.delete(scores, seen[seen >= 0]) < scores[own]).mean())
    return np.mean(values)


@pytest.mark.parametrize(("score", "loss"), [("dot", "logistic"), ("l2", "margin"), ("cosine", "softmax")])
def test_new_nodes_get_vectors_near_those_that_training_would_give(make_log, tmp_path, score, loss):
    edges = communities(160, 80, 12, seed=1)
    new = [edge for edge in edges if edge[0] >= 140]
    held_out, given = new[::4], [edge for number, edge in enumerate(new) if number % 4]
    old = [edge for edge in edges if edge[0] < 140]
    everything = trained(make_log, old + given, tmp_path / "all", score=score)
    vectors = trained(make_log, old, tmp_path / "old", score=score)
    # The loss that the projection minimises is told by the files.
    vectors = type(vectors)(**{**vars(vectors), "objective": Objective(loss, 0.5, 3.0, 1.0), "_tables": {}})
    columns = [pa.array([str(u) for u, _ in given]), pa.array(["follow"] * len(given)), pa.array([i for _, i in given])]
    (projected,) = project_nodes(vectors, NamedEdges(*columns))
    assert projected.ids.to_pylist() == list(range(140, 160))
    assert projected.edges == len(given)
    ours = auc(vectors, dict(zip(range(140, 160), projected.vectors, strict=True)), held_out, given)
    rows = everything.find("user", pa.array(range(140, 160)))
    theirs = auc(
        everything, dict(zip(range(140, 160), everything.table("user").vectors[rows], strict=True)), held_out, given
    )
    shuffled = np.random.default_rng(0).permutation(projected.vectors)
    assert ours > 0.8
    assert ours > theirs - 0.05
    assert ours > auc(vectors, dict(zip(range(140, 160), shuffled, strict=True)), held_out, given) + 0.1


def test_projection_follows_from_the_seed_and_not_from_the_batches(vectors, tmp_path, monkeypatch):
    path = tmp_path / "edges.tsv"
    rng = np.random.default_rng(0)
    path.write_text(
        "".join(f"{100 + n % 7}\tfollow\t{rng.integers(15)}\n{n % 5}\tlike\tnew{n % 3}\n" for n in range(40))
    )
    results = [project_file(vectors, path, tmp_path / name, seed) for name, seed in (("a", 0), ("b", 1))]
    assert [one.node for one in results[0]] == ["user", "post"]
    monkeypatch.setattr("tml.projects.twhin.project.BLOCK", 8)
    project_file(vectors, path, tmp_path / "blocks", 0)
    for node in ("user", "post"):
        whole, other, blocks = (read_embeddings(tmp_path / name / f"{node}.parquet") for name in ("a", "b", "blocks"))
        np.testing.assert_allclose(whole.vectors, blocks.vectors, atol=1e-4)
        assert np.abs(whole.vectors - other.vectors).max() > 1e-3
    assert read_embeddings(tmp_path / "a" / "post.parquet").ids.to_pylist() == ["new0", "new1", "new2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\tfollow\t2\n", r"edges\.tsv: found no new node"),
        ("77\tlike\tnew\n78\tfollow\t1\n", "no edge between the new user 77 and a known node"),
        ("ann\tfollow\t1\n", r"edges\.tsv: found the user 'ann', allowed are int64"),
        ("007\tfollow\t1\n", r"edges\.tsv: found the user '007', allowed are int64"),
        ("77\thates\t1\n", "found no relation 'hates'"),
    ],
)
def test_what_cannot_be_projected_is_one_sentence(vectors, tmp_path, text, message):
    (tmp_path / "edges.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        project_file(vectors, tmp_path / "edges.tsv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("loss", get_args(Loss))
def test_the_losses_of_projection_are_those_of_training(loss):
    generator = torch.Generator().manual_seed(0)
    objective = Objective(loss, margin=0.3, negative_weight=2.5, temperature=0.5)
    positive = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    negatives = torch.randn(1, 6, 7, generator=generator, dtype=torch.float64)
    own = torch.rand(1, 6, 7, generator=generator) < 0.4
    own[0, 0] = True
    share = torch.eye(6, dtype=torch.float64)
    weight = {"logistic": 2.5, "softmax": 1.0, "margin": 1.0}[loss]
    counts = own.logical_not().sum(2).clamp(min=1) if loss != "softmax" else 1
    scaled = positive / objective.temperature
    expected = []
    for edge in range(6):
        one = share[edge].unsqueeze(0)
        scores = (negatives / objective.temperature).masked_fill(own, -torch.inf)
        weights = one * weight / counts
        if loss == "logistic":
            measured = LogisticNegatives(weights, scores.numel())
            measured.to_gradient_(scores, weights)
            value = measured.loss()
        else:
            value, _ = of_negatives(loss, scores, scaled, weights, objective.margin)
        expected.append(of_positives(loss, scaled, one)[0].sum() + value)
    torch.testing.assert_close(loss_against(objective, positive[0], negatives[0], own[0]), torch.stack(expected))


def test_losses_by_hand():
    positive, negatives = torch.tensor([1.0, 0.5]), torch.tensor([[0.2, 3.0, 1.0], [0.1, 0.4, 0.0]])
    own = torch.tensor([[False, True, False], [False, False, False]])
    logistic = loss_against(Objective("logistic", 0, 2.0, 0.5), positive, negatives, own)
    expected = F.softplus(torch.tensor(-2.0)) + 2 * F.softplus(torch.tensor([0.4, 2.0])).mean()
    assert logistic[0].item() == pytest.approx(expected.item())
    softmax = loss_against(Objective("softmax", 0, 1, 1.0), positive, negatives, own)
    assert softmax[0].item() == pytest.approx(-np.log(np.exp(1) / (np.exp(1) + np.exp(0.2) + np.exp(1))), rel=1e-5)
    margin = loss_against(Objective("margin", 0.3, 1, 1.0), positive, negatives, own)
    np.testing.assert_allclose(margin, [0.3 / 2, 0.2 / 3], rtol=1e-5)


def test_several_vectors_find_more_of_several_interests(make_log, tmp_path):
    # Each user likes three of 24 groups, in 8 dimensions: a vector between them is near to others, too.
    rng = np.random.default_rng(3)
    chosen = [rng.choice(24, 3, replace=False) for _ in range(250)]
    edges = communities(250, 480, 24, seed=2, groups=24, groups_of=lambda user: chosen[user])
    order = rng.permutation(len(edges))
    held_out = [edges[place] for place in order[::3]]
    given = [edges[place] for number, place in enumerate(order) if number % 3]
    vectors = trained(make_log, given, tmp_path, embedding_dim=8)
    heads = vectors.find("user", pa.array([user for user, _ in given]))
    tails = vectors.find("author", pa.array([item for _, item in given]))
    interests = find_interests(vectors, 0, heads, tails)
    several = build_index(interests.items, interests.comparison)
    search = relation_search(vectors, "user", "follow")
    single = search.index("exact")
    hits = np.zeros(2)
    for user in range(250):
        row = vectors.find("user", pa.array([user]))[0]
        seen = tails[heads == row]
        wanted = vectors.find("author", pa.array([item for u, item in held_out if u == user]))
        found, weight = retrieve(interests, several, row, 20, known=seen)
        assert len(found) == len(set(found)) == 20
        assert not np.isin(found, seen).any()
        assert weight[0] == pytest.approx(interests.weight[interests.of(row)][0])
        plain = single.search(search.queries[row : row + 1], 20 + len(seen))[1][0]
        plain = plain[~np.isin(plain, seen)][:20]
        hits += np.isin(wanted, found).sum(), np.isin(wanted, plain).sum()
    recall_several, recall_single = hits / len(held_out)
    assert recall_several > 1.2 * recall_single

    write_interests(interests, vectors.table("user").ids, tmp_path / "interests.parquet")
    table = pq.read_table(tmp_path / "interests.parquet")
    assert table.schema.names == ["id", "cluster", "weight", "vector"]
    totals = table.group_by("id").aggregate([("weight", "sum")])["weight_sum"]
    np.testing.assert_allclose(totals, 1, rtol=1e-5)
    assert len(totals) == 250


def test_interests_without_neighbours_are_shares_and_means(vectors, monkeypatch):
    monkeypatch.setattr("tml.projects.twhin.clusters.WORTH", 0.0)
    heads, tails = np.array([4, 4, 4, 9]), np.array([0, 1, 2, 7])
    interests = find_interests(vectors, 0, heads, tails, clusters=3)
    for user in (4, 9):
        here = interests.of(user)
        mine = vectors.candidates(0, "tail").numpy()[tails[heads == user]]
        total = (interests.weight[here, None] * interests.vectors[here]).sum(0)
        np.testing.assert_allclose(total, mine.mean(0), rtol=1e-4)
        assert interests.weight[here].sum() == pytest.approx(1)
    assert interests.of(5) == slice(0, 0)
    with pytest.raises(DataError, match="follow: found no edge"):
        find_interests(vectors, 0, heads[:0], tails[:0])


def test_ids_of_another_kind_are_refused(tmp_path):
    for column in ([[1]], [1.5], [b"x"]):
        pq.write_table(pa.table({"head": column, "relation": ["r"], "tail": [2]}), tmp_path / "e.parquet")
        with pytest.raises(DataError, match=r"e\.parquet: head is .*, allowed are integers and strings"):
            list(read_edges(tmp_path / "e.parquet"))


def test_edges_are_read_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr("tml.projects.twhin.edge_files.BLOCK", 2048)
    (tmp_path / "edges.tsv").write_text("".join(f"{n}\tfollow\t{n + 1}\n" for n in range(5000)))
    blocks = list(read_edges(tmp_path / "edges.tsv"))
    assert [head for block in blocks for head in block.head.to_pylist()] == [str(n) for n in range(5000)]
