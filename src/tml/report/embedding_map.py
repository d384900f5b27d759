"""TwHIN's vectors as a map: a sample of nodes in two dimensions, coloured by what the log knows of them.

Colours are of nothing that the vectors were trained with: that people of one language or posts of one topic stand
together is what the graph alone told.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import duckdb
import numpy as np
import pyarrow as pa

from tml.core.errors import UserError
from tml.data.config import LogConfig
from tml.data.log import open_log
from tml.projects.twhin.vectors import TrainedVectors, load_vectors
from tml.report.charts import to_svg
from tml.report.layout import Points, layout
from tml.report.style import SERIES_COLORS
from tml.report.tables import legend

MOST_POINTS, LEAST_POINTS = 700, 20
MOST_COLORS = 9
WIDTH, HEIGHT = 1010, 560
COLUMNS = ("language", "topic", "category", "tag", "country")
"""Of `users` and `posts`, the first that most nodes have gives the colours."""
SHAPES = ("circle", "diamond", "triangle-up", "square")


@dataclass(frozen=True)
class Sample:
    """Some nodes: the type and id of each, and (nodes, dimension) vectors."""

    types: list[str]
    ids: list[Any]
    vectors: Points


def map_card(run: Path, log: Mapping[str, Any] | None) -> str:
    """The map of a run's vectors as a card; empty where the run has none, or too few.

    Args:
        run: the run folder.
        log: the `log` section of its config, if it has one.
    """
    try:
        vectors = load_vectors(run)
        chosen = sample(vectors)
    except UserError:
        return ""
    if len(chosen.ids) < LEAST_POINTS:
        return ""
    column, labels = _labels(chosen, run, log)
    colors = _colors(labels)
    shapes = dict(zip(vectors.node_types, SHAPES * len(vectors.node_types), strict=False))
    svg = _draw(layout(chosen.vectors), chosen.types, [colors.get(label, "var(--faint)") for label in labels], shapes)
    lines = [(name, color, False) for name, color in colors.items()]
    lines += [("other", "var(--faint)", False)] * any(label not in colors for label in labels)
    counts = Counter(chosen.types)
    what = " and ".join(f"{counts[node]:,} {node}s ({_shape(shape)})" for node, shape in shapes.items() if counts[node])
    about = f"{what}, drawn at random and laid out by t-SNE: near here is near in {vectors.dim} dimensions."
    about += f" Colours are the {column}, which the training does not know." * (column != "type")
    return (
        f'<article class="card"><h3>Map of the embeddings</h3><p>{about}</p><div class="chart">{svg}</div>'
        f"{legend(lines)}</article>"
    )


def sample(vectors: TrainedVectors, seed: int = 0) -> Sample:
    """At most `MOST_POINTS` nodes, of each type as many as it can give; of unit length where the score multiplies."""
    rng = np.random.default_rng(seed)
    sizes = {node: len(vectors.table(node)) for node in vectors.node_types}
    share, types, ids, parts = MOST_POINTS, [], [], []
    for left, node in zip(range(len(sizes), 0, -1), sorted(sizes, key=lambda node: (sizes[node], node)), strict=True):
        count = min(sizes[node], share // left)
        share -= count
        rows = np.sort(rng.choice(sizes[node], count, replace=False))
        table = vectors.table(node)
        types += [node] * count
        ids += table.ids.take(pa.array(rows)).to_pylist()
        parts.append(np.array(table.vectors[rows], np.float32))
    points = np.concatenate(parts)
    if vectors.score in ("dot", "cosine"):
        points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    return Sample(types, ids, points)


def _labels(chosen: Sample, run: Path, log: Mapping[str, Any] | None) -> tuple[str, list[str]]:
    """What the colours are, and of each node its value; the type of node where the log tells nothing."""
    try:
        config = LogConfig(**{**log, "path": Path(log["path"])}) if log else LogConfig(path=run / "log")
        with open_log(config) as opened:
            for column in COLUMNS:
                known = _values(opened.connection, column)
                values = [known.get((node, id_)) for node, id_ in zip(chosen.types, chosen.ids, strict=True)]
                if sum(value is not None for value in values) > len(values) / 2 and len(set(values)) > 1:
                    return column, [str(value) if value is not None else "unknown" for value in values]
    except (UserError, ValueError, KeyError, TypeError, OSError, duckdb.Error):
        # The log may have moved since; a picture without its colours is better than no report.
        pass
    return "type", chosen.types


def _values(connection: duckdb.DuckDBPyConnection, column: str) -> dict[tuple[str, Any], Any]:
    """The column's value by node type and id: their own, or of authors that of most of their posts."""
    found: dict[tuple[str, Any], Any] = {}
    for types, table, key in ((("author",), "posts", "author_id"), (("user", "author"), "users", "user_id")):
        for node in types:
            select = f'SELECT {key}, mode("{column}") FROM {table} GROUP BY {key}'
            found |= {(node, id_): value for id_, value in _rows(connection, select) if value is not None}
    posts = _rows(connection, f'SELECT post_id, "{column}" FROM posts')
    return found | {("post", id_): value for id_, value in posts if value is not None}


def _rows(connection: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[Any, Any]]:
    try:
        return connection.execute(sql).fetchall()
    except (duckdb.CatalogException, duckdb.BinderException):
        return []


def _colors(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each of the most frequent labels."""
    common = [label for label, _ in Counter(labels).most_common(MOST_COLORS)]
    return dict(zip(common, SERIES_COLORS, strict=False))


def _draw(places: Points, types: Sequence[str], colors: Sequence[str], shapes: Mapping[str, str]) -> str:
    rows = [
        {"x": float(x), "y": float(y), "color": color, "shape": shapes[node]}
        for (x, y), node, color in zip(places, types, colors, strict=True)
    ]

    def axis(channel: Any, field: str) -> Any:
        return channel(f"{field}:Q", axis=None, scale=alt.Scale(zero=False, nice=False, padding=14))

    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_point(filled=True, size=42, opacity=0.8, stroke="var(--card)", strokeWidth=0.8)
        .encode(
            x=axis(alt.X, "x"),
            y=axis(alt.Y, "y"),
            fill=alt.Fill("color:N", scale=None),
            shape=alt.Shape("shape:N", scale=None),
        )
    )
    return to_svg("Map of the embeddings", chart.properties(width=WIDTH, height=HEIGHT))


def _shape(name: str) -> str:
    return {"circle": "dots", "diamond": "diamonds", "triangle-up": "triangles", "square": "squares"}[name]
