"""A job: its config, and where in its folder each stage reads and writes."""

from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from tml.core.config import BaseConfig, one_of
from tml.data.config import LogConfig, TaskConfig, published_tasks
from tml.data.log import log_fingerprint
from tml.features.config import FeaturesConfig, SplitConfig
from tml.projects.home.recap.combine import combination_weights
from tml.projects.home.recap.evaluation_config import EvaluationConfig
from tml.projects.home.recap.train import RecapConfig
from tml.projects.twhin.config import TwhinConfig
from tml.simulator.config import SimulatorConfig


class RunConfig(BaseConfig):
    """The whole job. Exactly one of `log` (read it) and `simulator` (make one first) is set.

    Attributes:
        seed: of everything random.
        tasks: task → the engagement that it predicts; by default the ten published ones.
        weights: task → its weight in the score, where it is not to be the published one (1 for tasks without one).
        twhin: null goes without graph embeddings.
    """

    seed: int = Field(0, ge=0)
    log: LogConfig | None = one_of("source")
    simulator: SimulatorConfig | None = one_of("source")
    tasks: dict[str, TaskConfig] = Field(default_factory=published_tasks, min_length=1)
    features: FeaturesConfig = FeaturesConfig()
    split: SplitConfig = SplitConfig()
    twhin: TwhinConfig | None = TwhinConfig()
    recap: RecapConfig = RecapConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    weights: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _simulate_by_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("log") is None and values.get("simulator") is None:
            return {**values, "simulator": {}}
        return values

    @model_validator(mode="after")
    def _agree(self) -> Self:
        combination_weights(list(self.tasks), self.weights)
        return self


class Run:
    """A config and the folder that its stages read and write."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.log_folder = folder / "log"
        self.examples = folder / "examples"
        self.twhin = folder / "twhin"
        self.recap = folder / "recap"
        self.baselines = folder / "baselines" / "predictions.parquet"
        self.calibration = self.recap / "calibration.json"
        self.predictions = self.recap / "predictions.parquet"

    @property
    def log(self) -> LogConfig:
        """The log's config: the one given, or that of the simulated log."""
        return self.config.log or LogConfig(path=self.log_folder, truth="truth/probabilities.parquet")

    @cached_property
    def log_digest(self) -> str:
        """The digest of the log's content: every byte of it is read, so once a run."""
        return log_fingerprint(self.log)

    @property
    def embeddings(self) -> Path | None:
        """The folder of TwHIN's embeddings, if the job has TwHIN."""
        return self.twhin / "embeddings" if self.config.twhin else None
