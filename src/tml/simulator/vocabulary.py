"""The words of the simulated log: engagement types, languages, topics, media.

The engagement types are the published ten (the label's name less `recap.engagement.is_`).
"""

from tml.data.config import PUBLISHED_ENGAGEMENTS

ENGAGEMENT_TYPES = PUBLISHED_ENGAGEMENTS

LANGUAGES: tuple[str, ...] = ("en", "ja", "es", "pt", "ar", "fr", "tr", "id", "ko", "de", "hi", "th")

MEDIA: tuple[str, ...] = ("none", "image", "video")
VIDEO = MEDIA.index("video")

_TOPICS = (
    *("news", "football", "music", "politics", "films", "technology", "games", "cooking", "art", "science"),
    *("fashion", "travel", "basketball", "business", "books", "animals", "health", "photography", "humour", "weather"),
)


def topic_names(count: int) -> list[str]:
    """Names of topics; beyond the first 20 they are numbered.

    Example:
        >>> topic_names(22)[-3:]
        ['weather', 'topic 21', 'topic 22']
    """
    return [*_TOPICS[:count], *(f"topic {i + 1}" for i in range(len(_TOPICS), count))]
