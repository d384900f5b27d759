"""Exported files are enough: what they score is what the model scores, in both formats."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tml.core.errors import DataError, MissingStage
from tml.embeddings.files import read_embeddings
from tml.projects.twhin.config import RelationConfig, TwhinConfig
from tml.projects.twhin.export import export_embeddings, export_vectors
from tml.projects.twhin.model import TwhinModel
from tml.projects.twhin.vectors import load_vectors

OPERATORS = (("translation", "both"), ("complex_diagonal", "tail"), ("identity", "head"))


def make_model(graph, score="dot", reciprocal=False, operators=OPERATORS, dim=6):
    """A model of the fixture's graph whose relations have these operators, with random parameters."""
    relations = tuple(
        RelationConfig(name=r.name, head=r.head, tail=r.tail, operator=operator, side=side)
        for r, (operator, side) in zip(graph.relations, operators, strict=True)
    )
    config = TwhinConfig(relations=relations, embedding_dim=dim, score=score, reciprocal=reciprocal)
    generator = torch.Generator().manual_seed(1)
    model = TwhinModel(graph.sizes, graph.relations, config, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


@pytest.mark.parametrize("format_", ["parquet", "numpy"])
@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("score", ["dot", "cosine", "l1", "l2"])
def test_files_alone_score_as_the_model_does(graph, tmp_path, format_, reciprocal, score):
    model = make_model(graph, score, reciprocal)
    export_embeddings(model, graph, tmp_path / "out", format_)
    vectors = load_vectors(tmp_path / "out")
    for number, relation in enumerate(graph.relations):
        here = graph.rel == number
        heads, tails = (torch.from_numpy(rows[here]) for rows in (graph.lhs, graph.rhs))
        with torch.no_grad():
            expected = model.score(number, heads, tails)
            torch.testing.assert_close(vectors.score_edges(number, heads.numpy(), tails.numpy()), expected)
            for side, rows in (("tail", heads), ("head", tails)):
                theirs = model.compare(model.queries(number, side, rows), model.candidates(number, side))
                ours = vectors.compare(vectors.queries(number, side, rows.numpy()), vectors.candidates(number, side))
                torch.testing.assert_close(ours, theirs)
        assert vectors.relations[number] == relation


def test_a_detour_over_numpy_changes_no_byte(graph, tmp_path):
    model = make_model(graph, reciprocal=True)
    export_embeddings(model, graph, tmp_path / "first")
    export_vectors(load_vectors(tmp_path / "first"), tmp_path / "numpy", "numpy")
    export_vectors(load_vectors(tmp_path / "numpy"), tmp_path / "second", "parquet")
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
    assert {path.name for path in (tmp_path / "numpy").iterdir()} == {
        "relations.json", "relations.npy", "user.npy", "user.ids.npy", "author.npy", "author.ids.npy", "post.npy",
        "post.ids.npy",
    }  # fmt: skip


def test_translations_of_the_head_are_one_row_a_relation(graph, tmp_path):
    model = make_model(graph, operators=(("translation", "head"),) * 3)
    export_embeddings(model, graph, tmp_path / "out")
    table = read_embeddings(tmp_path / "out" / "relations.parquet", width=6)
    assert table.ids.to_pylist() == ["follow", "like", "reply"]
    np.testing.assert_array_equal(table.vectors, model.operators.weights[0, 0].detach())


def test_the_folder_of_a_run_and_of_a_training_are_found(graph, tmp_path):
    export_embeddings(make_model(graph), graph, tmp_path / "run" / "twhin" / "embeddings")
    for path in (tmp_path / "run", tmp_path / "run" / "twhin", tmp_path / "run" / "twhin" / "embeddings"):
        assert load_vectors(path).dim == 6
    (tmp_path / "unfinished" / "twhin" / "checkpoints").mkdir(parents=True)
    with pytest.raises(MissingStage, match="which `tml twhin train` writes"):
        load_vectors(tmp_path / "unfinished")
    with pytest.raises(DataError, match="nowhere: found no vectors"):
        load_vectors(tmp_path / "nowhere")


def test_what_does_not_fit_is_named(graph, tmp_path):
    out = tmp_path / "out"
    export_embeddings(make_model(graph), graph, out)
    vectors = load_vectors(out)
    with pytest.raises(DataError, match="found no node type 'tag', allowed are user, author, post"):
        vectors.table("tag")
    with pytest.raises(DataError, match="found no relation 'likes', allowed are follow, like, reply"):
        vectors.relation("likes")
    with pytest.raises(
        DataError, match=r"found the unknown user 77, x, 3\.5, -1, 99 and 2 more, allowed are the 20 ids"
    ):
        vectors.rows("user", ["77", "1", "x", "3.5", "-1", "77", "99", "98", "97"])

    for text in ("--5", "+5", " 5", "05", "\u0665", str(1 << 63), "9" * 5000):
        with pytest.raises(DataError, match="found the unknown user"):
            vectors.rows("user", [text])

    other = tmp_path / "other"
    shutil.copytree(out, other)
    export_embeddings(make_model(graph, dim=4), graph, tmp_path / "narrow")
    shutil.copy(tmp_path / "narrow" / "user.parquet", other)
    with pytest.raises(DataError, match=r"user\.parquet: found vectors of width 4, allowed is 6"):
        load_vectors(other).table("user")
    shutil.copy(tmp_path / "narrow" / "relations.parquet", other)
    with pytest.raises(DataError, match=r"relations\.parquet: found a vector of width 4 for the head of follow"):
        load_vectors(other)
    (other / "relations.parquet").write_text("no")
    with pytest.raises(DataError, match=r"relations\.parquet: not the operators of relations"):
        load_vectors(other)
    (other / "relations.parquet").unlink()
    with pytest.raises(DataError, match=r"relations\.parquet: no such file"):
        load_vectors(other)
    (other / "relations.json").write_text((out / "relations.json").read_text().replace('"dot"', '"manhattan"'))
    with pytest.raises(DataError, match=r"not the relations of trained vectors \(the score 'manhattan'\)"):
        load_vectors(other)
    (other / "relations.json").write_text("{")
    with pytest.raises(DataError, match=r"relations\.json: not the relations of trained vectors"):
        load_vectors(other)
    (other / "relations.json").write_text(json.dumps([{"name": "follow", "head": "user", "tail": "author"}]))
    with pytest.raises(DataError, match=r"relations\.json: not the relations of trained vectors"):
        load_vectors(other)


def test_a_damaged_numpy_file_is_named(graph, tmp_path):
    out = tmp_path / "out"
    export_embeddings(make_model(graph), graph, out, "numpy")
    np.save(out / "user.npy", np.zeros((20, 5), np.float32))
    with pytest.raises(DataError, match=r"user\.npy: found the shape \(20, 5\), allowed is \(20, 6\)"):
        load_vectors(out).table("user")
    (out / "author.npy").write_bytes(b"no")
    with pytest.raises(DataError, match=r"author\.npy: not a readable NumPy file"):
        load_vectors(out).table("author")
    (out / "post.npy").unlink()
    with pytest.raises(DataError, match=r"found no vectors of post, allowed are post\.parquet and post\.npy"):
        load_vectors(out).table("post")
    np.save(out / "relations.npy", np.zeros((1, 2, 3, 5), np.float32))
    with pytest.raises(DataError, match=r"relations\.npy: found the shape \(1, 2, 3, 5\)"):
        load_vectors(out)


def test_a_vector_that_is_not_finite_leaves_nothing_behind(graph, tmp_path):
    model = make_model(graph)
    model.embeddings.write("author", slice(3, 4), torch.full((1, 6), float("nan")))
    with pytest.raises(DataError, match=r"author\.parquet: the vector of id 3 has a value that is not finite"):
        export_embeddings(model, graph, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_string_ids_survive_both_formats(graph, tmp_path):
    names = {node: pa.array([f"{node}-{row}-ü" for row in range(size)]) for node, size in graph.sizes.items()}
    named = type(graph)(graph.relations, names, graph.lhs, graph.rel, graph.rhs)
    for format_ in ("parquet", "numpy"):
        export_embeddings(make_model(graph), named, tmp_path / format_, format_)
        assert load_vectors(tmp_path / format_).table("post").ids.equals(names["post"])
        assert load_vectors(tmp_path / format_).rows("user", ["user-7-ü"]).tolist() == [7]
    assert pq.read_table(tmp_path / "parquet" / "post.parquet")["id"].type == pa.string()
