"""From an example dataset and embeddings by id to the ranker's batches.

A batch has the vectors of the dataset, each label under its task's name, and one matrix for every embedding input: what
the dataset itself has of them, and the vectors of the viewers, of the authors, of the posts, found by id. An id without
a vector gets zeros. Where the model goes on training such vectors, the batch has their rows in the model's table
instead, 0 for an id without one. For each of them `binary` has one more column, NAME_is_known: a stranger is not the
same as one whose vector is near zero. For the model's tables of hashed ids it has the ids, and the position if the
model takes that apart.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tml.core.config import BaseConfig
from tml.core.errors import ConfigError, DataError, MissingStage
from tml.data.examples import KEYS, SEQUENCE, Schema, to_tensors, vector_values
from tml.data.id_numbers import id_numbers
from tml.embeddings.files import Embeddings, read_embeddings
from tml.projects.home.recap.config import InputShapes, ModelConfig
from tml.projects.home.recap.featurize import Featurization
from tml.projects.home.recap.large_embeddings import id_tensor
from tml.projects.home.recap.position import UNKNOWN
from tml.projects.home.recap.segments import stratified_column
from tml.projects.home.recap.sequence import POSTS, ROWS, TARGET_ROW


class EmbeddingInput(BaseConfig):
    """Vectors from a file as an input of the ranker.

    Attributes:
        nodes: the name of the file: the node type, as `user`.
        key: the column of the examples whose ids are looked up, as `user_id`.
        trained: whether the model goes on training the vectors, from the file's on.
    """

    nodes: str
    key: str
    trained: bool = False


DEFAULT_EMBEDDINGS = {
    "user_embedding": EmbeddingInput(nodes="user", key="user_id"),
    "author_embedding": EmbeddingInput(nodes="author", key="author_id"),
}


class ShownVectors:
    """A file's vectors of posts, in the order of their ids' numbers, for sequences of such numbers.

    Attributes:
        vectors: (ids, width).
        shape: of the model's table, which has a row 0 for ids without a vector.
    """

    def __init__(self, embeddings: Embeddings) -> None:
        numbers = id_numbers(embeddings.ids, "id")
        order = np.argsort(numbers)
        self.numbers, self.vectors = numbers[order], embeddings.vectors[order]
        self.shape = (len(embeddings) + 1, embeddings.width)

    def rows(self, ids: Tensor) -> Tensor:
        """The row of each id, in the shape of `ids`; 0 for one without a vector."""
        found = ids.numpy()
        if not len(self.numbers):
            return torch.zeros_like(ids)
        place = np.minimum(np.searchsorted(self.numbers, found), len(self.numbers) - 1)
        return torch.from_numpy(np.where(self.numbers[place] == found, place + 1, 0))


class RankerInputs:
    """What a model reads of an example dataset.

    Args:
        schema: of the dataset.
        embeddings: name of the input → where its vectors are.
        folder: the folder of the embeddings files; None leaves all of them out.
        model: which columns of ids it reads, and whether the position; None reads neither.

    Raises:
        MissingStage: an embeddings file that is not there.
    """

    def __init__(
        self,
        schema: Schema,
        embeddings: Mapping[str, EmbeddingInput],
        folder: Path | None,
        model: ModelConfig | None = None,
    ) -> None:
        self.schema = schema
        self.model = model or ModelConfig()
        large, debias = self.model.large_embeddings, self.model.position_debias_config
        self.id_columns = list(dict.fromkeys(table.column for table in large.tables)) if large else []
        self.reads_sequence = self.model.sequence_config is not None
        if self.reads_sequence and "post_id" not in self.id_columns:
            self.id_columns.append("post_id")
        if self.reads_sequence and not schema.sequence:
            raise ConfigError(
                "sequence_config: found one, but the dataset does not say what viewers were shown last; "
                "features.sequence makes that"
            )
        unknown = [column for column in self.id_columns if column not in KEYS]
        if unknown:
            raise ConfigError(f"large_embeddings: found the column {unknown[0]}, allowed are {', '.join(KEYS)}")
        for stratifier in self.model.stratifiers or ():
            stratified_column(stratifier, schema)
        self.reads_position = debias is not None and debias.position_feature_index is None
        self.trained = {name for name, source in embeddings.items() if source.trained}
        self.tables: dict[str, tuple[str, Embeddings]] = {}
        for name, source in embeddings.items() if folder else ():
            path = folder / f"{source.nodes}.parquet"  # type: ignore[operator]
            if not path.exists():
                raise MissingStage(f"{path}: no such embeddings for {name}; `tml twhin train` makes them")
            self.tables[name] = (source.key, read_embeddings(path))
        self.shown: ShownVectors | None = None
        sequence = self.model.sequence_config
        if folder and sequence and sequence.nodes:
            path = folder / f"{sequence.nodes}.parquet"
            if not path.exists():
                raise MissingStage(f"{path}: no such embeddings for sequence_config; `tml twhin train` makes them")
            self.shown = ShownVectors(read_embeddings(path))

    def shapes(self) -> InputShapes:
        """Columns, vocabularies (one more than the words: 0 is unknown), widths and tasks."""
        z_score = self.model.featurization_config.z_score_log_config is not None
        statistics = self.schema.statistics if z_score else {}
        return InputShapes(
            continuous=len(self.schema.continuous),
            binary=len(self.schema.binary) + len(self.tables),
            discrete=tuple(len(column.vocabulary) + 1 for column in self.schema.discrete),
            embeddings={**self.schema.embeddings, **{name: table.width for name, (_, table) in self.tables.items()}},
            trained={name: len(table) + 1 for name, (_, table) in self.tables.items() if name in self.trained},
            sequence_length=int(self.schema.sequence.get("length", 0)),
            sequence_engagements=len(self.schema.sequence.get("engagements", ())),
            sequence_vectors=None if self.shown is None else self.shown.shape,
            tasks=tuple(self.schema.tasks),
            names={
                "continuous": tuple(self.schema.continuous),
                "binary": (*self.schema.binary, *(f"{name}_is_known" for name in self.tables)),
                "discrete": tuple(column.name for column in self.schema.discrete),
            },
            log_mean=tuple(statistics.get("log_mean", ())),
            log_deviation=tuple(statistics.get("log_deviation", ())),
        )

    def columns(self) -> list[str]:
        """The columns of the examples that a batch is made of."""
        position = ["position"] if self.reads_position else []
        position += SEQUENCE if self.reads_sequence else ()
        keys = dict.fromkeys([*(key for key, _ in self.tables.values()), *self.id_columns, *position])
        return [*keys, *self.schema.widths(), *self.schema.tasks]

    def batch(self, table: pa.Table) -> dict[str, Tensor]:
        """The batch of a table of examples, on the CPU."""
        batch = to_tensors(table, self.schema)
        known: list[Tensor] = []
        for name, (key, vectors) in self.tables.items():
            ids = table[key].combine_chunks()
            rows = vectors.rows(ids)
            batch[name] = torch.from_numpy(rows + 1 if name in self.trained else vectors.at(rows))
            known.append(torch.from_numpy(rows >= 0))
        if known:
            binary = batch["binary"]
            batch["binary"] = torch.cat([binary, torch.stack(known, dim=1).to(binary.dtype)], dim=1)
        batch |= self.ids(table)
        for name in SEQUENCE if self.reads_sequence else ():
            batch[name] = torch.from_numpy(np.array(vector_values(table[name])))
        if self.shown is not None:
            batch[ROWS] = self.shown.rows(batch[POSTS])
            batch[TARGET_ROW] = self.shown.rows(batch["post_id"])
        if self.reads_position:
            positions = table["position"].combine_chunks().fill_null(UNKNOWN)
            batch["position"] = torch.from_numpy(positions.to_numpy().astype(np.int64))
        return batch

    def ids(self, table: pa.Table) -> dict[str, Tensor]:
        """The columns of ids that the model reads of a table of examples."""
        return {column: id_tensor(table[column], column) for column in self.id_columns}

    def initialise(self, featurization: Featurization) -> None:
        """Start the embeddings that are trained at the vectors of their files; an unknown id's at zeros."""
        for name, (_, vectors) in self.tables.items():
            if name in self.trained:
                rows = torch.from_numpy(np.pad(vectors.vectors, ((1, 0), (0, 0))))
                featurization.initialise(name, rows)
        if self.shown is not None and featurization.sequence is not None:
            featurization.sequence.initialise(torch.from_numpy(self.shown.vectors))

    def require_rows_of(self, featurization: Featurization) -> None:
        """Refuse files of embeddings that have other ids than those which the model's tables were made for.

        Raises:
            DataError: with both numbers.
        """
        for name, (_, vectors) in self.tables.items():
            rows = featurization.rows_of(name) if name in self.trained else None
            if rows is not None and rows != len(vectors) + 1:
                raise DataError(f"{name}: found {len(vectors)} ids, but the model was trained with {rows - 1}")
        if self.shown is not None and featurization.sequence is not None:
            found, allowed = self.shown.shape, tuple(featurization.sequence.vectors.shape)
            if found != allowed:
                raise DataError(f"sequence_config: found vectors of {found}, the model was trained with {allowed}")

    def as_if_first(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch as if every post stood at position 0: a ranking must not lean on where a post was served.

        A model with position debias knows what to say without any position, and gets none.
        """
        debias = self.model.position_debias_config
        if debias is not None and debias.position_feature_index is not None:
            discrete = batch["discrete"].clone()
            discrete[:, debias.position_feature_index] = 0
            return {**batch, "discrete": discrete}
        if debias is not None:
            return {**batch, "position": torch.full_like(batch["position"], UNKNOWN)}
        continuous = batch["continuous"].clone()
        continuous[:, self.schema.continuous.index("position")] = 0
        return {**batch, "continuous": continuous}


def print_skipped(what: str, skipped: Mapping[str, int]) -> None:
    """Say how many examples were left out, and why, if any were."""
    if skipped:
        first, more = "; ".join(list(skipped)[:3]), f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        print(f"{what}: skipped {sum(skipped.values()):,} examples: {first}{more}", file=sys.stderr)
