"""Every converter on a small data set in its format: the log says what the files say, and a job takes it as it is."""

import csv
import gzip
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tml.core.config import load_config
from tml.core.errors import DataError, MissingStage
from tml.data.check import check_log, load_log_config
from tml.data.config import LogConfig
from tml.data.converters import FORMATS, Converted, convert_log
from tml.data.converters.kuairand import LABELS
from tml.data.converters.recsys import FIELDS
from tml.data.log import open_log
from tml.features.build import build_examples, train_start
from tml.projects.twhin.data import extract_graph
from tml.run_config import RunConfig

START = 1_580_947_200  # 6 February 2020 in seconds

Rows = list[dict[str, Any]]


def table(converted: Converted, name: str) -> Rows:
    rows: Rows = pq.read_table(converted.folder / f"{name}.parquet").to_pylist()
    return rows


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def assert_a_job_takes_it(converted: Converted, tmp_path: Path) -> None:
    """Its config opens it, makes features and labels of it, and the graph."""
    config = load_config(RunConfig, converted.result)
    assert config.log is not None
    assert config.twhin is not None
    with open_log(config.log) as log:
        build_examples(log, config.tasks, config.features, config.split, tmp_path / "examples", 0, "")
        until = train_start(log, config.split)
        assert len(extract_graph(log.connection, config.twhin, until, tmp_path / "graph")) > 0
        assert {embedding.nodes for embedding in config.recap.embeddings.values()} <= {*config.twhin.node_types}


def write_csv(path: Path, rows: Rows) -> None:
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


# KuaiRand.


def kuairand(folder: Path, days: int = 4, start: int = 1_650_812_400) -> Rows:
    """Users, videos and a log of a few days from 24 April 2022, 23:00 in Beijing."""
    random = np.random.default_rng(0)
    rows = []
    for n in range(400):
        seconds = start + n * days * 86_400 // 400
        row = {"user_id": n % 20, "video_id": int(random.integers(15)), "date": 20220425, "hourmin": 0}
        row |= {"time_ms": 1000 * seconds + n, **{label: int(random.random() < 0.4) for label in LABELS}}
        row |= {"play_time_ms": n, "duration_ms": 5, "profile_stay_time": 0, "comment_stay_time": 0}
        rows.append({**row, "is_rand": 0, "tab": n % 3})
    videos = [
        {"video_id": v, "author_id": 100 + v % 4, "video_type": "NORMAL", "upload_dt": "2022-04-10",
         "upload_type": "Kmovie", "visible_status": 0.0, "video_duration": "" if v == 1 else 5000.0,
         "server_width": 720.0, "server_height": 1280.0, "music_id": 9155697141, "music_type": 9.0, "tag": f"{v},2"}
        for v in range(15)
    ]  # fmt: skip
    users = [
        {"user_id": u, "user_active_degree": "full_active", "is_lowactive_period": 0, "is_live_streamer": 0,
         "is_video_author": 1, "follow_user_num": u, "follow_user_num_range": "(10,50]", "fans_user_num": 1,
         "fans_user_num_range": "[1,10)", "friend_user_num": 0, "friend_user_num_range": "0", "register_days": 99,
         "register_days_range": "61-90", **{f"onehot_feat{n}": n for n in range(18)}}
        for u in range(20)
    ]  # fmt: skip
    write_csv(folder / "video_features_basic_pure.csv", videos)
    write_csv(folder / "user_features_pure.csv", users)
    return rows


def test_kuairand_under_its_published_names(tmp_path: Path) -> None:
    folder = tmp_path / "KuaiRand-Pure" / "data"
    folder.mkdir(parents=True)
    rows = kuairand(folder, days=28, start=1_649_347_200)  # from 8 April
    early = [row for row in rows if row["time_ms"] < 1_650_556_800_000]
    late = [row for row in rows if row["time_ms"] >= 1_650_556_800_000]
    write_csv(folder / "log_standard_4_08_to_4_21_pure.csv", early)
    write_csv(folder / "log_standard_4_22_to_5_08_pure.csv", late[:-20] + late[:3])
    write_csv(folder / "log_random_4_22_to_5_08_pure.csv", [{**row, "is_rand": 1} for row in late[-20:]])
    converted = convert_log("kuairand", folder.parent, tmp_path / "log")
    assert converted.rows == {"impressions": 400, "posts": 15, "users": 20}
    assert converted.notes[0] == "3 exact duplicates of impressions are left out"
    found = table(converted, "impressions")
    assert [row["served_at"] for row in found] == [at(row["time_ms"] / 1000) for row in rows]
    for label in LABELS:
        assert [row[label] for row in found] == [row[label] for row in rows]
    assert sum(row["is_rand"] for row in found) == 20
    assert not {"play_time_ms", "profile_stay_time", "comment_stay_time"} & {*found[0]}
    config = load_config(RunConfig, converted.result)
    assert config.split.train_start == datetime(2022, 4, 22, tzinfo=UTC) - timedelta(hours=8)
    assert {relation.source for relation in config.twhin.relations} == {"engagements"}
    assert_a_job_takes_it(converted, tmp_path)


def test_kuairand_with_edges_from_before_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = kuairand(folder)
    # The same impression, logged twice with another outcome, is two: only exact duplicates are one.
    rows.insert(7, {**rows[6], "play_time_ms": 12345})
    write_csv(folder / "log.csv.gz", rows)
    relations = ["shown", "long_watch", "like"]
    edges = [{"user_id": n % 20, "relation": relations[n % 3], "video_id": n % 15, "position": n} for n in range(90)]
    write_csv(folder / "history_edges_0408_0424.csv.gz", edges)
    converted = convert_log("kuairand", folder, tmp_path / "log")
    assert converted.rows == {"impressions": 401, "posts": 15, "users": 20, "history": 90}
    # The folder alone says how it is read, and without its config the tables do.
    assert check_log(load_log_config(converted.folder)).is_usable
    check = check_log(LogConfig(path=converted.folder))
    assert check.suggestion is not None
    assert set(check.suggestion.impressions.labels) == {*LABELS}
    assert [row["type"] for row in table(converted, "history")[:3]] == ["impression", "long_view", "is_like"]
    with open_log(load_config(RunConfig, converted.result).log) as log:
        assert (log.rows, log.duplicates) == (401, 0)
    assert_a_job_takes_it(converted, tmp_path)


# RecSys Challenge.


def tweet(n: int, **changes: str) -> dict[str, str]:
    seconds = START + 600 * n
    like, retweet = n % 2 == 0, n % 5 == 0
    tweet_id = n - n % 2  # each was shown twice
    row = {
        "text_tokens": "101\t56\t102", "hashtags": "A\tB" if n % 3 else "", "tweet_id": f"T{tweet_id:03}",
        "present_media": ["", "Photo\tPhoto", "Video\tPhoto"][tweet_id % 3],
        "present_links": "L" if tweet_id % 4 else "", "present_domains": "", "tweet_type": "TopLevel", "language": "EN",
        "tweet_timestamp": str(START + 600 * tweet_id), "engaged_with_user_id": f"A{tweet_id % 6}",
        "engaged_with_user_follower_count": str(n), "engaged_with_user_following_count": "3",
        "engaged_with_user_is_verified": "true" if n % 4 else "false",
        "engaged_with_user_account_creation": "1234567890", "engaging_user_id": f"V{n % 9}",
        "engaging_user_follower_count": "7", "engaging_user_following_count": "8",
        "engaging_user_is_verified": "false", "engaging_user_account_creation": "1334567890",
        "engagee_follows_engager": "true" if n % 3 == 0 else "false",
        "reply_timestamp": str(seconds + 40) if n % 7 == 0 else "",
        "retweet_timestamp": str(seconds + 30) if retweet else "", "retweet_with_comment_timestamp": "",
        "like_timestamp": str(seconds + 20) if like else "",
    }  # fmt: skip
    return row | changes


def write_tweets(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join("\x01".join(row[name] for name in FIELDS) + "\n" for row in rows))


@pytest.mark.parametrize("name", ["recsys2020", "recsys2021"])
def test_recsys_challenge(tmp_path: Path, name: str) -> None:
    rows = [tweet(n) for n in range(200)]
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "_SUCCESS").touch()
    for part in range(3):
        write_tweets(folder / f"part-{part:05}", rows[part::3])
    converted = convert_log(name, folder, tmp_path / "log")
    found = table(converted, "impressions")
    assert len(found) == 200
    expected = sorted((int(r["tweet_timestamp"]), r["engaging_user_id"], r["tweet_id"]) for r in rows)
    assert [(r["served_at"].timestamp(), r["user_id"], r["post_id"]) for r in found] == expected
    assert {(r["post_id"], r["user_id"], r["author_followers"], r["author_verified"]) for r in found} == {
        (r["tweet_id"], r["engaging_user_id"], int(r["engaged_with_user_follower_count"]),
         r["engaged_with_user_is_verified"] == "true") for r in rows
    }  # fmt: skip
    kinds = {"favorited": "like", "retweeted": "retweet", "replied": "reply", "quoted": "retweet_with_comment"}
    engaged = {(r["user_id"], r["post_id"], r["type"], r["engaged_at"]) for r in table(converted, "engagements")}
    assert engaged == {
        (r["engaging_user_id"], r["tweet_id"], kind, at(int(r[f"{field}_timestamp"])))
        for r in rows for kind, field in kinds.items() if r[f"{field}_timestamp"]
    }  # fmt: skip
    posts = {row["post_id"]: row for row in table(converted, "posts")}
    assert len(posts) == 100
    assert {k: posts["T002"][k] for k in ("author_id", "media", "length", "hashtags", "links", "language")} == {
        "author_id": "A2", "media": "Photo+Video", "length": 3, "hashtags": 2, "links": 1, "language": "EN",
    }  # fmt: skip
    assert posts["T000"]["media"] == "none"
    assert posts["T000"]["links"] == 0
    follows = {(row["user_id"], row["followed_id"]) for row in table(converted, "follows")}
    assert follows == {(r["engaged_with_user_id"], r["engaging_user_id"]) for r in rows[::3]}
    assert table(converted, "text_tokens")[0] == {"post_id": "T000", "tokens": [101, 56, 102]}
    users = {row["user_id"]: row["joined_at"] for row in table(converted, "users")}
    assert users == {**{f"A{n}": at(1234567890) for n in range(0, 6, 2)}, **{f"V{n}": at(1334567890) for n in range(9)}}
    config = load_config(RunConfig, converted.result)
    assert list(config.tasks) == [f"recap.engagement.is_{kind}" for kind in ("favorited", "retweeted", "replied")]
    assert_a_job_takes_it(converted, tmp_path)


# MovieLens.

TITLES = [
    ("Toy Story (1995)", "Animation|Comedy"),
    ('Amélie, or "Le Fabuleux" (2001)', "Comedy|Romance"),
    ("Odd", ""),
]


def ratings() -> list[tuple[int, int, float, int]]:
    random = np.random.default_rng(0)
    return [(n % 12 + 1, int(random.integers(1, 4)), float(random.integers(1, 6)), START + 500 * n) for n in range(300)]


def movielens(folder: Path, layout: str) -> None:
    folder.mkdir()
    if layout == "csv":
        names = ("userId", "movieId", "rating", "timestamp")
        write_csv(folder / "ratings.csv", [dict(zip(names, row, strict=True)) for row in ratings()])
        films = [
            {"movieId": n + 1, "title": title, "genres": genres or "(no genres listed)"}
            for n, (title, genres) in enumerate(TITLES)
        ]
        write_csv(folder / "movies.csv", films)
    elif layout == "dat":
        lines = ["::".join(str(int(value)) for value in row) for row in ratings()]
        (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
        films = [f"{n + 1}::{title}::{genres}\n" for n, (title, genres) in enumerate(TITLES)]
        (folder / "movies.dat").write_text("".join(films), encoding="latin-1")
        (folder / "users.dat").write_text("".join(f"{u}::F::25::7::0{u}000\n" for u in range(1, 13)))
    else:
        lines = ["\t".join(str(int(value)) for value in row) for row in ratings()]
        (folder / "u.data").write_text("\n".join(lines) + "\n")
        flags = {0: {3, 5}, 1: {5, 14}, 2: {0}}
        films = [
            "|".join([str(n + 1), title, "01-Jan-1995", "", "http://x", *(str(int(g in flags[n])) for g in range(19))])
            for n, (title, _) in enumerate(TITLES)
        ]
        (folder / "u.item").write_text("\n".join(films) + "\n", encoding="latin-1")
        (folder / "u.user").write_text("".join(f"{u}|25|F|writer|0{u}000\n" for u in range(1, 13)))


@pytest.mark.parametrize("layout", ["csv", "dat", "data"])
def test_movielens_in_each_of_its_layouts(tmp_path: Path, layout: str) -> None:
    movielens(tmp_path / "ml", layout)
    converted = convert_log("movielens", tmp_path / "ml", tmp_path / "log")
    expected = sorted((seconds, user, film, int(stars >= 4)) for user, film, stars, seconds in ratings())
    found = table(converted, "impressions")
    assert [(r["served_at"].timestamp(), r["user_id"], r["post_id"], r["liked"]) for r in found] == expected
    names = ("post_id", "author_id", "title", "year", "topic", "genre")
    films = [
        (1, 1, TITLES[0][0], 1995, TITLES[0][1], "Animation"),
        (2, 2, TITLES[1][0], 2001, TITLES[1][1], "Comedy"),
        (3, 3, "Odd", None, None, None),
    ]
    assert table(converted, "posts") == [dict(zip(names, film, strict=True)) for film in films]
    assert "users" not in converted.rows if layout == "csv" else converted.rows["users"] == 12
    assert_a_job_takes_it(converted, tmp_path)


# What can be wrong.


def test_every_format_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in FORMATS:
        with pytest.raises((DataError, MissingStage), match=r"empty(/schema.json)?: (no such file|no file|found n)"):
            convert_log(name, tmp_path / "empty", tmp_path / "log")
        with pytest.raises(DataError, match=r"gone: no such file or folder, allowed is "):
            convert_log(name, tmp_path / "gone", tmp_path / "log")
    with pytest.raises(DataError, match=r"found the format 'mind', allowed are kuairand"):
        convert_log("mind", tmp_path / "empty", tmp_path / "log")
    with pytest.raises(DataError, match=r"the data set itself"):
        convert_log("movielens", tmp_path / "empty", tmp_path / "empty")


def test_a_line_that_is_not_of_the_format_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    movielens(tmp_path / "ml", "dat")
    path = tmp_path / "ml" / "ratings.dat"
    lines = path.read_text().splitlines()
    for broken, said in (("1::2::3", "Expected Number of Columns: 4 Found: 3"), ("1::x::3::4", 'column "post_id"')):
        path.write_text("\n".join([*lines[:4], broken, *lines[5:]]))
        (tmp_path / "log").mkdir(exist_ok=True)
        (tmp_path / "log" / "log.yaml").touch()
        with pytest.raises(DataError) as error:
            convert_log("movielens", tmp_path / "ml", tmp_path / "log")
        assert str(error.value).startswith(f"{path}, line 5: ")
        assert said in str(error.value)
        assert "\n" not in str(error.value)
        assert [entry.name for entry in (tmp_path / "log").iterdir()] == ["log.yaml"]
        assert not list(tmp_path.glob(".*.partial"))


def test_tweets_without_their_engagements_or_ids(tmp_path: Path) -> None:
    path = tmp_path / "test.tsv"
    path.write_text("".join("\x01".join(list(tweet(n).values())[:20]) + "\n" for n in range(3)))
    with pytest.raises(DataError, match=r"test\.tsv, line 1: Expected Number of Columns: 24 Found: 20"):
        convert_log("recsys2020", path, tmp_path / "log")
    write_tweets(path, [tweet(0), tweet(1, tweet_id="")])
    with pytest.raises(DataError, match=r"test\.tsv: found 1 lines without tweet_id, allowed are none"):
        convert_log("recsys2020", path, tmp_path / "log")


def test_a_log_of_kuairand_without_its_columns(tmp_path: Path) -> None:
    rows = kuairand(tmp_path)
    write_csv(tmp_path / "log.csv", [{k: v for k, v in row.items() if k != "is_hate"} for row in rows])
    with pytest.raises(DataError, match=r"log\.csv: found no column is_hate"):
        convert_log("kuairand", tmp_path, tmp_path / "log")


def test_the_verb_says_what_it_wrote(tml: Any, tmp_path: Path) -> None:
    movielens(tmp_path / "ml", "csv")
    done = tml("data", "convert", "movielens", "ml", "log")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "impressions: 300 rows\nposts: 3 rows\nlog/log.yaml\n"
    assert "note: a rating is an impression" in done.stderr
    done = tml("data", "convert", "mind", "ml", "log")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_what_no_conversion_wrote_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    movielens(tmp_path / "home" / "ml", "csv")
    kept = tmp_path / "home" / "thesis.txt"
    kept.write_text("years of work")
    for out in (tmp_path / "home", tmp_path, kept, tmp_path / "home" / "ml"):
        with pytest.raises(DataError, match=r"^\S+: found "):
            convert_log("movielens", tmp_path / "home" / "ml", out)
    (tmp_path / "other").mkdir()
    kept.rename(tmp_path / "other" / "thesis.txt")
    with pytest.raises(DataError, match="in it, which would be lost"):
        convert_log("movielens", tmp_path / "home" / "ml", tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "years of work"
    for _ in range(2):
        convert_log("movielens", tmp_path / "home" / "ml", tmp_path / "log")
    # What a killed conversion left behind is no log and does not disturb the next.
    (tmp_path / ".killed.partial").mkdir()
    (tmp_path / ".killed.partial" / "posts.parquet").write_bytes(b"PAR1")
    convert_log("movielens", tmp_path / "home" / "ml", tmp_path / "killed")
    assert not (tmp_path / ".killed.partial").exists()


def test_a_header_of_kuairand_that_is_none(tmp_path: Path) -> None:
    write_csv(tmp_path / "log.csv", kuairand(tmp_path))
    (tmp_path / "video_features_basic_pure.csv").write_text('video_id,"tag\n1,2\n')
    with pytest.raises(DataError, match=r"video_features_basic_pure\.csv: not a readable CSV file"):
        convert_log("kuairand", tmp_path, tmp_path / "log")
