"""Numeric calibration: from what a model says of a down-sampled log to what holds of the whole one.

Where a positive is kept with rate r₊ and a negative with rate r₋, the odds of a kept example are r₊/r₋ times the odds
in the log. With r = r₋/r₊ a model's probability p becomes

    q = p·r / (1 - p + r·p),   that is   logit(q) = logit(p) + log(r).

The correction is made once, here, from logits to probabilities: its output is no input to it. The loss knows nothing of
sampling; weighting examples by 1/rate in the loss would correct for the same thing, so the two are never combined.
"""

import math

import torch
from torch import Tensor

from tml.core.errors import ConfigError


def sampling_ratio(positive_rate: float, negative_rate: float) -> float:
    """The ratio r of a task whose positives and negatives were kept with these rates.

    Raises:
        ConfigError: when a rate is not above 0 and at most 1.

    Example:
        >>> sampling_ratio(positive_rate=1.0, negative_rate=0.25)
        0.25
    """
    for name, rate in (("pos_downsampling_rate", positive_rate), ("neg_downsampling_rate", negative_rate)):
        if not 0 < rate <= 1:
            raise ConfigError(f"{name}: found {rate}, allowed is above 0 and at most 1")
    return negative_rate / positive_rate


def calibrated_probabilities(logits: Tensor, ratio: float) -> Tensor:
    """Probabilities in the log that was sampled from, of the shape of `logits`.

    Args:
        logits: what the model gives, trained on the sample.
        ratio: `sampling_ratio` of the task; 1 where nothing was sampled.

    Example:
        >>> calibrated_probabilities(torch.tensor(0.0), ratio=0.25)
        tensor(0.2000)
    """
    return torch.sigmoid(logits + math.log(ratio))
