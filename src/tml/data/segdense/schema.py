"""The schema file of published data: JSON that names every feature, its kind and its length."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from tml.core.errors import ConfigError, DataError
from tml.core.files import read_json, write_json
from tml.data.tf_example_columns import VARIABLE, Dtype, Feature
from tml.data.tfrecord import LARGEST_RECORD


def read_schema(path: Path) -> tuple[Feature, ...]:
    """Read a schema: `{"schema": [{"dtype": …, "feature_name": …, "length": …}, …]}`.

    Raises:
        DataError: there is no such file, or it is no schema.
    """
    try:
        tree = read_json(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, allowed is the JSON schema of TFRecords") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error})") from None
    entries = tree.get("schema") if isinstance(tree, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f'{path}: not a schema, allowed is {{"schema": [{{"dtype", "feature_name", "length"}}, …]}}')
    features = tuple(_feature(entry, f"{path}: schema.{number}") for number, entry in enumerate(entries))
    names = [feature.name for feature in features]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{path}: the feature {twice!r} twice")
    return features


def write_schema(path: Path, features: Sequence[Feature]) -> None:
    """Write a schema file."""
    write_json(path, {"schema": [{"dtype": f.dtype, "feature_name": f.name, "length": f.length} for f in features]})


def _feature(entry: Any, where: str) -> Feature:
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    name, dtype, length = (fields.get(field) for field in ("feature_name", "dtype", "length"))
    # JSON may have half a surrogate pair, which no record can.
    if not isinstance(name, str) or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise DataError(f"{where}.feature_name: found {name!r}, allowed is the name of a feature")
    if dtype not in get_args(Dtype):
        raise DataError(f"{where}.dtype: found {dtype!r} for {name}, allowed are {', '.join(get_args(Dtype))}")
    if type(length) is not int or not (1 <= length <= LARGEST_RECORD or length == VARIABLE):
        allowed = f"allowed are 1 to {LARGEST_RECORD:,}, and -1 for variable"
        raise DataError(f"{where}.length: found {length!r} for {name}, {allowed}")
    return Feature(name, cast(Dtype, dtype), length)


class FeatureNames:
    """The features of a schema by their name in the records or by the new name that a config gives them.

    Args:
        schema: the features.
        renamed: new name → name in the records.

    Raises:
        ConfigError: a name in the records that the schema lacks, a feature with two new names, or a new name that
            another feature has.
    """

    def __init__(self, schema: Sequence[Feature], renamed: Mapping[str, str]) -> None:
        self.schema = {feature.name: feature for feature in schema}
        self._stored = dict(renamed)
        self._shown = {stored: name for name, stored in renamed.items()}
        for name, stored in renamed.items():
            field = f"renamed_features.{name}"
            if stored not in self.schema:
                raise self._unknown(stored, [*self.schema], field)
            if self._shown[stored] != name:
                raise ConfigError(f"{field}: found {stored!r}, which {self._shown[stored]!r} is already a name of")
            if name in self.schema and name not in self._shown:
                raise ConfigError(f"{field}: found {stored!r}, but the schema has another feature {name!r}")

    def find(self, name: str, field: str) -> Feature:
        """The feature of a name; `field` says in an error where the name stands."""
        stored = self._stored.get(name, name)
        if stored not in self.schema:
            raise self._unknown(name, [*self._stored, *self.schema], field)
        return self.schema[stored]

    def _unknown(self, name: str, names: Sequence[str], field: str) -> ConfigError:
        close = difflib.get_close_matches(name, names, n=1) or names[:1]
        return ConfigError(f"{field}: found {name!r}, which is not in the schema of {len(names)} names as {close[0]!r}")

    def shown(self, feature: Feature) -> str:
        """The name of a feature in a batch."""
        return self._shown.get(feature.name, feature.name)
