"""What the baselines say of the held-out examples, fitted once for all rankers on the same data.

base_rate            the mean label of training, for everyone
popularity           the rate at which everyone engaged with the post
logistic_regression  on the ranker's inputs
lightgbm             gradient boosted trees on the ranker's inputs, where LightGBM is installed
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tml.core.files import whole_file
from tml.core.progress import progress
from tml.data.examples import Schema
from tml.data.shards import OnError, Shards, read_part
from tml.projects.home.recap.baselines import LogisticRegression, base_rates, design_matrix
from tml.projects.home.recap.boosting import BoostedTrees, LightGbmConfig, is_installed, tree_matrix
from tml.projects.home.recap.calibration import calibrated_probabilities
from tml.projects.home.recap.conditions import conditions, labels_that_count
from tml.projects.home.recap.config import ModelConfig
from tml.projects.home.recap.data import RankerInputs
from tml.projects.home.recap.popularity import Popularity
from tml.projects.home.recap.train import RecapConfig, sampling_ratios

LARGEST_REGRESSION = 500_000
"""The logistic regression is fitted to this many training examples at most, the latest ones."""

NOT_INSTALLED = "baselines: LightGBM is not installed and left out; `pip install 'tml[baselines]'` adds it"


class Baselines:
    """All baselines, fitted to the training examples.

    Args:
        inputs: what the ranker reads.
        examples: an example dataset.
        lightgbm: how trees are fitted; None leaves them out.
        seed: of the trees.
        on_error: what to do with damaged examples.
    """

    def __init__(
        self, inputs: RankerInputs, examples: Path, lightgbm: LightGbmConfig | None, seed: int, on_error: OnError
    ) -> None:
        self.inputs, self.schema = inputs, inputs.schema
        self.tasks = list(self.schema.tasks)
        found = conditions(inputs.model.tasks or {}, inputs.shapes())
        self.conditions = {task: found.get(task) for task in self.tasks}
        self.ratios = sampling_ratios(self.schema)
        self.popularity = Popularity(len(self.tasks))
        if lightgbm is not None and not is_installed():
            print(NOT_INSTALLED, file=sys.stderr)
            lightgbm = None
        labels = self._fit_regression(examples, on_error)
        self.rates = base_rates(labels)
        self.trees = None if lightgbm is None else self._fit_trees(examples, lightgbm, seed, on_error)

    def predict(self, table: pa.Table) -> dict[str, npt.NDArray[np.float32]]:
        """Probabilities in the log, corrected for sampling, by `model/task`; (rows,) each."""
        batch = self.inputs.batch(table)
        said: dict[str, Any] = {
            "base_rate": self.rates.expand(table.num_rows, -1),
            "popularity": torch.from_numpy(self.popularity.predict(table["post_id"].combine_chunks())),
            "logistic_regression": self.regression.predict(design_matrix(batch, self.inputs.shapes())),
        }
        if self.trees is not None:
            said["lightgbm"] = torch.from_numpy(self.trees.predict(tree_matrix(batch, self.inputs.shapes())))
        return {
            f"{model}/{task}": corrected(values[:, number], self.ratios[task]).float().numpy()
            for model, values in said.items()
            for number, task in enumerate(self.tasks)
        }

    def _labels(self, batch: Mapping[str, Tensor]) -> Tensor:
        return torch.stack(list(labels_that_count(self.conditions, batch).values()), dim=1)

    def _fit_regression(self, examples: Path, on_error: OnError) -> Tensor:
        """Fit popularity and the logistic regression; returns the labels that the latter saw."""
        features, labels = [], []
        columns = list(dict.fromkeys([*self.inputs.columns(), "post_id"]))
        skip = self.schema.part("train").rows - LARGEST_REGRESSION
        with progress("fit baselines", total=self.schema.part("train").rows, unit="rows") as bar:
            for table in read_part(examples, "train", columns, on_error=on_error):
                batch = self.inputs.batch(table)
                self.popularity.update(table["post_id"].combine_chunks(), self._labels(batch))
                if skip < table.num_rows:
                    first = max(0, skip)
                    features.append(design_matrix(batch, self.inputs.shapes())[first:])
                    labels.append(self._labels(batch)[first:].clone())
                skip -= table.num_rows
                bar.advance(table.num_rows)
        y = torch.cat(labels)
        self.regression = LogisticRegression().fit(torch.cat(features), y)
        return y

    def _fit_trees(self, examples: Path, config: LightGbmConfig, seed: int, on_error: OnError) -> BoostedTrees:
        chunks, labels = [], []
        skip = max(0, self.schema.part("train").rows - config.max_rows)
        for table in read_part(examples, "train", self.inputs.columns(), skip, on_error):
            batch = self.inputs.batch(table)
            chunks.append(tree_matrix(batch, self.inputs.shapes()))
            labels.append(self._labels(batch).numpy().copy())
        return BoostedTrees(config, seed).fit(chunks, np.concatenate(labels), len(self.inputs.shapes().discrete))


def predict_baselines(
    config: RecapConfig,
    lightgbm: LightGbmConfig | None,
    examples: Path,
    embeddings: Path | None,
    seed: int,
    out: Path,
) -> None:
    """Fit every baseline and write what it says of the held-out examples, in their order.

    Args:
        config: of the ranker, whose inputs the baselines read.
        lightgbm: how trees are fitted; None leaves them out.
        examples: an example dataset.
        embeddings: the folder of embeddings by id; None for none.
        seed: of the trees.
        out: the Parquet file to write: `impression_id`, and a column `model/task` for each.
    """
    # Of the model nothing but its tasks: what it reads beside is not for baselines.
    inputs = RankerInputs(Schema.read(examples), config.embeddings, embeddings, ModelConfig(tasks=config.model.tasks))
    baselines = Baselines(inputs, examples, lightgbm, seed, config.on_error)
    shards = Shards(examples, "validation", on_error=config.on_error)
    writer: pq.ParquetWriter | None = None
    with whole_file(out) as partial:
        try:
            for table in shards.tables():
                part = pa.table({"impression_id": table["impression_id"], **baselines.predict(table)})
                writer = writer or pq.ParquetWriter(partial, part.schema, compression="zstd")
                writer.write_table(part)
        finally:
            if writer is not None:
                writer.close()


def corrected(probability: Tensor, ratio: float) -> Tensor:
    """Numeric calibration of a probability that was learnt from down-sampled negatives."""
    return calibrated_probabilities(torch.logit(probability), ratio) if ratio != 1 else probability
