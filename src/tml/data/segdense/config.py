"""Configs of published data, under their published field names; an alternative that is not used may be null.

Names of features may be those of the records or, where `renamed_features` gives another, the new ones.
"""

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from tml.core.config import BaseConfig, UtcDatetime, one_of
from tml.data.tfrecord import OnError


def _iso(value: Any) -> Any:
    """`2022/10/01`, `2022/10/01/05` and `2022-10-01 05` as ISO text."""
    match = re.fullmatch(r"(\d{4})[-/](\d\d)[-/](\d\d)(?:[-/ T](\d\d))?", value) if isinstance(value, str) else None
    if match is None:
        return datetime(value.year, value.month, value.day, tzinfo=UTC) if type(value) is date else value
    return f"{match[1]}-{match[2]}-{match[3]}" + (f"T{match[4]}:00" if match[4] else "")


def _day(value: Any) -> Any:
    return value if type(value) is date else _iso(value)


Day = Annotated[date, BeforeValidator(_day)]
Hour = Annotated[UtcDatetime, BeforeValidator(_iso)]


class ExplicitDateInputs(BaseConfig):
    """A folder a day below a root: `ROOT/2022/10/01/…`. Two of the three fields of the span are given.

    Attributes:
        start_date, end_date: the first and the last day, both read.
        days: how many days.
        num_missing_days_tol: days that may have no folder, or an empty one.
    """

    data_root: Path
    start_date: Day | None = None
    end_date: Day | None = None
    days: PositiveInt | None = None
    num_missing_days_tol: NonNegativeInt = 0

    @model_validator(mode="after")
    def _is_a_span(self) -> Self:
        given = {name: getattr(self, name) for name in ("start_date", "end_date", "days")}
        found = [name for name, value in given.items() if value is not None]
        if len(found) != 2:
            raise ValueError(f"two of start_date, end_date and days are allowed, found {', '.join(found) or 'none'}")
        if self.start_date and self.end_date and self.end_date < self.start_date:
            raise ValueError(f"end_date {self.end_date} is before start_date {self.start_date}")
        try:
            self.span()
        except OverflowError:
            raise ValueError(f"days: found {self.days}, a span that leaves the years 1 to 9999") from None
        return self

    def span(self) -> tuple[date, date]:
        """The first and the last day."""
        more = timedelta(days=(self.days or 1) - 1)
        last = self.end_date or (self.start_date or date.max) + more
        return self.start_date or last - more, last


class ExplicitDatetimeInputs(BaseConfig):
    """A folder an hour below a root: `ROOT/2022/10/01/05/…`, UTC.

    Attributes:
        start_datetime, end_datetime: the first and the last hour, both read.
        num_missing_hours_tol: hours that may have no folder, or an empty one.
    """

    data_root: Path
    start_datetime: Hour
    end_datetime: Hour
    num_missing_hours_tol: NonNegativeInt = 0

    @model_validator(mode="after")
    def _is_a_span_of_hours(self) -> Self:
        for name in ("start_datetime", "end_datetime"):
            value = getattr(self, name)
            if value != value.replace(minute=0, second=0, microsecond=0):
                raise ValueError(f"{name}: found {value.isoformat()}, allowed are whole hours")
        if self.end_datetime < self.start_datetime:
            raise ValueError(f"end_datetime {self.end_datetime} is before start_datetime {self.start_datetime}")
        return self


class InputsConfig(BaseConfig):
    """Where the files are: a glob, or folders by day or by hour."""

    inputs: str | None = one_of("inputs")
    explicit_date_inputs: ExplicitDateInputs | None = one_of("inputs")
    explicit_datetime_inputs: ExplicitDatetimeInputs | None = one_of("inputs")


class SegdenseSchemaConfig(BaseConfig):
    """What is in the records and what is read of it.

    Attributes:
        schema_path: the JSON file that names every feature.
        features: what to read; null reads every feature but those of bytes, which no tensor holds.
        renamed_features: the name in a batch → the name in the records.
        mask_mantissa_features: feature → how many of the 23 low bits of its floats' mantissas are set to zero, so that
            what less precise numbers would cost can be seen.
    """

    schema_path: Path
    features: tuple[str, ...] | None = None
    renamed_features: dict[str, str] = Field(default_factory=dict)
    mask_mantissa_features: dict[str, Annotated[int, Field(ge=0, le=23)]] = Field(default_factory=dict)


class TruncateAndSlice(BaseConfig):
    """Which elements of the vectors `continuous` and `binary` are kept.

    Attributes:
        continuous_feature_truncation, binary_feature_truncation: keep so many of the first.
        continuous_feature_mask_path, binary_feature_mask_path: a `.npy` file of booleans, one an element, or of the
            positions to keep, in their order.
    """

    continuous_feature_truncation: PositiveInt | None = None
    binary_feature_truncation: PositiveInt | None = None
    continuous_feature_mask_path: Path | None = None
    binary_feature_mask_path: Path | None = None

    @model_validator(mode="after")
    def _one_way_a_vector(self) -> Self:
        for vector in ("continuous", "binary"):
            names = (f"{vector}_feature_truncation", f"{vector}_feature_mask_path")
            if all(getattr(self, name) is not None for name in names):
                raise ValueError(f"one of {' and '.join(names)} is allowed, found both")
        return self


class Downcast(BaseConfig):
    """Smaller types for features.

    Floats may become narrower floats; a finite one that is too large for float16 becomes the largest there is, since
    an infinite one would later count as 0. Integers may become anything that holds them; one that is out of range is
    refused.
    """

    features: dict[str, Literal["bfloat16", "float16", "float32", "bool", "uint8", "int8", "int16", "int32"]]


class RectifyLabels(BaseConfig):
    """A label counts only if impression and engagement followed serving within a window; else it becomes 0.

    Times are integers in milliseconds, features of the records; one that is missing, and so 0, is out of the window.
    Both ends of the window count.
    """

    label_rectification_window_in_minutes: PositiveFloat
    served_timestamp_field: str
    impressed_timestamp_field: str
    label_to_engaged_timestamp_field: dict[str, str]


class ExtractFeature(BaseConfig):
    """One element of a vector as a feature of its own, (rows, 1).

    Attributes:
        name: of the new feature; `target` is taken, too.
        source_tensor: the vector.
        index: the element's position in the vector of the records, before slicing; `source_index` is taken, too.
            The release does not say which vector is meant; this one does not change its meaning with a mask.
    """

    name: str = Field(validation_alias=AliasChoices("name", "target"))
    source_tensor: str
    index: NonNegativeInt = Field(validation_alias=AliasChoices("index", "source_index"))


class ExtractFeatures(BaseConfig):
    """Elements of vectors as features of their own, before the vectors lose precision."""

    extract_feature_table: tuple[ExtractFeature, ...]


class DownsampleNegatives(BaseConfig):
    """Batches with more positives: read `batch_multiplier` batches, keep all rows with a positive label, fill up.

    The rest of the batch is a random sample of the negatives. Where the positives alone are more than a batch, they
    are sampled, too.

    Attributes:
        batch_multiplier: how many times the rows of a batch are read for one batch.
        engagements_list: the labels of which one positive keeps the row.
        num_engagements: the number of labels in all; labels are found by name here, so it is only checked.
    """

    batch_multiplier: PositiveInt
    engagements_list: tuple[str, ...] = Field(min_length=1)
    num_engagements: PositiveInt | None = None


class PreprocessConfig(BaseConfig):
    """What is done to the records on their way to a batch."""

    truncate_and_slice: TruncateAndSlice | None = None
    downcast: Downcast | None = None
    rectify_labels: RectifyLabels | None = None
    extract_features: ExtractFeatures | None = None
    downsample_negatives: DownsampleNegatives | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_list_is_a_table(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("extract_features"), list | tuple):
            return {**values, "extract_features": {"extract_feature_table": values["extract_features"]}}
        return values


class SegdenseConfig(InputsConfig):
    """One published data set: files, what they hold, and what is made of it.

    Attributes:
        num_files_to_keep: read only so many of the first files.
        examples_shuffle_buffer_size: rows in memory that are shuffled together; 0 shuffles only the files.
        on_error: `skip` passes over damaged records and files and counts them.
    """

    seg_dense_schema: SegdenseSchemaConfig
    preprocess: PreprocessConfig = PreprocessConfig()
    num_files_to_keep: PositiveInt | None = None
    examples_shuffle_buffer_size: NonNegativeInt = 0
    on_error: OnError = "stop"
