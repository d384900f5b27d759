"""The policy that chose what was shown: followed, popular and explored posts, interleaved by their shares.

Each source ranks its candidates for a session: followed accounts' posts by age with noise, popular ones in the order
in which they are drawn in proportion to their engagement so far, explored ones at random. The candidate of rank r
(from 0) of a source with share s gets the key (r + u)/s with u uniform in (0, 1); the posts with the smallest keys are
shown in that order. So sources take turns by their shares, and one that runs dry is replaced by the others.
Nobody is shown a post twice, which leaves no doubt about the impression that an engagement belongs to.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tml.simulator.clock import HOUR
from tml.simulator.config import SimulatorConfig
from tml.simulator.network import FollowGraph
from tml.simulator.population import Population
from tml.simulator.posts import Posts
from tml.simulator.sampling import Floats, Integers, draw_in_rows, expand
from tml.simulator.sessions import Sessions

WINDOW = 48 * HOUR
"""Older posts are not shown."""
POPULARITY_DECAY_HOURS = 18.0
FOREIGN_POPULAR = 0.05
"""Weight of a popular post in a language other than the viewer's."""


@dataclass(frozen=True)
class Candidates:
    """Posts for sessions (by their index in the hour): proposed, or chosen; the smaller the key, the earlier shown."""

    session: Integers
    post: Integers
    key: Floats


class Feed:
    """Serves sessions, hour after hour in order of time, and remembers who saw what."""

    def __init__(self, config: SimulatorConfig, population: Population, graph: FollowGraph, posts: Posts) -> None:
        self.mix = config.feed
        self.population, self.graph, self.posts = population, graph, posts
        self.languages = config.languages
        self.seen = np.zeros(0, dtype=np.int64)  # sorted, user · number of posts + post
        by_author = np.lexsort((np.arange(len(posts.author)), posts.author))
        self.author_post = posts.author[by_author] * len(posts.author) + by_author  # sorted

    def serve(self, sessions: Sessions, hour_start: int, engagement: Floats, rng: np.random.Generator) -> Candidates:
        """Choose what each session shows.

        Args:
            sessions: those of the hour.
            hour_start: its beginning; popularity is as of then.
            engagement: (posts,), how much engagement each post had before `hour_start`.

        Returns:
            what is shown, sorted by session and position; at most `sessions.size` posts each, less where there is
            nothing more to show.
        """
        created = self.posts.created_at
        oldest = np.searchsorted(created, sessions.start - WINDOW)
        newest = np.searchsorted(created, sessions.start)
        parts = [self._explored(sessions, oldest, newest, rng)]
        if self.mix.followed > 0:
            parts.append(self._followed(sessions, oldest, newest, rng))
        if self.mix.popular > 0:
            parts.append(self._popular(sessions, hour_start, engagement, rng))
        session, post, key = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("session", "post", "key")
        )
        pair = sessions.user[session] * len(created) + post
        order = np.lexsort((key, pair))
        first = np.ones(len(order), dtype=np.bool_)
        first[1:] = pair[order[1:]] != pair[order[:-1]]
        kept = order[first & ~self._was_seen(pair[order])]
        shown = _first_of_each(session[kept], key[kept], sessions.size)
        kept = kept[shown]
        self._remember(pair[kept], int(np.searchsorted(created, hour_start - WINDOW)))
        return Candidates(session[kept], post[kept], key[kept])

    def _followed(self, sessions: Sessions, oldest: Integers, newest: Integers, rng: np.random.Generator) -> Candidates:
        first = self.graph.first
        session, place = expand(first[sessions.user + 1] - first[sessions.user])
        edge = first[sessions.user[session]] + place
        session, edge = (x[self.graph.followed_at[edge] < sessions.start[session]] for x in (session, edge))
        author, count = self.graph.followed[edge], len(self.posts.author)
        low = np.searchsorted(self.author_post, author * count + oldest[session])
        high = np.searchsorted(self.author_post, author * count + newest[session])
        owner, place = expand(high - low)
        session = session[owner]
        post = self.author_post[low[owner] + place] % count
        new = ~self._was_seen(sessions.user[session] * count + post)
        session, post = session[new], post[new]
        age = (sessions.start[session] - self.posts.created_at[post]) * rng.lognormal(0, 1.0, len(post))
        order = np.lexsort((age, session))
        session, post = session[order], post[order]
        rank = np.arange(len(order)) - np.searchsorted(session, session)
        return Candidates(session, post, (rank + rng.random(len(rank))) / self.mix.followed)

    def _popular(self, sessions: Sessions, hour_start: int, engagement: Floats, rng: np.random.Generator) -> Candidates:
        low, high = np.searchsorted(self.posts.created_at, [hour_start - WINDOW, hour_start])
        if low == high or not len(sessions.user):
            return _none()
        age = (hour_start - self.posts.created_at[low:high]) / HOUR
        weight = (engagement[low:high] + 0.5) * np.exp(-age / POPULARITY_DECAY_HOURS)
        same = self.posts.language[low:high][None, :] == np.arange(self.languages)[:, None]
        session, rank = expand(sessions.size)
        language = self.population.language[sessions.user[session]]
        post = low + draw_in_rows(weight * np.where(same, 1.0, FOREIGN_POPULAR), language, rng)
        return Candidates(session, post, (rank + rng.random(len(rank))) / self.mix.popular)

    def _explored(self, sessions: Sessions, oldest: Integers, newest: Integers, rng: np.random.Generator) -> Candidates:
        session, rank = expand(np.where(newest > oldest, sessions.size, 0))
        low, high = oldest[session], newest[session]
        post = low + (rng.random(len(session)) * (high - low)).astype(np.int64)
        return Candidates(session, post, (rank + rng.random(len(rank))) / self.mix.explored)

    def _was_seen(self, pair: Integers) -> NDArray[np.bool_]:
        if not len(self.seen):
            return np.zeros(len(pair), dtype=np.bool_)
        nearest = self.seen[np.minimum(np.searchsorted(self.seen, pair), len(self.seen) - 1)]
        seen: NDArray[np.bool_] = nearest == pair
        return seen

    def _remember(self, pair: Integers, oldest: int) -> None:
        recent = self.seen[self.seen % len(self.posts.author) >= oldest]
        self.seen = np.sort(np.concatenate([recent, pair]), kind="stable")


def _first_of_each(session: Integers, key: Floats, size: Integers) -> Integers:
    """Indices, sorted by session and key, of the `size[s]` smallest keys of each session s."""
    order = np.lexsort((key, session))
    session = session[order]
    position = np.arange(len(order)) - np.searchsorted(session, session)
    return order[position < size[session]]


def _none() -> Candidates:
    nothing = np.zeros(0, dtype=np.int64)
    return Candidates(nothing, nothing, np.zeros(0))
