"""From an example dataset and embeddings by id to the ranker's batches.

A batch has the vectors of the dataset, each label under its task's name, and one matrix for every embedding input: what
the dataset itself has of them, and the vectors of the viewers, of the authors, of the posts, found by id. An id without
a vector gets zeros.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from tml.core.config import BaseConfig
from tml.core.errors import MissingStage
from tml.data.examples import Schema, to_tensors
from tml.embeddings.files import Embeddings, read_embeddings
from tml.projects.home.recap.config import InputShapes


class EmbeddingInput(BaseConfig):
    """Vectors from a file as an input of the ranker.

    Attributes:
        nodes: the name of the file: the node type, as `user`.
        key: the column of the examples whose ids are looked up, as `user_id`.
    """

    nodes: str
    key: str


DEFAULT_EMBEDDINGS = {
    "user_embedding": EmbeddingInput(nodes="user", key="user_id"),
    "author_embedding": EmbeddingInput(nodes="author", key="author_id"),
}


class RankerInputs:
    """What a model reads of an example dataset.

    Args:
        schema: of the dataset.
        embeddings: name of the input → where its vectors are.
        folder: the folder of the embeddings files; None leaves all of them out.

    Raises:
        MissingStage: an embeddings file that is not there.
    """

    def __init__(self, schema: Schema, embeddings: Mapping[str, EmbeddingInput], folder: Path | None) -> None:
        self.schema = schema
        self.tables: dict[str, tuple[str, Embeddings]] = {}
        for name, source in embeddings.items() if folder else ():
            path = folder / f"{source.nodes}.parquet"  # type: ignore[operator]
            if not path.exists():
                raise MissingStage(f"{path}: no such embeddings for {name}; `tml twhin train` makes them")
            self.tables[name] = (source.key, read_embeddings(path))

    def shapes(self) -> InputShapes:
        """Columns, vocabularies (one more than the words: 0 is unknown), widths and tasks."""
        return InputShapes(
            continuous=len(self.schema.continuous),
            binary=len(self.schema.binary),
            discrete=tuple(len(column.vocabulary) + 1 for column in self.schema.discrete),
            embeddings={**self.schema.embeddings, **{name: table.width for name, (_, table) in self.tables.items()}},
            tasks=tuple(self.schema.tasks),
        )

    def columns(self) -> list[str]:
        """The columns of the examples that a batch is made of."""
        keys = dict.fromkeys(key for key, _ in self.tables.values())
        return [*keys, *self.schema.widths(), *self.schema.tasks]

    def batch(self, table: pa.Table) -> dict[str, Tensor]:
        """The batch of a table of examples, on the CPU."""
        batch = to_tensors(table, self.schema)
        for name, (key, vectors) in self.tables.items():
            batch[name] = torch.from_numpy(vectors.lookup(table[key].combine_chunks()))
        return batch

    def as_if_first(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch as if every post stood at position 0: a ranking must not lean on where a post was served."""
        continuous = batch["continuous"].clone()
        continuous[:, self.schema.continuous.index("position")] = 0
        return {**batch, "continuous": continuous}


def print_skipped(what: str, skipped: Mapping[str, int]) -> None:
    """Say how many examples were left out, and why, if any were."""
    if skipped:
        first, more = "; ".join(list(skipped)[:3]), f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        print(f"{what}: skipped {sum(skipped.values()):,} examples: {first}{more}", file=sys.stderr)
