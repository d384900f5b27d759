"""What the ranker, and the models that it is held against, say of the held-out examples.

ranker               the trained model, each post at the position where it was served
first                the same model, each post as if it stood first: what a ranking may use, since it decides positions
logistic_regression  on the same inputs, fitted to the same training examples
base_rate            the mean label of training, for everyone
oracle               the true probabilities, where a simulator wrote them down
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tml.core.distributed import pick_device
from tml.core.errors import DataError
from tml.core.files import whole_file
from tml.core.progress import progress
from tml.data.config import TaskConfig
from tml.data.examples import KEYS, Schema
from tml.data.shards import OnError, Shards, read_part
from tml.projects.home.recap.baselines import LogisticRegression, base_rates, design_matrix
from tml.projects.home.recap.calibration import calibrated_probabilities
from tml.projects.home.recap.data import RankerInputs, print_skipped
from tml.projects.home.recap.train import RecapConfig, load_ranker, sampling_ratios

BASELINE_ROWS = 500_000
"""The logistic regression is fitted to this many training examples at most, the latest ones."""


def predict(
    config: RecapConfig, examples: Path, embeddings: Path | None, model: Path, truth: Path | None, out: Path
) -> None:
    """Write the probabilities of every model for the held-out examples.

    Args:
        config: the config that the model was trained with.
        examples: an example dataset.
        embeddings: the folder of embeddings by id; None for none.
        model: the ranker's model file.
        truth: true probabilities by impression, one column an engagement type; None where nobody knows them.
        out: the Parquet file to write.
    """
    schema = Schema.read(examples)
    inputs = RankerInputs(schema, config.embeddings, embeddings, config.model)
    device = pick_device()
    ranker = load_ranker(model).to(device)
    inputs.require_rows_of(ranker.featurization)
    ratios = sampling_ratios(schema)
    regression, rates = _fit_baselines(inputs, examples, schema, config.on_error)
    oracle = None if truth is None else _read_truth(truth, schema)
    parts = []
    with progress("predict", total=schema.part("validation").rows, unit="examples") as bar, torch.no_grad():
        shards = Shards(examples, "validation", on_error=config.on_error)
        for table in shards.tables():
            read = inputs.batch(table)
            batch = {name: values.to(device) for name, values in read.items()}
            columns = {f"label/{task}": table[task] for task in schema.tasks}
            for name, given in (("ranker", batch), ("first", inputs.as_if_first(batch))):
                said = ranker.probabilities(given, ratios)
                columns |= {f"{name}/{task}": pa.array(said[task].cpu().numpy()) for task in schema.tasks}
            fitted = regression.predict(design_matrix(read, inputs.shapes()))
            for number, task in enumerate(schema.tasks):
                corrected = _corrected(fitted[:, number], ratios[task])
                columns[f"logistic_regression/{task}"] = pa.array(corrected.float().numpy())
                columns[f"base_rate/{task}"] = pa.array(np.full(table.num_rows, rates[task], np.float32))
            parts.append(pa.table({**{name: table[name] for name in KEYS}, **columns}))
            bar.advance(table.num_rows)
    print_skipped("predict", shards.skipped)
    predictions = pa.concat_tables(parts)
    if oracle is not None:
        predictions = _with_oracle(predictions, oracle, schema, truth)
    with whole_file(out) as partial:
        pq.write_table(predictions, partial, compression="zstd")


def _fit_baselines(
    inputs: RankerInputs, examples: Path, schema: Schema, on_error: OnError
) -> tuple[LogisticRegression, Mapping[str, float]]:
    features, labels = [], []
    with progress("fit baselines", unit="rows") as bar:
        skip = max(0, schema.part("train").rows - BASELINE_ROWS)
        for table in read_part(examples, "train", inputs.columns(), skip, on_error):
            batch = inputs.batch(table)
            features.append(design_matrix(batch, inputs.shapes()))
            labels.append(torch.stack([batch[task] for task in schema.tasks], dim=1))
            bar.advance(table.num_rows)
        y = torch.cat(labels)
        regression = LogisticRegression().fit(torch.cat(features), y)
    ratios = sampling_ratios(schema)
    means = base_rates(y)
    return regression, {task: float(_corrected(means[i], ratios[task])) for i, task in enumerate(schema.tasks)}


def _corrected(probability: Tensor, ratio: float) -> Tensor:
    """Numeric calibration of a probability that was learnt from down-sampled negatives."""
    return calibrated_probabilities(torch.logit(probability), ratio)


def _read_truth(path: Path, schema: Schema) -> pa.Table:
    if not path.is_file():
        raise DataError(f"{path}: no such file (log.truth), allowed is a Parquet file of true probabilities")
    table = pq.read_table(path)
    wanted = ["impression_id", *(TaskConfig(**task).engagement for task in schema.tasks.values())]
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}, found are {', '.join(table.column_names)}")
    return table


def _with_oracle(predictions: pa.Table, truth: pa.Table, schema: Schema, path: Path | None) -> pa.Table:
    rows = pc.index_in(predictions["impression_id"], value_set=truth["impression_id"].combine_chunks())
    if rows.null_count:
        raise DataError(f"{path}: {rows.null_count} held-out impressions have no true probabilities, allowed are none")
    found = truth.take(rows)
    for name, task in schema.tasks.items():
        predictions = predictions.append_column(f"oracle/{name}", found[task["engagement"]].cast(pa.float32()))
    return predictions
