"""The published configuration of a training, section by section, under its published field names.

    training         how long, when to evaluate and to save, and where
    model            as in a job of this package, see `config`
    train_data       published TFRecords, see `data.segdense.config`, with tasks and their sampling
    validation_data  name → the same, for each set that is evaluated
    optimizer        a rate for every tower and for the backbone, see `optimizer.config`

The tasks of the four must be the same, in any order: labels, towers and rates are found by name. A validation set may
be evaluated on some of them only (`evaluation_tasks`).

`num_train_steps` counts steps of the optimizer: with `gradient_accumulation` each reads so many batches.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from tml.core.config import BaseConfig, load_config
from tml.core.errors import ConfigError
from tml.core.precision import Precision
from tml.core.training import TrainingConfig
from tml.data.segdense.config import SegdenseConfig
from tml.projects.home.recap.calibration import sampling_ratio
from tml.projects.home.recap.config import ModelConfig
from tml.projects.home.recap.optimizer import RecapOptimizerConfig


class PublishedTraining(BaseConfig):
    """How long to train, what to do on the way, and where to write; counts are in steps of the optimizer.

    Attributes:
        num_train_steps: in all; a resumed training goes on to this number.
        num_eval_steps: batches of a validation set in one evaluation, of each rank; null or a negative number reads
            all of it.
        checkpoint_every_n: and after the last step.
        checkpoint_max_to_keep: the newest so many checkpoints; null keeps all.
        train_log_every_n: how often losses and rates are logged.
        eval_log_every_n: how often every validation set is evaluated and logged; and after the last step.
        eval_timeout_in_s: an evaluation of one set stops after so many seconds and is of what it has read by then.
        save_dir: the run folder.
        initial_checkpoint_dir: where a new training takes its first weights from: a run folder, or a folder with
            checkpoints. Steps, rates and the optimizer begin anew.
        gradient_accumulation: batches a step, whose gradients are averaged.
        precision: `float32`, `bfloat16` beside float32 weights, or `auto`: whichever is faster; not in the release.
    """

    num_train_steps: PositiveInt = 10_000
    num_eval_steps: int | None = None
    checkpoint_every_n: PositiveInt = 1_000
    checkpoint_max_to_keep: PositiveInt | None = None
    train_log_every_n: PositiveInt = 1_000
    eval_log_every_n: PositiveInt = 5_000
    eval_timeout_in_s: PositiveFloat | None = None
    save_dir: Path | None = None
    initial_checkpoint_dir: Path | None = None
    gradient_accumulation: PositiveInt = 1
    precision: Precision = "auto"

    @field_validator("num_eval_steps")
    @classmethod
    def _some_or_all(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("allowed are 1 and more, and null or a negative number for all")
        return None if value is None or value < 0 else value

    def loop(self) -> TrainingConfig:
        """The same for the training loop."""
        return TrainingConfig(
            num_steps=self.num_train_steps,
            log_every=self.train_log_every_n,
            evaluate_every=self.eval_log_every_n,
            checkpoint_every=self.checkpoint_every_n,
            checkpoints_to_keep=self.checkpoint_max_to_keep,
            accumulate_batches=self.gradient_accumulation,
            precision=self.precision,
        )


class SampledTask(BaseConfig):
    """The shares of its positives and negatives that are in the data: what probabilities are corrected for."""

    pos_downsampling_rate: float = Field(1.0, gt=0, le=1)
    neg_downsampling_rate: float = Field(1.0, gt=0, le=1)

    @property
    def ratio(self) -> float:
        """How many times rarer negatives are than in the log."""
        return sampling_ratio(self.pos_downsampling_rate, self.neg_downsampling_rate)


class TensorflowKnobs(BaseConfig):
    """Settings of `tf.data` and of TensorFlow's data service, which nothing here depends on."""

    cache: Any = None
    compression: Any = None
    data_service_dispatcher: Any = None
    dataset_service_compression: Any = None
    deterministic: Any = None
    drop_remainder: Any = None
    file_batch_size: Any = None
    interleave_block_length: Any = None
    interleave_cycle_length: Any = None
    interleave_num_parallel_calls: Any = None
    map_num_parallel_calls: Any = None
    num_parallel_reads: Any = None
    options: Any = None
    prefetch_buffer_size: Any = None
    repeat_files: Any = None
    sampler: Any = None

    @property
    def without_effect(self) -> list[str]:
        """Those that are set."""
        return [name for name in TensorflowKnobs.model_fields if getattr(self, name) is not None]


class PublishedData(TensorflowKnobs, SegdenseConfig):
    """One published data set and what is predicted of it.

    Attributes:
        global_batch_size: rows a batch, over all ranks.
        tasks: the labels, and how each was sampled.
        evaluation_tasks: those that are evaluated; null or an empty list means all.
    """

    global_batch_size: PositiveInt
    tasks: dict[str, SampledTask] = Field(min_length=1)
    evaluation_tasks: tuple[str, ...] | None = None

    @field_validator("tasks", mode="before")
    @classmethod
    def _nothing_said_is_not_sampled(cls, value: Any) -> Any:
        return {name: task or {} for name, task in value.items()} if isinstance(value, dict) else value

    @field_validator("seg_dense_schema", mode="before")
    @classmethod
    def _no_features_are_all(cls, value: Any) -> Any:
        return {**value, "features": value.get("features") or None} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _evaluates_its_own_tasks(self) -> Self:
        unknown = [name for name in self.evaluation_tasks or () if name not in self.tasks]
        if unknown:
            raise ValueError(f"evaluation_tasks: found {', '.join(unknown)}, allowed are {', '.join(self.tasks)}")
        return self

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The tasks that are evaluated."""
        return self.evaluation_tasks or tuple(self.tasks)

    def rows_a_rank(self, world_size: int) -> int:
        """Rows a batch of each rank.

        Raises:
            ConfigError: the ranks cannot share a batch evenly.
        """
        rows, rest = divmod(self.global_batch_size, world_size)
        if rest:
            raise ConfigError(
                f"global_batch_size: found {self.global_batch_size}, allowed are multiples of the {world_size} ranks"
            )
        return rows


class PublishedConfig(BaseConfig):
    """A published configuration, and beside it only the `seed` of everything random.

    Attributes:
        which_metrics, mode: published fields without effect: all metrics are always there, and the command says what
            is done.
    """

    seed: int = Field(0, ge=0)
    training: PublishedTraining
    model: ModelConfig
    train_data: PublishedData
    validation_data: dict[str, PublishedData] = Field(default_factory=dict)
    optimizer: RecapOptimizerConfig
    which_metrics: Any = None
    mode: Any = None

    @field_validator("model", mode="before")
    @classmethod
    def _left_out_is_null(cls, value: Any) -> Any:
        # A job of this package embeds discrete columns by default; published files leave them out.
        return {"small_embeddings": None, **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _tasks_agree(self) -> Self:
        if self.model.tasks is None:
            raise ValueError("model.tasks: not given, but required")
        towers = self.optimizer.multi_task_learning_rates
        others: dict[str, Mapping[str, Any]] = {"train_data.tasks": self.train_data.tasks}
        others |= {f"validation_data.{name}.tasks": data.tasks for name, data in self.validation_data.items()}
        if towers is not None:
            others["optimizer.multi_task_learning_rates.tower_learning_rates"] = towers.tower_learning_rates
        differences = []
        for field, tasks in others.items():
            more = [task for task in tasks if task not in self.model.tasks]
            less = [task for task in self.model.tasks if task not in tasks]
            differences += [f"{field} has {', '.join(more)} more than model.tasks"] if more else []
            differences += [f"{field} lacks {', '.join(less)} of model.tasks"] if less else []
        if differences:
            raise ValueError(f"{'; '.join(differences)}; allowed are the same tasks in all of them, in any order")
        return self

    def without_effect(self) -> list[str]:
        """The settings that are given and that nothing depends on, each once."""
        names = [name for name in ("which_metrics", "mode") if getattr(self, name) is not None]
        for data in (self.train_data, *self.validation_data.values()):
            names += data.without_effect
        return list(dict.fromkeys(names))


class _Sections(BaseConfig):
    """The sections that a job of this package has none of."""

    model_config = ConfigDict(extra="ignore")

    training: Any = None
    train_data: Any = None
    validation_data: Any = None


def is_published(path: Path | None) -> bool:
    """Whether a config file is a published configuration and no job of this package.

    Raises:
        ConfigError: it cannot be read.
    """
    return path is not None and bool(load_config(_Sections, path).model_fields_set)
