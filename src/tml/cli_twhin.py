"""The command line's verbs that use TwHIN's vectors; those that make them are in `cli_graph`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tml.cli_graph import Unknown
from tml.cli_graph import twhin as twhin
from tml.cli_job import example, show

Vectors = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run's folder, or one of `tml twhin export`.", show_default=False),
]
EdgeFile = Annotated[
    Path,
    typer.Argument(metavar="EDGES", help="Head, relation and tail by id: .tsv, .csv or .parquet.", show_default=False),
]


class Format(StrEnum):
    """How vectors are written."""

    parquet = "parquet"
    numpy = "numpy"


class Index(StrEnum):
    """How neighbours are searched."""

    exact = "exact"
    ivf = "ivf"
    hnsw = "hnsw"


@twhin.command("export", epilog=example("tml twhin export runs/demo vectors --format numpy"))
def twhin_export(
    run: Vectors,
    out: Annotated[Path, typer.Argument(help="The folder to write to.", show_default=False)],
    format_: Annotated[Format, typer.Option("--format", help="parquet, or numpy for memory maps.")] = Format.parquet,
    multi: Annotated[
        str | None,
        typer.Option(
            metavar="RELATION",
            help="Write OUT/RELATION.interests.parquet too: several vectors for each head.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the vectors of all nodes and the relations' operators as files that stand alone."""
    from tml.projects.twhin.clusters import find_interests, graph_edges, interests_path, write_interests
    from tml.projects.twhin.export import export_vectors
    from tml.projects.twhin.vectors import load_vectors

    vectors = load_vectors(run)
    number = vectors.relation(multi) if multi else -1
    edges = graph_edges(vectors, number) if multi else None
    export_vectors(vectors, out, format_.value)
    if edges is not None:
        interests = find_interests(vectors, number, *edges)
        ids = vectors.table(vectors.relations[number].head).ids
        write_interests(interests, ids, interests_path(out, vectors.relations[number].name))
    for node in vectors.node_types:
        print(f"{node}: {len(vectors.table(node)):,} vectors of {vectors.dim}")
    print(out)


@twhin.command("neighbours", epilog=example("tml twhin neighbours runs/demo user 7 12 --relation follow -k 5"))
def twhin_neighbours(
    run: Vectors,
    node: Annotated[str, typer.Argument(metavar="TYPE", help="The type of the nodes.", show_default=False)],
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Their ids.", show_default=False)],
    relation: Annotated[
        str | None,
        typer.Option(help="Look through this relation.", show_default="nodes like these"),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="The type of the neighbours.", show_default="the relation's, or the same"),
    ] = None,
    back: Annotated[
        bool, typer.Option("--back", help="The ids are tails; for a relation that joins a type with itself.")
    ] = False,
    k: Annotated[int, typer.Option("-k", min=1, help="How many neighbours.")] = 10,
    index: Annotated[Index, typer.Option(help="exact, or approximate: ivf or hnsw.")] = Index.exact,
    index_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the index there, and use it the next time.", show_default=False),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(metavar="FILE:COLUMN", help="A column that names the neighbours.", show_default=False),
    ] = None,
    multi: Annotated[
        bool,
        typer.Option("--multi", help="By several vectors each, from clusters of what they engaged with in RELATION."),
    ] = False,
) -> None:
    """Show the nearest nodes of some nodes."""
    from tml.projects.twhin.answers import ask
    from tml.projects.twhin.vectors import load_vectors

    answer = ask(
        load_vectors(run),
        node,
        ids,
        relation=relation,
        to=to,
        back=back,
        k=k,
        kind=index.value,
        folder=index_dir,
        names=names,
        multi=multi,
    )
    show(*answer)


@twhin.command("score", epilog=example("tml twhin score runs/demo pairs.tsv scores.parquet --unknown skip"))
def twhin_score(
    run: Vectors,
    edges: EdgeFile,
    out: Annotated[Path, typer.Argument(help="The Parquet file to write.", show_default=False)],
    unknown: Annotated[
        Unknown, typer.Option(help="An unknown id is an error, or its edge is given no score (skip).")
    ] = Unknown.ERROR,
) -> None:
    """Score given edges."""
    from tml.projects.twhin.score import score_file
    from tml.projects.twhin.vectors import load_vectors

    scored = score_file(load_vectors(run), edges, out, unknown.value)
    print(f"{scored.edges:,} edges scored, {scored.unknown:,} with an unknown end")
    print(out)


@twhin.command("project", epilog=example("tml twhin project runs/demo new-edges.tsv new-vectors"))
def twhin_project(
    run: Vectors,
    edges: EdgeFile,
    out: Annotated[Path, typer.Argument(help="The folder to write to.", show_default=False)],
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same vectors.")] = 0,
) -> None:
    """Make vectors of new nodes from their edges alone, without training again."""
    from tml.projects.twhin.project import project_file
    from tml.projects.twhin.vectors import load_vectors

    for one in project_file(load_vectors(run), edges, out, seed):
        print(f"{one.node}: {len(one.ids):,} new vectors from {one.edges:,} edges")
    print(out)
