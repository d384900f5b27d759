"""What two models say of the same held-out examples, side by side.

The other model is one of the same predictions, or the ranker of another run; then its examples are found by
`impression_id`. Ids that are made up, as row numbers, are found in another log, too: the same id has to mean the same
viewer, post and time, and the labels have to be the same, or the two are refused. Where a label does not count for one
of the two it counts for neither.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tml.core.errors import DataError, MissingStage

Floats = npt.NDArray[np.float64]

ROWS_AT_A_TIME = 262_144
WHAT_AN_ID_MEANS = ("user_id", "post_id", "served_at")


class Pair(NamedTuple):
    """A batch: its viewers (examples,), and by task labels and what the two models say, (examples,) each."""

    viewers: npt.NDArray[Any]
    labels: dict[str, Floats]
    ours: dict[str, Floats]
    theirs: dict[str, Floats]


class Pairs:
    """The examples that two models have in common, batch by batch.

    Args:
        predictions: `recap/predictions.parquet` of a run.
        tasks: to compare.
        against: a model of the same file, as `lightgbm`, or the folder of another run.

    Attributes:
        examples, of_the_other: how many each has.
        common: how many both have, as far as they have been read.
        is_same: whether the two have said the same of all of these.

    Raises:
        MissingStage: there are no predictions.
        DataError: the other is no model of the file and no run, or of another log, or judged on none of the examples.
    """

    def __init__(self, predictions: Path, tasks: Sequence[str], against: str) -> None:
        if not predictions.is_file():
            raise MissingStage(f"{predictions}: no such predictions; `tml recap evaluate` makes them")
        self.tasks, self.against = tuple(tasks), against
        self.file = pq.ParquetFile(predictions)
        names = self.file.schema_arrow.names
        models = list(dict.fromkeys(name.partition("/")[0] for name in names if "/" in name))
        models = [name for name in models if name not in ("label", "first", "ranker")]
        self.keys = [name for name in WHAT_AN_ID_MEANS if name in names]
        self.other = None if against in models else self._read_other(models)
        self.examples = self.file.metadata.num_rows
        self.of_the_other = self.examples if self.other is None else len(self.other)
        self.common, self.is_same = 0, True

    def _read_other(self, models: Sequence[str]) -> pa.Table:
        path = Path(self.against) / "recap" / "predictions.parquet"
        if not path.is_file():
            raise DataError(
                f"--against {self.against}: found neither a model nor a run with predictions, allowed are "
                f"{', '.join(models)} and the folder of a run that was evaluated"
            )
        columns = [f"{kind}/{task}" for task in self.tasks for kind in ("label", "ranker")]
        schema = pq.ParquetFile(path).schema_arrow
        missing = [name.partition("/")[2] for name in columns if name not in schema.names]
        if missing:
            found = f"no predictions of {', '.join(dict.fromkeys(missing))}"
            raise DataError(f"{path}: found {found}, needed is each task of this run")
        ours = self.file.schema_arrow
        self.keys = [name for name in self.keys if name in schema.names]
        if any(schema.field(name).type != ours.field(name).type for name in ("impression_id", *self.keys)):
            raise self._of_another_log("other types of ids")
        return pq.read_table(path, columns=["impression_id", *self.keys, *columns])

    def _of_another_log(self, found: str) -> DataError:
        return DataError(f"--against {self.against}: found {found}, needed is the same log and split")

    def __iter__(self) -> Iterator[Pair]:
        kinds = [f"{kind}/{task}" for task in self.tasks for kind in ("label", "ranker")]
        columns = ["impression_id", *dict.fromkeys(["user_id", *self.keys]), *kinds]
        columns += [f"{self.against}/{task}" for task in self.tasks if self.other is None]
        for batch in self.file.iter_batches(ROWS_AT_A_TIME, columns=columns):
            pair = self._pair(pa.Table.from_batches([batch]))
            self.common += len(pair.viewers)
            self.is_same &= all(np.array_equal(pair.ours[task], pair.theirs[task]) for task in self.tasks)
            yield pair
        if not self.common:
            raise self._of_another_log("it judged on none of this run's examples")

    def _pair(self, table: pa.Table) -> Pair:
        if self.other is None:
            labels, theirs = self._values(table, "label"), self._values(table, self.against)
        else:
            at = pc.index_in(table["impression_id"], value_set=self.other["impression_id"].combine_chunks())
            table, other = table.filter(at.is_valid()), self.other.take(at.drop_null())
            labels = self._same_labels(table, other)
            theirs = self._values(other, "ranker")
        return Pair(table["user_id"].to_numpy(), labels, self._values(table, "ranker"), theirs)

    def _values(self, table: pa.Table, model: str) -> dict[str, Floats]:
        return {task: table[f"{model}/{task}"].to_numpy().astype(np.float64) for task in self.tasks}

    def _same_labels(self, table: pa.Table, other: pa.Table) -> dict[str, Floats]:
        for name in self.keys:
            odd = pc.index(pc.fill_null(pc.equal(table[name], other[name]), False), False).as_py()
            if odd >= 0:
                found = f"impression {table['impression_id'][odd]} with another {name}"
                raise self._of_another_log(found)
        ours, theirs = self._values(table, "label"), self._values(other, "label")
        for task in self.tasks:
            counts = ~np.isnan(ours[task]) & ~np.isnan(theirs[task])
            differ = np.flatnonzero(counts & (ours[task] != theirs[task]))
            if len(differ):
                found = f"another label {task} of impression {table['impression_id'][int(differ[0])]}"
                raise DataError(f"--against {self.against}: found {found}, needed are tasks of the same definition")
            ours[task] = np.where(counts, ours[task], np.nan)
        return ours
