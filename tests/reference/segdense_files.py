"""Small TFRecord files with features of every kind, whose rows are numbered."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tml.data.segdense import SegdenseConfig, write_schema
from tml.data.tf_example_columns import VARIABLE, Feature, Ragged
from tml.data.tf_example_write import write_tfrecords

FEATURES = (
    Feature("stored.continuous", "float_list", 6),
    Feature("stored.binary", "int64_list", 4),
    Feature("stored.discrete", "int64_list", 2),
    Feature("id", "int64_list", 1),
    Feature("like", "int64_list", 1),
    Feature("reply", "int64_list", 1),
    Feature("served", "int64_list", 1),
    Feature("seen", "int64_list", 1),
    Feature("liked_at", "int64_list", 1),
    Feature("words", "int64_list", VARIABLE),
    Feature("weights", "float_list", VARIABLE),
    Feature("text", "bytes_list", 1),
)
RENAMED = {name: f"stored.{name}" for name in ("continuous", "binary", "discrete")}
MINUTE = 60_000


def rows(numbers: Any) -> dict[str, Any]:
    """The rows of these numbers: a row depends on its number alone."""
    number = np.asarray(numbers)[:, None]
    served = 1_000_000 * MINUTE + number
    return {
        "stored.continuous": (number + np.arange(6) / 8).astype(np.float32),
        "stored.binary": number >> np.arange(4) & 1,
        "stored.discrete": number * [1, 100],
        "id": number,
        "like": (number % 5 == 0).astype(np.int64),
        "reply": (number % 7 == 0).astype(np.int64),
        "served": served,
        "seen": served + number % 4 * MINUTE,
        "liked_at": served + number % 6 * MINUTE,
        "words": Ragged(np.repeat(number[:, 0], number[:, 0] % 3), np.concatenate([[0], np.cumsum(number % 3)])),
        "weights": Ragged(np.repeat(number[:, 0] / 4, number[:, 0] % 2), np.concatenate([[0], np.cumsum(number % 2)])),
        "text": np.array([[b"text"]] * len(number), object),
    }


def write_files(folder: Path, counts: list[int], compression: Any = "gzip") -> dict[str, Any]:
    """Files of so many rows each, numbered through; what a config says of them."""
    write_schema(folder / "schema.json", FEATURES)
    bounds = np.cumsum([0, *counts])
    for file, (start, end) in enumerate(pairwise(bounds.tolist())):
        write_tfrecords(
            folder / f"part-{file}.gz", [rows(range(start, end))] if end > start else [], FEATURES, compression
        )
    schema = {"schema_path": folder / "schema.json", "renamed_features": RENAMED}
    return {"inputs": str(folder / "part-*"), "seg_dense_schema": schema}


def config(tree: dict[str, Any], **more: Any) -> SegdenseConfig:
    """The config of a tree of values, with some more of them."""
    return SegdenseConfig.model_validate({**tree, **more})
