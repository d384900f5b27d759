"""What a viewer was shown last, before an impression: the posts, what became of them, and how long ago.

    SELECT post_id, engagements of the viewer with the post before now, now - served_at
    FROM impressions s WHERE s.user_id = i.user_id AND s.served_at < i.served_at
    ORDER BY s.served_at DESC, s.row DESC LIMIT length

Where that are fewer, posts of the log's history follow: those engaged with in more ways first, and by id among equals,
since the history has no times. Bit e of an outcome is engagement e: whether the viewer had engaged so with the post
strictly before now, be it after this impression of it or another.

All of the log's are kept once, sorted by viewer and time; the sequence of an impression is a slice of them, found by
one search.
"""

from collections.abc import Sequence

import numpy as np

from tml.data.examples import SEQUENCE
from tml.data.id_numbers import NO_ID, id_numbers
from tml.data.log import IMPRESSION, Log
from tml.data.tables import literal
from tml.features.config import SequenceConfig
from tml.features.lines import Array

_NEVER = np.iinfo(np.int64).max
_BEFORE_THE_LOG = 0


class ShownBefore:
    """The sequences of a log.

    Args:
        log: the open log.
        config: with the engagements said.
        viewer: SQL of the viewer's number, over an alias `u` of `user_side`.
    """

    def __init__(self, log: Log, config: SequenceConfig, viewer: str) -> None:
        self.length, self.engagements = config.length, config.engagements or ()
        table = log.connection.sql(_select(log, self.engagements, viewer)).to_arrow_table()
        happened = table["happened_at"].to_numpy()
        self._times = np.unique(happened)
        self._happened = happened
        self._posts = id_numbers(table["post_id"], "post_id")
        self._first = [table[f"first{number}"].to_numpy() for number in range(len(self.engagements))]
        self._places = table["viewer"].to_numpy() * self._stride + np.searchsorted(self._times, happened)

    @property
    def _stride(self) -> int:
        return len(self._times) + 1

    def columns(self, viewers: Array, now: Array) -> dict[str, Array]:
        """The sequences of some impressions, by the name of the column.

        Args:
            viewers: (rows,) the number of each one's viewer, -1 for one that the log does not know.
            now: (rows,) microseconds.

        Returns:
            (rows, length) each.
        """
        start = viewers * self._stride
        end = np.searchsorted(self._places, start + np.searchsorted(self._times, now))
        start = np.searchsorted(self._places, start)
        place = end[:, None] - 1 - np.arange(self.length)
        there = (place >= start[:, None]) & (viewers >= 0)[:, None]
        if not len(self._places):
            return _empty(there.shape)
        place = np.where(there, place, 0)
        outcome = np.zeros(place.shape, np.int32)
        for bit, first in enumerate(self._first):
            outcome |= (first[place] < now[:, None]).astype(np.int32) << bit
        happened = self._happened[place]
        age = np.where(happened == _BEFORE_THE_LOG, -1.0, (now[:, None] - happened) / 1e6)
        values = (
            np.where(there, self._posts[place], NO_ID),
            np.where(there, outcome, 0).astype(np.int32),
            np.where(there, age, -1.0).astype(np.float32),
        )
        return dict(zip(SEQUENCE, values, strict=True))


def _empty(shape: tuple[int, ...]) -> dict[str, Array]:
    values = (np.full(shape, NO_ID), np.zeros(shape, np.int32), np.full(shape, -1.0, np.float32))
    return dict(zip(SEQUENCE, values, strict=True))


def _select(log: Log, engagements: Sequence[str], viewer: str) -> str:
    """SQL of all that anyone was shown, in the order of viewer and time.

    Columns: viewer, happened_at in microseconds, post_id, and for each engagement the first time of it.
    """
    engaged = "SELECT user_id, post_id, type, epoch_us(engaged_at) AS engaged FROM engagements"
    shown = "SELECT user_id, post_id, epoch_us(served_at) AS happened_at, row AS place FROM impressions"
    if log.has("history"):
        engaged += f" UNION ALL SELECT user_id, post_id, type, {_BEFORE_THE_LOG} FROM history"
        # The latest of a viewer stands last.
        shown += (
            f" UNION ALL SELECT user_id, post_id, {_BEFORE_THE_LOG}, row_number() OVER "
            f"(ORDER BY count(DISTINCT type) FILTER (type <> {literal(IMPRESSION)}), post_id DESC) "
            "FROM history GROUP BY user_id, post_id"
        )
    firsts = "".join(
        f", coalesce(min(engaged) FILTER (type = {literal(name)}), {_NEVER}) AS first{number}"
        for number, name in enumerate(engagements)
    )
    columns = "".join(f", coalesce(first{number}, {_NEVER}) AS first{number}" for number in range(len(engagements)))
    return (
        f"SELECT {viewer} AS viewer, happened_at, post_id{columns} FROM ({shown}) s "
        f"LEFT JOIN (SELECT user_id, post_id{firsts} FROM ({engaged}) GROUP BY ALL) e USING (user_id, post_id) "
        "JOIN user_side u USING (user_id) ORDER BY viewer, happened_at, place"
    )
