"""From published records to the ranker's batches: what is read, how wide it is, how tasks were sampled.

Of the records only what the model reads is parsed: the vectors `continuous` and `binary`, every renamed vector of
floats as an embedding, and what else the model's config names. A set's probabilities are corrected for sampling once,
to the rates of that set: where training kept the share r of a task's negatives and the set the share s, by r/s.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tml.core.distributed import gathered, ranks
from tml.core.errors import ConfigError
from tml.data.examples import VECTORS
from tml.data.id_numbers import NO_ID
from tml.data.segdense import SegdenseReader, read_schema
from tml.data.segdense.columns import SegdenseColumns
from tml.data.segdense.schema import FeatureNames
from tml.projects.home.recap.calibration import sampling_ratio
from tml.projects.home.recap.conditions import labels_that_count
from tml.projects.home.recap.config import InputShapes, ModelConfig
from tml.projects.home.recap.model import HeavyRanker
from tml.projects.home.recap.published_config import PublishedConfig, PublishedData

STATISTICS_ROWS, STATISTICS_BATCH = 20_000, 1_000
"""Training rows from which base rates are taken, and, where the model needs them, means and deviations of features."""


class PublishedInputs:
    """What the model of a config reads of its data sets.

    Args:
        config: a published configuration.
        also: features of ids that are read beside, where the data has them.

    Raises:
        ConfigError: a feature that the model needs and the data lacks, or a validation set of another width.
        DataError: a schema or a mask that cannot be read.
    """

    def __init__(self, config: PublishedConfig, also: Sequence[str] = ()) -> None:
        assert config.model.tasks is not None
        self.also = tuple(also)
        self.config, self.model, self.tasks = config, config.model, tuple(config.model.tasks)
        self.widths = self._widths("train_data", config.train_data)
        for name, data in config.validation_data.items():
            found, field = self._widths(f"validation_data.{name}", data), f"validation_data.{name}"
            if found != self.widths:
                odd = next(feature for feature in self.widths if found.get(feature) != self.widths[feature])
                of_training = f"the {self.widths[odd]} of train_data"
                raise ConfigError(f"{field}: found {found.get(odd)} elements of {odd}, allowed are {of_training}")

    def shapes(self) -> InputShapes:
        """The widths of the inputs, and what else the model needs to know of the training data."""
        discrete = (1,) * self.widths.get("discrete", 0)
        mean, deviation = self._statistics() if self.model.featurization_config.z_score_log_config else ((), ())
        return InputShapes(
            continuous=self.widths["continuous"],
            binary=self.widths.get("binary", 0),
            discrete=_sizes(self.model, discrete),
            embeddings={name: self.widths[name] for name in self._embeddings(self.config.train_data)},
            tasks=self.tasks,
            log_mean=mean,
            log_deviation=deviation,
        )

    def reader(self, data: PublishedData, epochs: int | None = None) -> "PublishedReader":
        """The batches of this rank of a data set; epoch after epoch, where no number is given."""
        rank, world_size = ranks()
        rows = data.rows_a_rank(world_size)
        return self._as_batches(self._segdense(data, rows, rank, world_size, epochs))

    def whole_epoch(self) -> "PublishedReader":
        """All training rows once, alike on every rank."""
        return self._as_batches(self._segdense(self.config.train_data, STATISTICS_BATCH, epochs=1))

    def _as_batches(self, reader: SegdenseReader) -> "PublishedReader":
        large = self.model.large_embeddings
        return PublishedReader(reader, (*self.also, *(table.column for table in (large.tables if large else ()))))

    def _segdense(
        self, data: PublishedData, rows: int, rank: int = 0, world_size: int = 1, epochs: int | None = None
    ) -> SegdenseReader:
        schema = data.seg_dense_schema.model_copy(update={"features": tuple(self._features(data))})
        read = data.model_copy(update={"seg_dense_schema": schema})
        return SegdenseReader(read, self.tasks, rows, self.config.seed, rank, world_size, epochs)

    def _widths(self, field: str, data: PublishedData) -> dict[str, int]:
        schema = data.seg_dense_schema
        read = schema.model_copy(update={"features": tuple(self._features(data))})
        found = SegdenseColumns(_names(data), read, data.preprocess).widths
        for name in _needed(self.model):
            if name not in found:
                raise ConfigError(
                    f"{field}.seg_dense_schema: found no {name}, which the model reads; renamed_features can give a "
                    "feature this name"
                )
        return found

    def _features(self, data: PublishedData) -> list[str]:
        """What is read, by the names in a batch."""
        names, listed = _names(data), data.seg_dense_schema.features
        extracted = data.preprocess.extract_features
        made = {each.name for each in extracted.extract_feature_table} if extracted else set()
        wanted = [*_needed(self.model), "binary", *self._embeddings(data)]
        given = None if listed is None else {names.shown(names.find(name, "features")) for name in listed}
        known = {names.shown(feature) for feature in names.schema.values()}
        read = [name for name in dict.fromkeys(wanted) if name in known and name not in made]
        chosen = [name for name in read if given is None or name in given]
        return [*chosen, *(name for name in self.also if name in known and name not in chosen)]

    def _embeddings(self, data: PublishedData) -> list[str]:
        names = _names(data)
        found = []
        for name in data.seg_dense_schema.renamed_features:
            feature = names.find(name, f"renamed_features.{name}")
            is_read = data.seg_dense_schema.features is None or bool(
                {name, feature.name} & set(data.seg_dense_schema.features)
            )
            # VARIABLE is negative.
            if name not in VECTORS and feature.dtype == "float_list" and feature.length > 1 and is_read:
                found.append(name)
        return found

    def base_rates(self, model: HeavyRanker) -> dict[str, float]:
        """About the mean label of each task in training, never 0 or 1, the same on every rank.

        One example that is half positive is added, since few rows may have no positive of a rare task.
        """
        parts = [labels_that_count(model.conditions, batch) for batch in self._first_rows()]
        labels = {task: torch.cat([part[task] for part in parts]).double() for task in self.tasks}
        return {task: (float(y.nansum()) + 0.5) / (int(y.isfinite().sum()) + 1) for task, y in labels.items()}

    def _first_rows(self) -> Iterator[dict[str, Tensor]]:
        return itertools.islice(self.whole_epoch(), STATISTICS_ROWS // STATISTICS_BATCH)

    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The mean and the deviation of the continuous columns' signed logarithms, the same on every rank."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for batch in self._first_rows():
            x = torch.nan_to_num(batch["continuous"].double(), nan=0.0, posinf=0.0, neginf=0.0)
            logs = torch.copysign(torch.log1p(x.abs()), x)
            count, total, squares = count + len(x), total + logs.sum(dim=0), squares + logs.square().sum(dim=0)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        return tuple(mean.tolist()), tuple(deviation.tolist())


class PublishedReader:
    """The batches of a `SegdenseReader` as the ranker takes them; its position is the reader's.

    Floats are float32 again, whatever `downcast` made of them: it is there to see what less precision costs.

    Args:
        reader: of published data.
        ids: features that are ids, where the default 0 stands for none.
    """

    def __init__(self, reader: SegdenseReader, ids: Sequence[str] = ()) -> None:
        self.reader, self.ids = reader, frozenset(ids)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.reader:
            batch.setdefault("binary", torch.zeros(len(batch["continuous"]), 0))
            yield {name: self._input(name, values) for name, values in batch.items()}

    def _input(self, name: str, values: Tensor) -> Tensor:
        if name in VECTORS:
            return values.to(VECTORS[name])
        # A feature of one value is a column, a vector has two dimensions.
        column = values[:, 0] if values.shape[1:] == (1,) else values
        if name in self.ids:
            return torch.where(column == 0, NO_ID, column.long())
        return column.long() if name == "position" else column.float()

    def state_dict(self) -> dict[str, Any]:
        """The position behind the batch given last."""
        return self.reader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position."""
        self.reader.load_state_dict(state)


def sampling_ratios(data: PublishedData, reader: PublishedReader) -> dict[str, float]:
    """By task, how many times rarer negatives are in the batches than in the log; every rank must call it.

    It is what the data set says of itself (`tasks`) times what `downsample_negatives` did, as counted so far.
    """
    counted: dict[str, list[int]] = {}
    if data.preprocess.downsample_negatives is None:
        return {task: sampled.ratio for task, sampled in data.tasks.items()}
    for counts in gathered(reader.reader.sampling_counts):
        for task, values in counts.items():
            counted[task] = [a + b for a, b in zip(values, counted.get(task, [0] * 4), strict=True)]
    return {task: sampled.ratio * _measured(counted.get(task)) for task, sampled in data.tasks.items()}


def _measured(counts: list[int] | None) -> float:
    positives, negatives, positives_kept, negatives_kept = counts or [0] * 4
    if not positives_kept or not negatives_kept:
        return 1.0
    return sampling_ratio(positives_kept / positives, negatives_kept / negatives)


def _names(data: PublishedData) -> FeatureNames:
    schema = data.seg_dense_schema
    return FeatureNames(read_schema(schema.schema_path), schema.renamed_features)


def _needed(model: ModelConfig) -> list[str]:
    """The features that the model's config names, beside the binary ones and the embeddings."""
    needed = ["continuous"]
    debias = model.position_debias_config
    applies = [task.applies_if for task in (model.tasks or {}).values() if task.applies_if]
    by_index = debias is not None and debias.position_feature_index is not None
    if model.small_embeddings or model.stratifiers or by_index or any(each.startswith("discrete") for each in applies):
        needed.append("discrete")
    if debias is not None and not by_index:
        needed.append("position")
    if model.large_embeddings:
        needed += [table.column for table in model.large_embeddings.tables]
    return list(dict.fromkeys(needed))


def _sizes(model: ModelConfig, unknown: tuple[int, ...]) -> tuple[int, ...]:
    """The number of values of each discrete column: published data does not say it, so the config must."""
    if model.small_embeddings is None:
        return unknown
    sizes = list(unknown)
    for number, table in enumerate(model.small_embeddings.tables or ()):
        if table.num_embeddings is None or table.index >= len(sizes):
            found = f"index {table.index} of {len(sizes)} elements" if table.num_embeddings else "no num_embeddings"
            raise ConfigError(
                f"model.small_embeddings.tables.{number}: found {found}, needed are an element of the discrete vector "
                "and the number of its values, which published data does not say"
            )
        sizes[table.index] = table.num_embeddings
    if not model.small_embeddings.tables:
        raise ConfigError(
            "model.small_embeddings.tables: not given, needed is a list of elements of the discrete vector, each with "
            "the number of its values, which published data does not say"
        )
    return tuple(sizes)
