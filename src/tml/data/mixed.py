"""Several example datasets read as one, each batch from one of them, in proportion to weights.

Which one a batch comes from is a function of the seed and its number alone: of any 1,024 batches from a multiple of
1,024 on each dataset has its share, rounded to one of the two nearest whole numbers, in a random order. So all ranks
take a step's batches from the same dataset.
"""

import itertools
from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from tml.core.config import fingerprint
from tml.core.errors import DataError
from tml.data.reader import Batch, ExampleReader

BLOCK = 1024


class MixedReader(IterableDataset[Batch]):
    """Batches of several readers, without end, or to the end of the first of them that has one.

    Args:
        readers: by name; their batches must have the same tensors but for the number of rows.
        weights: of the same names, above 0; only their proportions matter.
        seed: decides which reader gives which batch.

    Raises:
        DataError: a reader without a weight, a weight without a reader or not above 0, or batches that differ.
    """

    def __init__(self, readers: Mapping[str, ExampleReader], weights: Mapping[str, float], seed: int) -> None:
        if not readers or readers.keys() != weights.keys():
            found, allowed = ", ".join(weights) or "none", ", ".join(readers) or "one or more"
            raise DataError(f"weights: found {found}, allowed is one for each of the readers, {allowed}")
        for name, weight in weights.items():
            if not 0 < weight < float("inf"):
                raise DataError(f"weights: found {weight} for {name}, allowed is a number above 0")
        self.readers, self.seed = dict(readers), seed
        heaviest = max(weights.values())  # so that no sum is infinite
        ends = np.cumsum([weights[name] / heaviest for name in readers])
        self._ends = ends / ends[-1]
        self._of = fingerprint(self._ends.tolist(), seed)
        self._batch = 0
        first, *others = ({n: (t.dtype, *t.shape[1:]) for n, t in r.empty_batch.items()} for r in readers.values())
        for name, other in zip(list(readers)[1:], others, strict=True):
            different = [key for key in {**first, **other} if first.get(key) != other.get(key)]
            if different:
                key = different[0]
                raise DataError(f"{name}: found {key} as {other.get(key)}, allowed is {first.get(key)} as before it")

    def state_dict(self) -> dict[str, Any]:
        """The position: the batches given, the position of each reader, and of what seed and weights."""
        readers = {name: reader.state_dict() for name, reader in self.readers.items()}
        return {"batch": self._batch, "of": self._of, "readers": readers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch at which the state was taken.

        Raises:
            DataError: the state is of other datasets, seed or weights, or of the middle of an epoch in another order.
        """
        if "readers" not in state:
            raise DataError(f"the position is of another kind of reader, found {', '.join(state) or 'nothing'} in it")
        if state["readers"].keys() != self.readers.keys():
            raise DataError(
                f"the position is of the datasets {', '.join(state['readers'])}, found {', '.join(self.readers)}"
            )
        if state["of"] != self._of:
            raise DataError("the position is of another seed or other weights, which choose the datasets' batches")
        for name, reader in self.readers.items():
            reader.load_state_dict(state["readers"][name])
        self._batch = int(state["batch"])

    def choices(self, block: int) -> list[str]:
        """Which readers give the batches from `1024 * block` on, 1,024 names."""
        rng = np.random.default_rng([self.seed, block])
        # Evenly spaced points have every share exactly, and their random offset gives small shares their turn.
        points = (np.arange(BLOCK) + rng.random()) / BLOCK
        names = np.searchsorted(self._ends[:-1], points, side="right")
        return [list(self.readers)[number] for number in rng.permutation(names)]

    def __iter__(self) -> Generator[Batch, None, None]:
        with ExitStack() as stack:
            batches: dict[str, Generator[Batch, None, None]] = {}
            for block in itertools.count(self._batch // BLOCK):
                for name in self.choices(block)[self._batch % BLOCK :]:
                    if name not in batches:
                        batches[name] = stack.enter_context(closing(iter(self.readers[name])))
                    batch = next(batches[name], None)
                    if batch is None:
                        return
                    self._batch += 1
                    yield batch
