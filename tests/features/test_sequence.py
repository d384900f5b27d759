"""What a viewer was shown last: against a slow reference on random logs, and the same bytes when serving."""

from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from pydantic import ValidationError

from features import logs
from features.logs import START, rows, with_anchors, write_log
from tml.core.errors import DataError
from tml.data.config import LogConfig, TaskConfig
from tml.data.examples import SEQUENCE, Schema, vector_values
from tml.data.id_numbers import NO_ID, id_numbers
from tml.data.log import open_log
from tml.data.shards import read_part
from tml.features.build import build_examples
from tml.features.config import FeaturesConfig, SequenceConfig, SplitConfig
from tml.features.serving import open_features

TASKS = {"is_like": TaskConfig(engagement="like"), "is_reply": TaskConfig(engagement="reply")}
LENGTH = 4
FEATURES = FeaturesConfig(keys=[["post_id"]], windows=("3h",), sequence=SequenceConfig(length=LENGTH), chunk_rows=7)
SPLIT = SplitConfig(train_start=0.0, validation_start=(START + timedelta(hours=19)).replace(tzinfo=UTC))


def build(config: LogConfig, out: Path) -> tuple[Schema, pa.Table]:
    with open_log(config) as log:
        schema = build_examples(log, TASKS, FEATURES, SPLIT, out, seed=0, fingerprint="")
    return schema, pa.concat_tables([*read_part(out, "train"), *read_part(out, "validation")])


def expected(example: dict[str, Any], tables: dict[str, Any]) -> tuple[list[int], list[int], list[float]]:
    user, now = example["user_id"], example["served_at"]

    def bits(post: int) -> int:
        engaged = [
            e["type"]
            for e in tables["engagements"]
            if (e["user_id"], e["post_id"]) == (user, post) and e["engaged_at"] < now
        ]
        engaged += [h["type"] for h in tables["history"] if (h["user_id"], h["post_id"]) == (user, post)]
        return ("like" in engaged) + 2 * ("reply" in engaged)

    shown = [i for i in tables["impressions"] if i["user_id"] == user and i["served_at"] < now]
    shown.sort(key=lambda i: (i["served_at"], i["post_id"]), reverse=True)
    found = [(i["post_id"], bits(i["post_id"]), (now - i["served_at"]).total_seconds()) for i in shown]
    history: dict[int, set[str]] = {}
    for h in tables["history"]:
        if h["user_id"] == user:
            history.setdefault(h["post_id"], set()).add(h["type"])
    for post in sorted(history, key=lambda p: (-len(history[p] - {"impression"}), p)):
        found.append((post, bits(post), -1.0))
    found = (found + [(NO_ID, 0, -1.0)] * LENGTH)[:LENGTH]
    return tuple(map(list, zip(*found, strict=True)))  # type: ignore[return-value]


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(logs.impressions, logs.engagements, logs.histories)
def test_every_sequence_is_what_the_slow_reference_says(
    tmp_path_factory: pytest.TempPathFactory, served: Any, engaged: Any, before: Any
) -> None:
    tables = {**with_anchors(served, engaged), "history": rows(logs.BEFORE, before)}
    folder = tmp_path_factory.mktemp("log")
    schema, table = build(write_log(folder / "log", tables), folder / "examples")
    assert schema.sequence == {"length": LENGTH, "engagements": ["like", "reply"]}
    columns = [vector_values(table[name]) for name in SEQUENCE]
    for row, example in enumerate(table.select(["user_id", "served_at"]).to_pylist()):
        posts, outcomes, ages = (column[row].tolist() for column in columns)
        assert (posts, outcomes, ages) == expected(example, tables), example


def test_a_request_gets_the_bytes_of_the_examples_and_a_new_viewer_has_no_past(tmp_path: Path) -> None:
    served = [(u, p, START + timedelta(minutes=7 * (u + 3 * p))) for u in logs.USERS for p in logs.POSTS]
    tables = {**with_anchors(served, []), "history": rows(logs.BEFORE, [(1, 2, "like"), (2, 2, "impression")])}
    config = write_log(tmp_path / "log", tables)
    schema, table = build(config, tmp_path / "examples")
    names = ["user_id", "post_id", "served_at", "position"]
    with open_log(config) as log, open_features(log, schema) as features:
        computed = features.compute(table.select(names)).sequence
        for name in SEQUENCE:
            assert computed[name].tobytes() == np.ascontiguousarray(vector_values(table[name])).tobytes()
        stranger = pa.table({"user_id": [99], "post_id": [1], "served_at": table["served_at"][:1], "position": [0]})
        nobody = features.compute(stranger).sequence
        assert (nobody["sequence_posts"] == NO_ID).all()
        assert (nobody["sequence_outcomes"] == 0).all()


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="sequence: found one with engine spark"):
        FeaturesConfig(sequence=SequenceConfig(), engine="spark")
    config = write_log(tmp_path / "log", with_anchors([(0, 1, START)], []))
    features = FEATURES.model_copy(update={"sequence": SequenceConfig(engagements=("bought",))})
    with open_log(config) as log, pytest.raises(DataError, match="found 'bought', which never occurs"):
        build_examples(log, TASKS, features, SPLIT, tmp_path / "examples", seed=0, fingerprint="")


def test_ids_are_numbers_that_are_the_same_everywhere() -> None:
    assert id_numbers(pa.array([3, None, -5], pa.int32()), "x").tolist() == [3, NO_ID, -5]
    text = id_numbers(pa.chunked_array([["a", None], ["b", "a"]]), "x")
    assert text[0] == text[3] != text[2]
    assert text[1] == NO_ID
    with pytest.raises(DataError, match="x: found ids of type double"):
        id_numbers(pa.array([1.5]), "x")
