"""The command line: what is printed, and what a user who is wrong gets: one sentence, exit code 2, no traceback."""

from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    "verb",
    [
        "run",
        "simulate",
        "features",
        "twhin train",
        "twhin prepare",
        "twhin evaluate",
        "twhin export",
        "twhin neighbours",
        "twhin score",
        "twhin project",
        "recap train",
        "recap baselines",
        "recap evaluate",
        "recap what-if",
        "recap rank",
        "recap schedule",
        "report",
    ],
)
def test_every_verb_has_help_with_an_example(tml: Any, verb: str) -> None:
    done = tml(*verb.split(), "--help")
    assert done.returncode == 0
    assert f"Example: tml {verb}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["run", "gone.yaml"], ["gone.yaml", "no such config file"]),
        (["run", "--set", "recap.batchsize=3"], ["recap.batchsize", "unknown field", "did you mean batch_size"]),
        (["run", "--set", "recap.epochs=many"], ["recap.epochs", "'many'", "number"]),
        (["run", "--set", "log.path=nowhere"], ["nowhere", "no such folder"]),
        (["run", "--set", "split.train_start=0.9"], ["split", "follow each other"]),
        (["run", "--set", "weights.is_clik=1"], ["weights", "is_clik"]),
        (["simulate", "out", "--users", "1"], ["users", "1", "greater than or equal to 2"]),
        (["recap", "schedule", "--out", "x.pdf"], ["x.pdf", "found .pdf", "allowed are .png, .svg, .html"]),
        (["twhin", "prepare", "gone.tsv", "graph"], ["gone.tsv", "no such file of triples"]),
        (["twhin", "prepare", "gone.tsv", "graph", "--columns", "head,tail"], ["columns", "head,tail", "relation"]),
        (
            ["twhin", "prepare", "gone.tsv", "graph", "--until", "2024-01-01"],
            ["--until", "only with an engagement log"],
        ),
        (["twhin", "train", "--graph", "gone"], ["gone", "no such graph"]),
        (["twhin", "evaluate", "gone"], ["gone", "found no vectors"]),
        (["twhin", "export", "nowhere", "out"], ["nowhere", "found no vectors", "a run's folder"]),
        (["twhin", "score", "nowhere", "e.tsv", "out"], ["nowhere", "found no vectors", "a run's folder"]),
        (["recap", "what-if", "nowhere", "--set", "weights.is_like=0"], ["nowhere", "no config.yaml"]),
        (["run", "--set", "evaluation.draws=3"], ["evaluation.draws", "3", "greater than or equal to 20"]),
        (["features", "--run-dir", "empty"], ["simulate is not finished", "tml simulate"]),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    tml: Any, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    done = tml(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr
    assert not list(tmp_path.glob("**/*.partial"))


def test_the_shipped_configs_load() -> None:
    from tml.core.config import load_config
    from tml.run_config import RunConfig

    # The published configuration is no job; `test_examples` has it.
    paths = sorted(path for path in EXAMPLES.glob("*.yaml") if path.name != "published.yaml")
    assert {path.name for path in paths} >= {"demo.yaml", "kuairand.yaml"}
    for path in paths:
        load_config(RunConfig, path)


def test_a_log_needs_no_config_to_become_a_graph(tml: Any, tmp_path: Path) -> None:
    assert tml("simulate", "log", "--users", "60", "--posts", "200", "--days", "3").returncode == 0
    refused = tml("twhin", "prepare", "log", "graph", "--types", "types.tsv")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--types: found with log, allowed only with triples" in refused.stderr
    assert "allowed is one or more" in tml("twhin", "prepare", "log", "graph", "--test-until", "1999-01-01").stderr
    assert not (tmp_path / "graph").exists()
    relation = "twhin.relations=[{name: likes, source: engagements, type: favorited, tail: post}]"
    prepared = tml("twhin", "prepare", "log", "graph", "--set", relation)
    assert prepared.returncode == 0, prepared.stderr
    names = {path.name for path in (tmp_path / "graph" / "vocabulary").iterdir()}
    assert names == {"user.parquet", "post.parquet"}


def test_triples_are_prepared_trained_on_and_evaluated(tml: Any, tmp_path: Path) -> None:
    rows = [f"n{i % 20}\tr\tn{(i * 7 + 4 * (i % 5)) % 20}" for i in range(60)]
    (tmp_path / "train.tsv").write_text("\n".join(rows[:50]) + "\n")
    (tmp_path / "test.tsv").write_text("\n".join(rows[50:]) + "\nn1\tr\tstranger\n")
    prepared = tml("twhin", "prepare", "train.tsv", "graph", "--test", "test.tsv", "--unknown", "skip")
    assert prepared.returncode == 0, prepared.stderr
    assert "test: 10 edges" in prepared.stdout
    assert "1 edges of test were left out" in prepared.stderr
    trained = tml("twhin", "train", "--graph", "graph", "--run-dir", "run", "--set", "twhin.epochs=1")
    assert trained.returncode == 0, trained.stderr
    evaluated = tml("twhin", "evaluate", "run", "--candidates", "5", "--by", "degree", "--recall", "3")
    assert evaluated.returncode == 0, evaluated.stderr
    for part in ("Protocol: 10 edges of test", "5 nodes", "by degree", "Recall@3", "evaluation-test.json"):
        assert part in evaluated.stdout
