"""The command line's verbs that make a graph, train on it and measure; what uses the vectors is in `cli_twhin`."""

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tml.cli_job import Config, RunDir, Set, do_job, example, show
from tml.core.errors import UserError

twhin = typer.Typer(help="TwHIN: embeddings of viewers, authors and posts from the graph.", no_args_is_help=True)


COLUMNS = "head,relation,tail"


class Unknown(StrEnum):
    """What becomes of edges to measure on that training knows nothing of."""

    ERROR = "error"
    SKIP = "skip"


class By(StrEnum):
    """How candidates are drawn."""

    UNIFORM = "uniform"
    DEGREE = "degree"


class Exclude(StrEnum):
    """What of the past does not compete in Recall@k."""

    RELATION = "relation"
    ANY = "any"
    NONE = "none"


class Split(StrEnum):
    """Whose edges are looked for."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@twhin.command("train", epilog=example("tml twhin train examples/demo.yaml --run-dir runs/demo"))
def twhin_train(
    config: Config = None,
    run_dir: RunDir = None,
    set_: Set = None,
    graph: Annotated[
        Path | None,
        typer.Option(metavar="GRAPH", help="Train on this graph of `tml twhin prepare`.", show_default=False),
    ] = None,
) -> None:
    """Learn embeddings from what happened before the ranker's training starts, or from a prepared graph."""
    if graph is None:
        from tml.projects.twhin.published import is_published

        if config is not None and config.is_file() and is_published(config):
            raise UserError(
                f"{config}: found TwHIN's published configuration, allowed with it is --graph, a graph that "
                "`tml twhin prepare` makes of it"
            )
        print(do_job(config, run_dir, set_, "twhin") / "twhin" / "embeddings")
        return
    from tml.core.distributed import is_first_rank, process_group
    from tml.graph_pipeline import graph_config, train_graph

    folder = run_dir or Path("runs") / (config.stem if config else graph.name)
    with process_group():
        train_graph(graph_config(config, set_ or ()), graph, folder)
        if is_first_rank():
            print(folder / "embeddings")


@twhin.command("prepare", epilog=example("tml twhin prepare train.txt graph --validation valid.txt --test test.txt"))
def twhin_prepare(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="TRAIN",
            help="Triples: a text or Parquet file, a folder or a pattern of them; or an engagement log: its folder, or "
            "a job's CONFIG.yaml.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write the graph to.", show_default=False)],
    validation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Triples to measure on in training.", show_default=False)
    ] = None,
    test: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Triples to measure on at the end.", show_default=False)
    ] = None,
    columns: Annotated[
        str, typer.Option(help="The columns of text files in order; weight, time and label may follow.")
    ] = COLUMNS,
    types: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Text of relation, head type, tail type; else all are of one.", show_default=False
        ),
    ] = None,
    unknown: Annotated[Unknown, typer.Option(help="Edges to measure on whose ids training lacks.")] = Unknown.ERROR,
    until: Annotated[
        datetime | None,
        typer.Option(help="Of a log: edges are older than this, in UTC.", show_default="split.train_start"),
    ] = None,
    test_until: Annotated[
        datetime | None,
        typer.Option(help="Of a log: new edges from there until this are for the test.", show_default=False),
    ] = None,
    set_: Set = None,
) -> None:
    """Make a graph to train on, of triples or of an engagement log."""
    from tml.data.log import is_log

    job = source.suffix in (".yaml", ".yml")
    if job or is_log(source):
        from tml.core.config import load_config
        from tml.graph_pipeline import prepare_config, prepare_log
        from tml.run_config import RunConfig

        of_triples = {"validation": validation, "test": test, "types": types, "columns": columns != COLUMNS}
        _refuse({**of_triples, "unknown": unknown is not Unknown.ERROR}, source, "triples")
        if job:
            edges = prepare_config(source, set_ or (), out, until, test_until)
        else:
            sets = [f"log.path={json.dumps(str(source))}", *(set_ or ())]
            edges = prepare_log(load_config(RunConfig, None, sets), out, until, test_until)
        skipped: dict[str, int] = {}
    else:
        _refuse({"until": until, "test-until": test_until, "set": set_}, source, "an engagement log")
        from tml.projects.twhin.prepare import prepare_triples

        names = [name.strip() for name in columns.split(",")]
        prepared = prepare_triples(
            source, out, validation=validation, test=test, columns=names, types=types, unknown=unknown.value
        )
        edges = dict[str, int](prepared.edges.items())
        skipped = {name: count for name, count in prepared.skipped.items() if count}
        if prepared.repeated:
            print(f"note: {prepared.repeated:,} edges of training were there before and were merged", file=sys.stderr)
    for name, count in skipped.items():
        print(f"note: {count:,} edges of {name} were left out: training lacks a node or the relation", file=sys.stderr)
    for name, count in edges.items():
        print(f"{name}: {count:,} edges")
    print(out)


def _refuse(options: Mapping[str, object], source: Path, kind: str) -> None:
    """Refuse options that say nothing of this kind of source."""
    for name, value in options.items():
        if value:
            raise UserError(f"--{name}: found with {source}, allowed only with {kind}")


@twhin.command("evaluate", epilog=example("tml twhin evaluate runs/demo --candidates 1000 --by degree"))
def twhin_evaluate(
    vectors: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run, a training on a graph, or a folder of vectors.", show_default=False),
    ],
    graph: Annotated[
        Path | None, typer.Option(metavar="GRAPH", help="The graph to measure on.", show_default="the one trained on")
    ] = None,
    split: Annotated[
        Split | None, typer.Option(help="Whose edges are looked for.", show_default="test, else validation")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Let other known edges compete.")] = False,
    candidates: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Draw so many for each edge.", show_default="all nodes")
    ] = None,
    by: Annotated[By, typer.Option(help="How candidates are drawn.")] = By.UNIFORM,
    recall: Annotated[
        list[int] | None, typer.Option(min=1, metavar="K", help="Recall@K of tails, too.", show_default=False)
    ] = None,
    exclude: Annotated[
        Exclude, typer.Option(help="Past edges that do not compete there: the relation's, any, none.")
    ] = Exclude.RELATION,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing.")] = 0,
) -> None:
    """Say how well the vectors find held-out edges, beside what popularity finds; write it as JSON, too."""
    from tml.projects.twhin.evaluate import EvaluationConfig
    from tml.projects.twhin.evaluate_run import evaluate_run
    from tml.projects.twhin.evaluation_tables import evaluation_tables

    protocol = EvaluationConfig(
        filtered=not raw,
        candidates=candidates,
        by=by.value,
        recall_at=tuple(recall or ()),
        exclude=exclude.value,
        seed=seed,
    )
    result, path = evaluate_run(vectors, graph, protocol, split.value if split else None)
    show(*evaluation_tables(result))
    print(path)
