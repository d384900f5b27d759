"""By what the held-out examples are cut: the figures of a whole hide who is served badly.

author_size       how many training impressions the post's author has, in buckets of equally many examples
viewer_activity   how many training impressions the viewer has, in the same way
age               the post's age when it was served, in fixed steps
any other name    a column of the features: the values of a discrete or binary one, buckets of a continuous one
a stratifier      of the model's config: one value of a discrete column, or each

Buckets of numbers are cut at quantiles of the held-out values; equal values share a bucket, NaN and infinities have one
of their own. Discrete values beyond the `MOST_VALUES` commonest are put together.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tml.core.errors import ConfigError
from tml.data.examples import Schema, vector_values
from tml.data.shards import OnError, read_part
from tml.projects.home.recap.input_config import StratifierConfig

MOST_VALUES = 12
COUNTED = {"author_size": "author_id", "viewer_activity": "user_id"}
AGE = "age"
AGE_STEPS = ((3600, "under 1 h"), (6 * 3600, "1 to 6 h"), (86_400, "6 to 24 h"), (7 * 86_400, "1 to 7 d"))
OLDEST, UNKNOWN, OTHERS = "over 7 d", "unknown", "others"

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """The held-out examples cut by one thing.

    Attributes:
        name: by what.
        labels: the name of each bucket, in order.
        bucket: (examples,) which bucket an example is in; -1 for none.
    """

    name: str
    labels: tuple[str, ...]
    bucket: Indices


def segment_examples(
    examples: Path,
    names: Sequence[str],
    buckets: int,
    on_error: OnError = "stop",
    stratifiers: Sequence[StratifierConfig] = (),
) -> list[Segment]:
    """Cut the held-out examples of a dataset, in their order, by each name, then by each of a model's stratifiers.

    Raises:
        ConfigError: a name that is neither a column of the features nor one of the three known ones, or a stratifier
            without a discrete column.
    """
    schema = Schema.read(examples)
    columns = [stratified_column(stratifier, schema) for stratifier in stratifiers]
    values = _values(examples, schema, [*names, *columns], on_error)
    by_name = [_segment(schema, name, values[name], buckets) for name in names]
    return by_name + [
        _by_stratifier(schema, stratifier, column, values[column].astype(np.int64))
        for stratifier, column in zip(stratifiers, columns, strict=True)
    ]


def stratified_column(stratifier: StratifierConfig, schema: Schema) -> str:
    """The name of the discrete column that a stratifier cuts by.

    Raises:
        ConfigError: the dataset has no such column.
    """
    names = [column.name for column in schema.discrete]
    element = stratifier.index
    if element is None:
        if stratifier.feature in names:
            return str(stratifier.feature)
        vector, _, number = str(stratifier.feature).rpartition(".")
        element = int(number) if vector == "discrete" and number.isdecimal() else len(names)
    if element >= len(names):
        field, found = ("feature", stratifier.feature) if stratifier.index is None else ("index", stratifier.index)
        raise ConfigError(
            f"model.stratifiers.{stratifier.name}.{field}: found {found}, allowed are the discrete columns 0 to "
            f"{len(names) - 1}, {', '.join(names)}"
        )
    return names[element]


def _by_stratifier(schema: Schema, stratifier: StratifierConfig, column: str, values: Indices) -> Segment:
    words = dict(enumerate(schema.discrete[_place(schema, column)[1]].vocabulary, start=1))
    if stratifier.value is None:
        return _by_value(stratifier.name, values, words)
    label = words.get(stratifier.value, UNKNOWN)
    return Segment(stratifier.name, (label,), np.where(values == stratifier.value, 0, -1))


def _place(schema: Schema, name: str) -> tuple[str, int]:
    """The vector and the place in it of a column."""
    discrete = [column.name for column in schema.discrete]
    for vector, columns in (("discrete", discrete), ("binary", schema.binary), ("continuous", schema.continuous)):
        if name in columns:
            return vector, columns.index(name)
    known = [*COUNTED, AGE, *discrete, *schema.binary, *schema.continuous]
    shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more columns" if len(known) > 20 else "")
    raise ConfigError(f"evaluation.segments: found {name}, allowed are {shown}")


def _values(examples: Path, schema: Schema, names: Sequence[str], on_error: OnError) -> dict[str, npt.NDArray[Any]]:
    """The value of each held-out example, by name; one column of each vector is kept, not the vectors."""
    places = {name: _place(schema, name) for name in names if name not in COUNTED and name != AGE}
    columns = [vector for vector, _ in places.values()]
    columns += [COUNTED[name] for name in names if name in COUNTED]
    columns += ["created_at", "served_at"] if AGE in names else []
    if not columns:
        return {}
    counts = {name: _training_rows(examples, COUNTED[name], on_error) for name in names if name in COUNTED}
    found: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names}
    for table in read_part(examples, "validation", list(dict.fromkeys(columns)), on_error=on_error):
        for name, (vector, column) in places.items():
            found[name].append(vector_values(table[vector])[:, column].copy())
        for name, rows in counts.items():
            ids = table[COUNTED[name]].combine_chunks().dictionary_encode()
            of_id = np.array([rows.get(value, 0) for value in ids.dictionary.to_pylist()], np.float64)
            found[name].append(of_id[ids.indices.to_numpy()] if len(of_id) else of_id)
        if AGE in names:
            age = pc.microseconds_between(table["created_at"], table["served_at"]).cast(pa.float64())
            found[AGE].append(age.combine_chunks().to_numpy(zero_copy_only=False) / 1e6)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _training_rows(examples: Path, key: str, on_error: OnError) -> dict[Any, int]:
    rows: dict[Any, int] = {}
    for table in read_part(examples, "train", [key], on_error=on_error):
        for pair in table[key].combine_chunks().value_counts().to_pylist():
            rows[pair["values"]] = rows.get(pair["values"], 0) + pair["counts"]
    return rows


def _segment(schema: Schema, name: str, values: npt.NDArray[Any], buckets: int) -> Segment:
    if name == AGE:
        return _by_age(values)
    if name in COUNTED:
        return _by_quantile(name, values, buckets)
    vector, column = _place(schema, name)
    if vector == "continuous":
        return _by_quantile(name, values.astype(np.float64), buckets)
    if vector == "binary":
        return _by_value(name, values.astype(np.int64), {0: "no", 1: "yes"})
    words = schema.discrete[column].vocabulary
    return _by_value(name, values.astype(np.int64), {i + 1: word for i, word in enumerate(words)})


def _by_age(seconds: npt.NDArray[Any]) -> Segment:
    known = np.isfinite(seconds)
    labels = [label for _, label in AGE_STEPS] + [OLDEST, UNKNOWN]
    bucket = np.searchsorted([step for step, _ in AGE_STEPS], np.where(known, seconds, 0), side="right")
    return _named(AGE, labels, np.where(known, bucket, len(labels) - 1))


def _by_quantile(name: str, values: npt.NDArray[Any], buckets: int) -> Segment:
    known = np.isfinite(values)
    edges = np.unique(np.quantile(values[known], np.arange(1, buckets) / buckets)) if known.any() else np.zeros(0)
    bucket = np.searchsorted(edges, np.where(known, values, 0), side="left")
    ends = _distinct(edges)
    labels = [f"up to {end}" for end in ends[:1]]
    labels += [f"{low} to {high}" for low, high in itertools.pairwise(ends)]
    labels += [f"above {ends[-1]}" if ends else "all", UNKNOWN]
    return _named(name, labels, np.where(known, bucket, len(labels) - 1))


def _distinct(edges: npt.NDArray[np.float64]) -> list[str]:
    """Numbers in as few digits, from four on, as tell them apart."""
    for digits in range(4, 17):
        ends = [f"{edge:.{digits}g}" for edge in edges]
        if len(set(ends)) == len(ends):
            break
    return ends


def _by_value(name: str, values: Indices, words: Mapping[int, str]) -> Segment:
    found, counts = np.unique(values, return_counts=True)
    common = found[np.argsort(-counts, kind="stable")][:MOST_VALUES]
    # A word of the vocabulary may be one of these two, or be there twice.
    labels = _told_apart([words.get(int(value), UNKNOWN) for value in common] + [OTHERS])
    place = {int(value): number for number, value in enumerate(common)}
    return _named(name, labels, np.array([place.get(int(value), len(common)) for value in values], np.int64))


def _told_apart(labels: Sequence[str]) -> list[str]:
    """Labels of which a second of the same name gets a number."""
    seen: Counter[str] = Counter()
    found = []
    for label in labels:
        seen[label] += 1
        found.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return found


def _named(name: str, labels: Sequence[str], bucket: Indices) -> Segment:
    """Only the buckets that have examples."""
    used, bucket = np.unique(bucket, return_inverse=True)
    return Segment(name, tuple(labels[i] for i in used), bucket.astype(np.int64))
