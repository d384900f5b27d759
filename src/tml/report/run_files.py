"""What the report reads: the files of a run folder, and nothing else. Only `evaluation.json` must be there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tml.core.curves import read_metrics
from tml.core.errors import DataError, MissingStage
from tml.core.files import read_json

Metrics = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RunFiles:
    """The content of a run folder.

    Attributes:
        folder: where it is.
        evaluation: `evaluation.json`.
        config: `config.yaml` as text; None if it is not there, as for all that follow.
        schema: `examples/schema.json`; empty if it is not there.
        recap_metrics, twhin_metrics: the lines of `metrics.jsonl`; empty if there are none.
        predictions: `recap/predictions.parquet`.
        timelines: `timelines.parquet`.
    """

    folder: Path
    evaluation: dict[str, Any]
    config: str | None
    schema: dict[str, Any]
    recap_metrics: Metrics
    twhin_metrics: Metrics
    predictions: pa.Table | None
    timelines: pa.Table | None

    @classmethod
    def read(cls, run: Path) -> Self:
        """Read a run folder.

        Raises:
            MissingStage: there is no `evaluation.json`.
            DataError: a file that is not what its name says.
        """
        evaluation, config, schema = run / "evaluation.json", run / "config.yaml", run / "examples" / "schema.json"
        if not evaluation.is_file():
            raise MissingStage(
                f"{evaluation}: no such file, needed for the report; `tml recap evaluate` makes it, "
                "or `tml run` does the whole job"
            )
        return cls(
            folder=run,
            evaluation=_json(evaluation),
            config=_config(config),
            schema=_json(schema) if schema.is_file() else {},
            recap_metrics=_metrics(run / "recap" / "metrics.jsonl"),
            twhin_metrics=_metrics(run / "twhin" / "metrics.jsonl"),
            predictions=_table(run / "recap" / "predictions.parquet"),
            timelines=_table(run / "timelines.parquet"),
        )

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order of the evaluation."""
        return list(self.evaluation["tasks"])

    def setting(self, *path: str) -> Any:
        """A value of the config by its path; None where there is no such field."""
        value: Any = yaml.safe_load(self.config) if self.config else None
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value


def _config(path: Path) -> str | None:
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    try:
        yaml.safe_load(text)
    except yaml.YAMLError:
        raise DataError(f"{path}: not a YAML file") from None
    return text


def _json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except ValueError as error:
        raise DataError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: found a {type(value).__name__}, allowed is a JSON object")
    return value


def _metrics(path: Path) -> Metrics:
    try:
        return read_metrics(path)
    except ValueError as error:
        raise DataError(f"{path}: not a file of JSON lines ({error})") from None


def _table(path: Path) -> pa.Table | None:
    if not path.is_file():
        return None
    try:
        return pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({error})") from None
