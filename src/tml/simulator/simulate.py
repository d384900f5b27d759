"""Simulate a network and write its log, and the truth behind it.

    OUT/impressions.parquet  engagements.parquet  posts.parquet  users.parquet  follows.parquet    the canonical log
    OUT/truth/probabilities.parquet    impression_id and the true probability of each label
    OUT/truth/users.parquet  posts.parquet  topics.parquet    what is latent
    OUT/truth/model.json               intercepts and coefficients of the engagement model

The truth is for evaluation and research; nothing that learns may read it.
"""

from pathlib import Path

import numpy as np

from tml.core.errors import ConfigError
from tml.core.files import require_replaceable, whole_folder
from tml.core.progress import progress
from tml.simulator.calibration import calibrate
from tml.simulator.config import SimulatorConfig
from tml.simulator.engagement import marginal_probabilities
from tml.simulator.log import collect_log, write_log
from tml.simulator.truth import write_truth
from tml.simulator.world import Hour, draw_world, run_hours


def simulate(config: SimulatorConfig, out: Path, seed: int) -> None:
    """Simulate a log and write it as the folder `out`, whole or not at all; an earlier simulation is replaced.

    Args:
        config: size and shape of the network.
        out: the folder to write.
        seed: a number from 0; the same config and seed give the same bytes.

    Raises:
        ConfigError: a negative seed.
        DataError: a folder with anything else in it than an earlier simulation.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "log"
        >>> simulate(SimulatorConfig(users=20, posts=200, days=2), folder, seed=1)
        >>> sorted(path.name for path in folder.iterdir())
        ['engagements.parquet', 'follows.parquet', 'impressions.parquet', 'posts.parquet', 'truth', 'users.parquet']
    """
    if seed < 0:
        raise ConfigError(f"seed: found {seed}, allowed are whole numbers from 0")
    require_replaceable(out, ["*.parquet", "truth"], ["truth/model.json"])
    for_world, for_pilot, for_hours = np.random.SeedSequence(seed).spawn(3)
    world = draw_world(config, for_world)
    intercepts = calibrate(world, for_pilot)
    hours: list[Hour] = []
    probabilities = []
    with progress("simulate", total=24 * config.days, unit="hours") as bar:
        for hour in run_hours(world, intercepts, np.random.default_rng(for_hours)):
            hours.append(hour)
            truth = marginal_probabilities(hour.scores + intercepts, hour.video)
            probabilities.append(truth.astype(np.float32))
            bar.advance()
    log = collect_log(hours)
    with whole_folder(out) as folder:
        write_log(folder, world, log)
        write_truth(folder / "truth", world, np.concatenate(probabilities)[log.order], intercepts)
