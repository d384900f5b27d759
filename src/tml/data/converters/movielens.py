"""MovieLens: ratings of films as a log, where a rating is an impression and 4 stars or more is a like.

Three layouts: `ratings.csv` and `movies.csv` (latest, 25M, 32M), `ratings.dat`, `movies.dat` and perhaps `users.dat`
separated by `::` (1M, 10M), `u.data`, `u.item` and `u.user` (100K). There is no author: a film stands for itself, and
what a person thinks of a kind of film is told by `topic`, its genres, and `genre`, the first of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tml.core.errors import DataError
from tml.data.converters.writer import Converted, text_relation, writing

LIKED_FROM = 4.0
"""Stars from which on a film was liked."""

GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""The flags of `u.item`, in their order."""

_RATINGS = {"user_id": "BIGINT", "post_id": "BIGINT", "rating": "DOUBLE", "seconds": "BIGINT"}
_FILMS = {"post_id": "BIGINT", "title": "VARCHAR", "genres": "VARCHAR"}


@dataclass(frozen=True)
class _Layout:
    """SQL of ratings, films and users, the latter with its columns, in one of the three layouts."""

    ratings: str
    films: str
    users: str | None
    user_columns: tuple[str, ...]


def convert_movielens(source: Path, out: Path) -> Converted:
    """Convert MovieLens.

    Raises:
        DataError: a file that is missing, or not what it should be, by name and line.
    """
    layout = _layout(source if source.is_dir() else source.parent)
    with writing(out, steps=2 + (layout.users is not None)) as log:
        log.write(
            "impressions",
            f"SELECT user_id, post_id, make_timestamp(seconds * 1000000) AT TIME ZONE 'UTC' AS served_at, "
            f"CAST(rating >= {LIKED_FROM} AS TINYINT) AS liked FROM {layout.ratings} "
            "ORDER BY served_at, user_id, post_id",
        )
        none = "('', '(no genres listed)')"
        log.write(
            "posts",
            "SELECT post_id, post_id AS author_id, title, "
            "TRY_CAST(nullif(regexp_extract(title, '\\((\\d{4})\\)\\s*$', 1), '') AS INTEGER) AS year, "
            f"CASE WHEN genres NOT IN {none} THEN genres END AS topic, "
            f"CASE WHEN genres NOT IN {none} THEN split_part(genres, '|', 1) END AS genre "
            f"FROM {layout.films} ORDER BY post_id",
        )
        if layout.users is not None:
            log.write("users", f"SELECT * FROM {layout.users} ORDER BY user_id")
        notes = (
            "a rating is an impression: what was shown and not rated is not known",
            f"liked is a rating of {LIKED_FROM:.0f} stars or more; the rating itself is an outcome and left out",
            "a film stands for its author, since there is none",
        )
        log.config("\n".join(("MovieLens, converted.", *(f"- {note}" for note in notes))), _config(layout.user_columns))
    return Converted(out, log.rows, notes)


def _layout(folder: Path) -> _Layout:
    names = {path.name for path in folder.iterdir()}
    if {"ratings.csv", "movies.csv"} <= names:
        ratings, films = (
            text_relation([folder / name], columns, ",", header=True, quote='"')
            for name, columns in (("ratings.csv", _RATINGS), ("movies.csv", _FILMS))
        )
        return _Layout(ratings, films, None, ())
    if {"ratings.dat", "movies.dat"} <= names:
        ratings = text_relation([folder / "ratings.dat"], _RATINGS, "::")
        films = text_relation([folder / "movies.dat"], _FILMS, "::", encoding="latin-1")
        columns = {
            "user_id": "BIGINT",
            "gender": "VARCHAR",
            "age": "INTEGER",
            "occupation": "INTEGER",
            "zip": "VARCHAR",
        }
        users = text_relation([folder / "users.dat"], columns, "::") if "users.dat" in names else None
        return _Layout(ratings, films, users, ("gender", "age", "occupation") if users else ())
    if {"u.data", "u.item"} <= names:
        ratings = text_relation([folder / "u.data"], _RATINGS, "\t")
        columns = {
            "user_id": "BIGINT",
            "age": "INTEGER",
            "gender": "VARCHAR",
            "occupation": "VARCHAR",
            "zip": "VARCHAR",
        }
        users = text_relation([folder / "u.user"], columns, "|") if "u.user" in names else None
        return _Layout(ratings, _films_100k(folder), users, ("gender", "age", "occupation") if users else ())
    raise DataError(
        f"{folder}: found none of ratings.csv and movies.csv, ratings.dat and movies.dat, u.data and u.item; "
        "allowed is a folder of MovieLens as it is published"
    )


def _columns(*names: str) -> dict[str, str]:
    kinds = {"user_id": "BIGINT", "age": "INTEGER"}
    return {name: kinds.get(name, "VARCHAR") for name in names}


def _films_100k(folder: Path) -> str:
    flags = [f"flag{number}" for number in range(len(GENRES_100K))]
    columns = {"post_id": "BIGINT", **dict.fromkeys(("title", "released", "video_released", "address"), "VARCHAR")}
    items = text_relation([folder / "u.item"], {**columns, **dict.fromkeys(flags, "INTEGER")}, "|", encoding="latin-1")
    names = ", ".join(
        f"CASE WHEN {flag} = 1 THEN '{genre.replace(chr(39), chr(39) * 2)}' END"
        for flag, genre in zip(flags, GENRES_100K, strict=True)
        if genre != "unknown"
    )
    return f"(SELECT post_id, title, concat_ws('|', {names}) AS genres FROM {items})"


def _config(user_columns: Sequence[str]) -> dict[str, Any]:
    return {
        "log": {"impressions": {"labels": ["liked"]}},
        "tasks": {"is_liked": {"engagement": "liked"}},
        "features": {
            # No key with the author, which is the film once more.
            "keys": [["user_id"], ["post_id"], ["topic"], ["genre"], ["user_id", "topic"], ["user_id", "genre"]],
            "continuous": ["posts.year"],
            "discrete": ["posts.topic", "posts.genre", *(f"users.{column}" for column in user_columns)],
        },
        "twhin": {"relations": [{"name": "liked", "source": "engagements", "type": "liked", "tail": "post"}]},
        "recap": {
            "embeddings": {
                "user_embedding": {"nodes": "user", "key": "user_id"},
                "post_embedding": {"nodes": "post", "key": "post_id"},
            }
        },
        "weights": {"is_liked": 1.0},
    }
