"""What a feature config leaves open is taken from the log; what it gets wrong is one sentence."""

from pathlib import Path
from typing import Any

import pytest

from features import logs
from features.logs import rows, with_anchors, write_log
from tml.core.errors import DataError
from tml.data.config import LogConfig, TaskConfig
from tml.data.log import open_log
from tml.features.aggregates import Aggregates
from tml.features.config import AggregateConfig, FeaturesConfig
from tml.features.resolve import resolve_features

TASKS = {"is_like": TaskConfig(engagement="like"), "is_reply": TaskConfig(engagement="reply")}


@pytest.fixture
def small(tmp_path: Path) -> LogConfig:
    return write_log(tmp_path / "log", with_anchors([], []))


def resolved(config: LogConfig, **fields: Any) -> FeaturesConfig:
    with open_log(config) as log:
        return resolve_features(log, TASKS, FeaturesConfig(**fields))


def names(config: FeaturesConfig) -> list[str]:
    return Aggregates.of(config.aggregates or (), config.smoothing).names


def test_the_default_set_is_the_published_windows(small: LogConfig) -> None:
    found = names(resolved(small))
    keys = {name.split(".")[0] for name in found}
    assert keys == {"user", "author", "post", "user_author", "topic", "user_topic"}
    assert [name for name in found if name.startswith("topic.")] == [
        *(
            f"topic.{kind}.count.{window}"
            for window in ("30m", "3d", "50d")
            for kind in ("impression", "like", "reply")
        ),
        *(f"topic.{kind}.rate.50d" for kind in ("like", "reply")),
    ]
    assert len(found) == len(set(found)) == 6 * 11


def test_a_history_adds_the_window_that_it_falls_in_and_follows_their_features(tmp_path: Path) -> None:
    tables = with_anchors([], []) | {"history": rows(logs.BEFORE, [(0, 0, "like")]), "follows": []}
    config = resolved(write_log(tmp_path / "log", tables))
    assert "user.like.rate.all" in names(config)
    assert config.graph == ("follows_author", "mutual_follow", "common_follows")


def test_a_resolved_config_resolves_to_itself(small: LogConfig) -> None:
    config = resolved(small, statistics=["since", "count"], keys=[["user_id"]], continuous=["posts.length"])
    assert names(config) == [
        *(f"user.{kind}.count.{window}" for window in ("30m", "3d", "50d") for kind in ("impression", "like", "reply")),
        *(f"user.{kind}.since.all" for kind in ("impression", "like", "reply")),
    ]
    again = FeaturesConfig.model_validate(config.model_dump(mode="json"))
    assert resolved(small, **again.model_dump()) == config


def test_what_blocks_name_twice_is_there_once(small: LogConfig) -> None:
    block = AggregateConfig(keys=(("topic",),), windows=("1h",), statistics=("count",), engagements=("impression",))
    config = resolved(small, aggregates=[block, block, block.model_copy(update={"engagements": ("reply",)})])
    assert names(config) == ["topic.impression.count.1h", "topic.reply.count.1h"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keys": [["user_id", "colour"]]}, r"features\.keys: unknown column 'colour', found are user_id, post_id"),
        ({"keys": [["posts.colour"]]}, r"features\.keys: unknown column 'posts\.colour'.*also as posts\.COLUMN"),
        (
            {"engagements": ["like", "love"]},
            r"features\.engagements: found 'love'.*never occurs.*types are like, reply",
        ),
        ({"graph": ["mutual_follow"]}, r"features\.graph: found mutual_follow with a log that has no table follows"),
        ({"ages": ["posts.length"]}, r"features\.ages: found 'posts\.length', which is not a time in every row"),
        (
            {"continuous": ["posts.topic"]},
            r"features\.continuous: found 'posts\.topic', which is not a number in every",
        ),
        (
            {"discrete": ["posts.colour"]},
            r"features\.discrete: unknown column 'posts\.colour', found are impressions\.",
        ),
    ],
)
def test_what_the_log_does_not_have_is_one_sentence(small: LogConfig, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        resolved(small, **fields)


def test_a_key_of_what_became_of_an_impression_is_refused(tmp_path: Path) -> None:
    tables = with_anchors([], [])
    tables["impressions"] = [{**row, "like": 1.0} for row in tables["impressions"]]
    config = write_log(tmp_path / "log", tables)
    for name in ("like", "impressions.like"):
        with pytest.raises(DataError, match=rf"features\.keys: found '{name}', which is known only after"):
            resolved(config, keys=[["user_id", name]])


def test_keys_whose_features_would_have_the_same_names_are_refused(tmp_path: Path) -> None:
    post = {"post_id": 0, "author_id": 0, "user_author": 1.0}
    config = write_log(tmp_path / "log", with_anchors([], []) | {"posts": [post]})
    message = r"features\.keys: found \[user_id, author_id\] and \[user_author\], whose .*same names, user_author\."
    with pytest.raises(DataError, match=message):
        resolved(config, keys=[["user_id", "author_id"], ["user_author"]])
    assert "user_author.like.count.3d" in names(resolved(config, keys=[["user_author"], ["user_id"]]))
