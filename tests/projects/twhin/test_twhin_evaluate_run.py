"""From triples to figures: prepare, train on the graph, evaluate the files; and other graphs for the same vectors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tml.core.errors import DataError, MissingStage
from tml.projects.twhin.clusters import graph_edges
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.evaluate import EvaluationConfig
from tml.projects.twhin.evaluate_run import evaluate_run
from tml.projects.twhin.evaluation_tables import evaluation_tables
from tml.projects.twhin.graph import GraphFolder
from tml.projects.twhin.prepare import prepare_triples
from tml.projects.twhin.train import train_on_graph
from tml.projects.twhin.vectors import load_vectors


def _communities(rng, count):
    """Edges inside of four communities, from a node to others of its own."""
    heads = rng.integers(0, 60, count)
    tails = (heads + 4 * rng.integers(1, 15, count)) % 60
    return [(f"n{h}", str(rng.choice(["a", "b"])), f"n{t}") for h, t in zip(heads, tails, strict=True)]


def _write(path, rows):
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with triples, their graph, and vectors that were trained on it."""
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    rows = _communities(rng, 1400)
    files = {name: _write(folder / f"{name}.tsv", part) for name, part in (
        ("train", rows[:1200]), ("validation", rows[1200:1300]), ("test", rows[1300:])
    )}  # fmt: skip
    prepare_triples(files["train"], folder / "graph", validation=files["validation"], test=files["test"])
    config = TwhinConfig(embedding_dim=8, epochs=40, batch_size=256)
    train_on_graph(folder / "graph", config, folder / "run", seed=0)
    return folder


def test_a_training_on_a_graph_is_measured_from_its_files(trained):
    result, path = evaluate_run(trained / "run", None, EvaluationConfig(recall_at=(10,)))
    assert path == trained / "run" / "evaluation-test.json"
    written = json.loads(path.read_text())
    assert {key: written[key] for key in result} == result
    assert result["config"]["split"] == "test"
    assert result["edges"] == 100
    # Of 59 others the 14 of the own community compete, and most of those are known.
    assert result["model"]["micro"]["mrr"] > 2 * result["degree"]["micro"]["mrr"]
    assert result["model"]["micro"]["hits@10"] > 0.8
    other, other_path = evaluate_run(trained / "run" / "embeddings", None, EvaluationConfig(), "validation")
    assert other_path.name == "evaluation-validation.json"
    assert "100 edges of validation" in other["protocol"]


def test_a_run_folder_that_learns_from_another_graph_is_measured_on_that(tmp_path):
    config = TwhinConfig(embedding_dim=4, epochs=1, batch_size=256)
    for name in ("one", "two"):
        rows = _communities(np.random.default_rng(1), 300 if name == "one" else 400)
        prepare_triples(_write(tmp_path / f"{name}.tsv", rows), tmp_path / name)
        train_on_graph(tmp_path / name, config, tmp_path / "run", seed=0, fingerprint=name)
        assert (tmp_path / "run" / "graph").resolve() == tmp_path / name
    (tmp_path / "two").rename(tmp_path / "three")
    train_on_graph(tmp_path / "three", config, tmp_path / "run", seed=0, fingerprint="three")
    assert (tmp_path / "run" / "graph").resolve() == tmp_path / "three"
    (tmp_path / "run" / "graph").unlink()
    shutil.copytree(tmp_path / "one", tmp_path / "run" / "graph")
    with pytest.raises(DataError, match=r"graph: found another graph than .*three"):
        train_on_graph(tmp_path / "three", config, tmp_path / "run", seed=0, fingerprint="three")


def test_a_graph_that_lies_beside_vectors_by_chance_is_not_theirs(trained, tmp_path):
    shutil.copytree(trained / "run" / "embeddings", tmp_path / "vectors")
    rows = _communities(np.random.default_rng(1), 300)
    prepare_triples(_write(tmp_path / "other.tsv", rows), tmp_path / "graph", test=tmp_path / "other.tsv")
    with pytest.raises(DataError, match="vectors: found no graph beside the vectors"):
        evaluate_run(tmp_path / "vectors", None, EvaluationConfig())
    with pytest.raises(DataError, match="graph: no such graph, needed for what users engaged with"):
        graph_edges(load_vectors(tmp_path / "vectors"), 0)
    _, path = evaluate_run(tmp_path / "vectors", tmp_path / "graph", EvaluationConfig())
    assert path == tmp_path / "vectors" / "evaluation-test.json"
    (tmp_path / "graph" / "relations.json").write_text('[{"name": "a", "head": "node", "tail": "node"}]')
    (tmp_path / "vectors").rename(tmp_path / "embeddings")
    with pytest.raises(DataError, match="graph: found other nodes or relations than the vectors'"):
        graph_edges(load_vectors(tmp_path / "embeddings"), 0)


def test_nodes_are_found_by_their_ids(trained, tmp_path):
    """A graph of fewer nodes in other rows, whose relations are fewer too, gives what a filter by hand would."""
    keep = [line.split("\t") for line in (trained / "test.tsv").read_text().splitlines()]
    rows = [tuple(row) for row in keep if row[1] == "b"]
    ends = sorted({end for h, _, t in rows for end in (h, t)}, reverse=True)
    graph = tmp_path / "graph"
    prepare_triples(_write(tmp_path / "some.tsv", rows), graph, test=_write(tmp_path / "t.tsv", rows))
    assert GraphFolder(graph).sizes == {"node": len(ends)}
    result, path = evaluate_run(trained / "run", graph, EvaluationConfig(filtered=False))
    assert path.parent == trained / "run"
    from tml.projects.twhin.vectors import load_vectors

    vectors = load_vectors(trained / "run")
    rows_of = vectors.rows("node", ends)
    ranks = []
    for head, _, tail in rows:
        own = vectors.rows("node", [head, tail])
        scores = vectors.score_edges(1, np.repeat(own[:1], len(ends)), rows_of).numpy()
        true = vectors.score_edges(1, own[:1], own[1:]).numpy()[0]
        ranks.append(1 + (scores > true + 1e-6).sum())
    assert result["model"]["tail"]["mr"] == pytest.approx(np.mean(ranks))


def test_the_tables_show_figures_with_their_protocol(trained):
    result, _ = evaluate_run(trained / "run", None, EvaluationConfig(recall_at=(10,), candidates=20))
    console = Console(width=160, record=True)
    for part in evaluation_tables(result):
        console.print(part)
    text = console.export_text()
    own, degree = result["model"]["micro"]["mrr"], result["degree"]["micro"]["mrr"]
    for part in ("20 nodes of the type", f"{own:.3f}", f"{degree:.3f}", "by degree", "Recall@10", "mean of relations"):
        assert part in text
    worse = {**result, "model": result["degree"], "degree": result["model"]}
    assert "does not beat" in evaluation_tables(worse)[-1]


def test_what_does_not_fit_is_named(trained, tmp_path):
    def refused(message, path, graph=None, split=None, error=DataError):
        with pytest.raises(error, match=message):
            evaluate_run(path, graph, EvaluationConfig(), split)

    refused("found no vectors", tmp_path)
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    refused("found no vectors", tmp_path / "begun", error=MissingStage)
    other = _write(tmp_path / "other.tsv", [("n1", "a", "n2"), ("stranger", "b", "n3")])
    prepare_triples(other, tmp_path / "other", test=other)
    refused("found the unknown node stranger", trained / "run", tmp_path / "other")
    loves = _write(tmp_path / "loves.tsv", [("n1", "loves", "n2")])
    prepare_triples(loves, tmp_path / "loves")
    refused(r"found no validation\.parquet", trained / "run", tmp_path / "loves")
    refused("found no relation 'loves'", trained / "run", tmp_path / "loves", "train")
    types = _write(tmp_path / "types.tsv", [("a", "node", "item")])
    typed = _write(tmp_path / "typed.tsv", [("n1", "a", "n2")])
    prepare_triples(typed, tmp_path / "typed", test=typed, types=types)
    refused("a joins node to node, but in the graph node to item", trained / "run", tmp_path / "typed")


def test_a_training_without_validation_edges_holds_some_out(trained, tmp_path, capsys):
    prepare_triples(trained / "train.tsv", tmp_path / "graph")
    config = TwhinConfig(embedding_dim=4, epochs=1, validation_fraction=0.1)
    train_on_graph(tmp_path / "graph", config, tmp_path / "run", seed=0)
    edges = len(GraphFolder(tmp_path / "graph").read())
    assert f"{round(0.1 * edges)} held-out edges" in capsys.readouterr().err
    assert (tmp_path / "run" / "graph").resolve() == Path(tmp_path / "graph").resolve()
