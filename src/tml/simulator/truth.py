"""What is true behind a simulated log, for evaluation and research.

The probability of a label is marginal: given the latent state of viewer, author and post, and all that was observable
when the post was shown, but not the other labels of the impression.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tml.core.files import write_json
from tml.simulator.engagement import COEFFICIENTS, GOOD_CLICK_OF_ENGAGED
from tml.simulator.log import write_table
from tml.simulator.population import Population
from tml.simulator.posts import Posts
from tml.simulator.sampling import Floats
from tml.simulator.vocabulary import ENGAGEMENT_TYPES, LANGUAGES, MEDIA, topic_names
from tml.simulator.world import World


def write_truth(folder: Path, world: World, probabilities: NDArray[np.float32], intercepts: Floats) -> None:
    """Write the truth tables.

    Args:
        folder: made here.
        probabilities: (impressions, types), of each label, in the order of the impressions' ids.
        intercepts: (types,), of the engagement model.
    """
    folder.mkdir()
    columns = {kind: probabilities[:, k] for k, kind in enumerate(ENGAGEMENT_TYPES)}
    write_table({"impression_id": np.arange(len(probabilities)), **columns}, folder / "probabilities.parquet")
    write_table(_users(world.population), folder / "users.parquet")
    write_table(_posts(world.posts), folder / "posts.parquet")
    topics = {
        "topic": topic_names(world.config.topics),
        "half_life_hours": world.population.topic_half_life_hours,
    }
    write_table(topics, folder / "topics.parquet")
    model = {
        "intercepts": dict(zip(ENGAGEMENT_TYPES, intercepts.tolist(), strict=True)),
        "coefficients": {
            driver: dict(zip(ENGAGEMENT_TYPES, weights, strict=True)) for driver, weights in COEFFICIENTS.items()
        },
        "good_click_of_engaged": GOOD_CLICK_OF_ENGAGED,
    }
    write_json(folder / "model.json", model)


def _users(population: Population) -> dict[str, pa.Array | NDArray[np.generic]]:
    interests = population.interests.astype(np.float32)
    return {
        "user_id": np.arange(len(interests)),
        "second_language": pa.array(LANGUAGES).take(pa.array(population.second_language)),
        "sessions_per_day": population.sessions_per_day,
        "chronotype_hours": population.chronotype_hours,
        "interests": pa.FixedSizeListArray.from_arrays(pa.array(interests.ravel()), interests.shape[1]),
        "propensity": population.propensity,
        **{f"propensity_{kind}": population.kind_propensity[:, k] for k, kind in enumerate(ENGAGEMENT_TYPES)},
        **{f"preference_{media}": population.media_preference[:, m] for m, media in enumerate(MEDIA)},
        "is_author": population.is_author,
        "quality": population.quality,
        "popularity": population.popularity,
        "posting_rate": population.posting_rate,
        "conversational": population.conversational,
        "responsiveness": population.responsiveness,
        "video_share": population.video_share,
    }


def _posts(posts: Posts) -> dict[str, pa.Array | NDArray[np.generic]]:
    return {"post_id": np.arange(len(posts.quality)), "quality": posts.quality}
