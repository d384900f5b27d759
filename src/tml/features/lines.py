"""The time lines of a key: how much had happened to each of its values strictly before a moment.

A key (a user and an author, say) has a time line for each pair that occurs. All of them lie one after the other in one
sorted array of *places*, one an event:

    place = number of the value · number of instants + number of the instant

where instants are the distinct times of the log. How much had happened to a value before a moment is then one search
for the place of that moment: what lies left of it are the events before, ties left out. Running totals along the array
give how many were of which kind. Totals run on from one value to the next, since only differences are ever used.

Kind 0 is an impression, the others are engagements. These are few, so that only they have rows of running totals; the
impressions are the rest. The arrays are files mapped into memory: about 8 + 4 + 4 · kinds · engagements/events bytes
an event.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tml.features.statistics import weight

Array = np.ndarray[Any, Any]


class Folder:
    """Makes arrays that are files: the system keeps in memory what is in use."""

    def __init__(self, path: Path) -> None:
        self.path, self._made = path, 0

    def array(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A new array of zeros."""
        if 0 in shape:
            return np.zeros(shape, dtype)
        self._made += 1
        path = self.path / f"{self._made}.npy"
        array = np.asarray(np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape))
        # Mapped, it stays without its name; so that not even a killed process leaves it behind.
        path.unlink()
        return array


class Instants:
    """The distinct times at which anything happened, sorted, in microseconds since 1970."""

    def __init__(self, folder: Folder, batches: Iterable[pa.RecordBatch], events: int) -> None:
        """Take the `happened_at` of all events, in order."""
        times, filled = folder.array((events,), np.int64), 0
        for batch in batches:
            sorted_times = batch["happened_at"].to_numpy()
            new = np.concatenate([[not filled or sorted_times[0] != times[filled - 1]], np.diff(sorted_times) != 0])
            found = sorted_times[new]
            times[filled : filled + len(found)] = found
            filled += len(found)
        self.times = times[:filled]

    def __len__(self) -> int:
        return len(self.times)

    def before(self, times: Array) -> Array:
        """How many instants lie strictly before each of some times."""
        return np.searchsorted(self.times, times)


@dataclass(frozen=True)
class Found:
    """Rows whose key was looked up: the number of each one's value, and whether it occurs at all."""

    value: Array
    known: Array


class Line:
    """The time lines of one key.

    Args:
        folder: makes the arrays.
        batches: `pack` (the key's value as one number), `instant` and `kind` of every event, sorted by the first two.
        counts: how many events there are of each kind.
        instants: the log's.
        half_lives: of decayed counts, in microseconds; without any no sums of weights are kept.
        moments: whether to keep the times of each kind's events, as `last` needs them.
    """

    def __init__(
        self,
        folder: Folder,
        batches: Iterable[pa.RecordBatch],
        counts: Sequence[int],
        instants: Instants,
        half_lives: Sequence[int],
        moments: bool,
    ) -> None:
        events, engagements = sum(counts), sum(counts[1:])
        number = np.int32 if events < 2**31 else np.int64
        self.instants = instants
        self.places = folder.array((events,), np.int64)
        self.engaged = folder.array((events + 1,), number)
        self.rows = folder.array((engagements + 1, len(counts) - 1), number)
        self.packs, self.starts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(counts)])
        times = folder.array((events,), np.int64) if moments or half_lives else None
        self._fill(batches, times)
        self.moments = times if moments else None
        self.sums = {half_life: self._sums(folder, times, half_life) for half_life in half_lives}

    def _fill(self, batches: Iterable[pa.RecordBatch], times: Array | None) -> None:
        filled, engaged = 0, 0
        of_kind = self._offsets[:-1].copy()
        packs: list[Array] = []
        starts: list[Array] = []
        last: int | None = None
        for batch in batches:
            pack, instant, kind = (batch[name].to_numpy() for name in ("pack", "instant", "kind"))
            opens = np.concatenate([[last is None or pack[0] != last], pack[1:] != pack[:-1]])
            values = sum(len(found) for found in packs)
            packs.append(pack[opens])
            starts.append(np.flatnonzero(opens) + filled)
            last = pack[-1]
            here = slice(filled, filled + len(pack))
            self.places[here] = (np.cumsum(opens) - 1 + values) * len(self.instants) + instant
            is_engagement = kind > 0
            self.engaged[1:][here] = np.cumsum(is_engagement) + engaged
            new = np.zeros((int(is_engagement.sum()), self.rows.shape[1]), self.rows.dtype)
            new[np.arange(len(new)), kind[is_engagement] - 1] = 1
            np.cumsum(new, axis=0, out=new)
            self.rows[engaged + 1 : engaged + 1 + len(new)] = new + self.rows[engaged]
            if times is not None:
                for k in range(len(of_kind)):
                    found = self.instants.times[instant[kind == k]]
                    times[of_kind[k] : of_kind[k] + len(found)] = found
                    of_kind[k] += len(found)
            filled, engaged = filled + len(pack), engaged + len(new)
        if packs:
            self.packs, self.starts = np.concatenate(packs), np.concatenate(starts)

    def _sums(self, folder: Folder, times: Array | None, half_life: int) -> Array:
        """Running totals of weights, kind after kind, each from a 0 of its own."""
        assert times is not None
        sums = folder.array((len(times) + len(self._offsets) - 1,), np.int64)
        for kind, (first, last) in enumerate(zip(self._offsets[:-1], self._offsets[1:], strict=True)):
            found = times[first:last]
            # What happened before the log has no time, and so no weight.
            weights = np.where(found > 0, np.rint(weight(found, half_life)), 0).astype(np.int64)
            np.cumsum(weights, out=sums[first + kind + 1 : last + kind + 1])
        return sums

    def find(self, pack: Array) -> Found:
        """Look up values of the key; -1 is a value that is not known."""
        value = np.searchsorted(self.packs, pack)
        inside = np.minimum(value, len(self.packs) - 1)
        known = self.packs[inside] == pack if len(self.packs) else np.zeros(len(pack), bool)
        return Found(value, known)

    def before(self, found: Found, instant: Array) -> Array:
        """Running totals before an instant: (rows, kinds)."""
        return self._totals(found, np.searchsorted(self.places, found.value * len(self.instants) + instant))

    def start(self, found: Found) -> Array:
        """Running totals before anything happened to the value: (rows, kinds)."""
        place = np.zeros(len(found.value), np.int64)
        place[found.known] = self.starts[found.value[found.known]]
        return self._totals(found, place)

    def _totals(self, found: Found, place: Array) -> Array:
        # All of the totals of an unknown value are those of place 0, so that every difference is 0.
        place = place * found.known
        engaged = self.engaged[place]
        totals = np.empty((len(place), self.rows.shape[1] + 1), self.rows.dtype)
        totals[:, 0] = place - engaged
        totals[:, 1:] = np.take(self.rows, engaged, axis=0)
        return totals

    def last(self, totals: Array, start: Array, kind: int) -> tuple[Array, Array]:
        """When the latest event of a kind was, in microseconds, and whether there was one with a time."""
        assert self.moments is not None
        place = self._offsets[kind] + totals[:, kind] - 1
        there = totals[:, kind] > start[:, kind]
        times = np.zeros(len(place), np.int64)
        times[there] = self.moments[place[there]]
        return times, times > 0

    def weights(self, totals: Array, half_life: int, kind: int) -> Array:
        """The running total of weights of a kind where its running count is that of `totals`."""
        weights: Array = self.sums[half_life][self._offsets[kind] + kind + totals[:, kind]]
        return weights
