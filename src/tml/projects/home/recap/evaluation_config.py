"""What the ranker is compared with, and how sure the comparison is to be."""

from typing import Literal

from pydantic import Field, PositiveInt

from tml.core.config import BaseConfig
from tml.projects.home.recap.boosting import LightGbmConfig


class EvaluationConfig(BaseConfig):
    """The evaluation of a run.

    Attributes:
        lightgbm: gradient boosted trees as a baseline; null leaves them out, as does a machine without LightGBM.
        segments: what to cut the held-out examples by: `author_size`, `viewer_activity`, `age`, or any column of the
            features.
        buckets: of equally many examples, for segments of a number.
        draws: of the bootstrap over viewers.
        confidence: of the intervals.
        calibration: a map from predicted to calibrated probabilities, fitted to the held-out examples of half of the
            viewers for those of the other half, and to all of them for later use; null leaves them as they are.
    """

    lightgbm: LightGbmConfig | None = LightGbmConfig()
    segments: tuple[str, ...] = ("author_size", "viewer_activity", "age")
    buckets: PositiveInt = 5
    draws: int = Field(400, ge=20)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    calibration: Literal["isotonic", "platt"] | None = None
