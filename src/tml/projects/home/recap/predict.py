"""What the ranker, and the models that it is held against, say of the held-out examples.

ranker               the trained model, each post at the position where it was served
first                the same model, each post as if it stood first: what a ranking may use, since it decides positions
base_rate, …         the baselines (`baseline_predictions`)
oracle               the true probabilities, where a simulator wrote them down

One row group is in memory at a time.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from tml.core.distributed import pick_device
from tml.core.errors import DataError, MissingStage
from tml.core.files import whole_file
from tml.core.progress import progress
from tml.data.config import TaskConfig
from tml.data.examples import KEYS, Schema
from tml.data.shards import Shards
from tml.projects.home.recap.conditions import labels_that_count
from tml.projects.home.recap.data import RankerInputs, print_skipped
from tml.projects.home.recap.train import RecapConfig, load_ranker, sampling_ratios


def predict(
    config: RecapConfig,
    examples: Path,
    embeddings: Path | None,
    model: Path,
    truth: Path | None,
    out: Path,
    baselines: Path | None = None,
) -> None:
    """Write the probabilities of every model for the held-out examples.

    Args:
        config: the config that the model was trained with.
        examples: an example dataset.
        embeddings: the folder of embeddings by id; None for none.
        model: the ranker's model file.
        truth: true probabilities by impression, one column an engagement type; None where nobody knows them.
        out: the Parquet file to write.
        baselines: what `predict_baselines` wrote; None for none.
    """
    schema = Schema.read(examples)
    inputs = RankerInputs(schema, config.embeddings, embeddings, config.model)
    device = pick_device()
    ranker = load_ranker(model).to(device)
    inputs.require_rows_of(ranker.featurization)
    ratios = sampling_ratios(schema)
    oracle = None if truth is None else _read_truth(truth, schema)
    others = None if baselines is None else _Baselines(baselines)
    writer: pq.ParquetWriter | None = None
    total = schema.part("validation").rows
    with progress("predict", total=total, unit="examples") as bar, torch.no_grad(), whole_file(out) as partial:
        shards = Shards(examples, "validation", on_error=config.on_error)
        try:
            for table in shards.tables():
                batch = {name: values.to(device) for name, values in inputs.batch(table).items()}
                columns = {name: table[name] for name in KEYS}
                labels = labels_that_count(ranker.conditions, batch)
                columns |= {f"label/{task}": pa.array(labels[task].cpu().numpy()) for task in schema.tasks}
                for name, given in (("ranker", batch), ("first", inputs.as_if_first(batch))):
                    said = ranker.probabilities(given, ratios)
                    columns |= {f"{name}/{task}": pa.array(said[task].cpu().numpy()) for task in schema.tasks}
                part = pa.table(columns)
                part = part if others is None else others.beside(part)
                part = part if oracle is None else _with_oracle(part, oracle, schema, truth)
                writer = writer or pq.ParquetWriter(partial, part.schema, compression="zstd")
                writer.write_table(part)
                bar.advance(table.num_rows)
        finally:
            if writer is not None:
                writer.close()
    print_skipped("predict", shards.skipped)


def write_predictions(table: pa.Table, path: Path) -> None:
    """Write a predictions table over another, whole or not at all."""
    with whole_file(path) as partial:
        pq.write_table(table, partial, compression="zstd")


class _Baselines:
    """What the baselines said, row by row beside the examples."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise MissingStage(f"{path}: no such predictions; `tml recap baselines` makes them")
        self.path, self.at = path, 0
        self.table = pq.read_table(path, memory_map=True)

    def beside(self, part: pa.Table) -> pa.Table:
        """The part with the columns of its rows; parts come in the order of the examples."""
        rows = self.table.slice(self.at, part.num_rows)
        self.at += part.num_rows
        if not rows["impression_id"].equals(part["impression_id"]):
            # One of the two left out damaged examples.
            at = pc.index_in(part["impression_id"], value_set=self.table["impression_id"].combine_chunks())
            rows = self.table.take(at)
        if rows["impression_id"].null_count:
            raise DataError(f"{self.path}: made of other examples; run `tml recap baselines` again")
        for name in rows.column_names[1:]:
            part = part.append_column(name, rows[name])
        return part


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
