"""Decayed counts by their closed form; durations by what Python says they are."""

import itertools
from datetime import timedelta

import numpy as np
import pytest

from tml.core.config import load_config
from tml.core.errors import ConfigError
from tml.features.config import FeaturesConfig, duration
from tml.features.statistics import BLOCKS, block_start, decayed, weight

HOUR = 3_600_000_000


@pytest.mark.parametrize("half_life", [HOUR // 60, HOUR, 24 * HOUR])
def test_sums_of_weights_give_the_decayed_count(half_life: int) -> None:
    random = np.random.default_rng(0)
    now = 1_767_225_600_000_000 + random.integers(0, 10**13, 50)
    for moment in now:
        # Ages of every size, in blocks long past, too; one at the very start of a block.
        times = moment - (10 ** random.uniform(0, 14, 200)).astype(np.int64) - 1
        times[0] = block_start(moment, half_life)
        times = times[times < moment]
        weights = np.rint(weight(times, half_life)).astype(np.int64)
        ends = [moment, *(block_start(moment, half_life, back) for back in range(BLOCKS))]
        totals = [weights[times < end].sum() for end in ends]
        sums = [later - earlier for later, earlier in itertools.pairwise(totals)]
        exact = (0.5 ** ((moment - times) / half_life)).sum()
        assert decayed(sums, moment, half_life) == pytest.approx(exact, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("12h", timedelta(hours=12)),
        ("50d", timedelta(days=50)),
        ("2w", timedelta(weeks=2)),
    ],
)
def test_durations(text: str, length: timedelta) -> None:
    assert duration(text) == length


@pytest.mark.parametrize("wrong", ["3", "d", "1.5d", "0d", "3y", "-3d", "ever", "99999999w"])
def test_a_wrong_duration_is_one_sentence(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"windows\.1: found .*allowed is a whole number of seconds, .* or all"):
        load_config(FeaturesConfig, None, [f'windows=[3d, "{wrong}"]'])
    with pytest.raises(ConfigError, match=r"half_lives\.0: found .*allowed is a whole number of seconds"):
        load_config(FeaturesConfig, None, [f'half_lives=["{wrong}"]'])
