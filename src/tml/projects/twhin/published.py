"""The published configuration of TwHIN: as a config of ours, and the graph that it speaks of.

    embeddings, relations, translation_optimizer      as `TwhinConfig` has them; they may stand below `model`
    train_data, validation_data                       where edges are, `limit` and `offset` of them, and how many
                                                      negatives and edges a step

A node of a published graph is its row number below `num_embeddings`, edges are Parquet with `lhs`, `rel`, `rhs`, and
the relations are numbered in their order. What says nothing here (`runtime`, folders, the size of evaluations, how
validation draws negatives) is left out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, PositiveInt

from tml.core.config import BaseConfig, load_config
from tml.core.errors import ConfigError, DataError
from tml.core.files import require_replaceable, whole_folder, write_json
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.edges import EdgeReader
from tml.projects.twhin.graph import PARTS, SPLITS, Split, read_ids
from tml.projects.twhin.triples import triple_files

MODEL = ("embeddings", "relations", "translation_optimizer")
STEP = {"per_replica_batch_size": "batch_size", "in_batch_negatives": "", "global_negatives": ""}
TRAINING = {
    "num_train_steps": "num_steps",
    "checkpoint_every_n": "checkpoint_every",
    "checkpoint_max_to_keep": "checkpoints_to_keep",
    "train_log_every_n": "log_every",
    "eval_log_every_n": "evaluate_every",
}


class PublishedData(BaseConfig):
    """Edges of a split, and how they are batched.

    Attributes:
        data_root: a Parquet file, a folder or a pattern of them.
        offset: edges that are left out at the beginning.
        limit: edges that are read then; null reads all.
    """

    data_root: Path
    offset: int = Field(default=0, ge=0)
    limit: PositiveInt | None = None
    per_replica_batch_size: PositiveInt | None = None
    in_batch_negatives: int | None = Field(default=None, ge=0)
    global_negatives: int | None = Field(default=None, ge=0)


class PublishedConfig(BaseConfig):
    """The sections of a published configuration; `twhin` and `seed` are ours, to be set beside them."""

    model: dict[str, Any] = Field(default_factory=dict)
    embeddings: dict[str, Any] | None = None
    relations: list[Any] | None = None
    translation_optimizer: dict[str, Any] | None = None
    train_data: PublishedData | None = None
    validation_data: PublishedData | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    runtime: dict[str, Any] = Field(default_factory=dict)
    twhin: Any = None
    seed: int = 0

    def job(self) -> dict[str, Any]:
        """The tree of a job of ours: `twhin` and `seed`."""
        unknown = sorted(set(self.model) - set(MODEL))
        if unknown:
            raise ConfigError(f"model: found {unknown[0]!r}, allowed are {', '.join(MODEL)}")
        twhin = {**self.model, **{name: value for name in MODEL if (value := getattr(self, name)) is not None}}
        if "translation_optimizer" in twhin:
            twhin["translation_optimizer"] = _without_lr(twhin["translation_optimizer"])
        if "embeddings" in twhin:
            twhin["embeddings"] = dict(twhin["embeddings"])
            tables = [dict(table) for table in twhin["embeddings"].get("tables") or ()]
            for table in tables:
                if "optimizer" in table:
                    table["optimizer"] = _without_lr(table["optimizer"])
            twhin["embeddings"]["tables"] = tables
            dims = [table["embedding_dim"] for table in tables if "embedding_dim" in table]
            twhin |= {"embedding_dim": dims[0]} if dims else {}
        for name, own in STEP.items():
            if self.train_data is not None and getattr(self.train_data, name) is not None:
                twhin[own or name] = getattr(self.train_data, name)
        set_here = dict(self.twhin or {})
        training = {name: self.training[one] for one, name in TRAINING.items() if one in self.training}
        training |= set_here.pop("training", None) or {}
        return {"seed": self.seed, "twhin": {**twhin, **set_here, "training": training}}


def is_published(path: Path | None) -> bool:
    """Whether a config file is a published configuration of TwHIN.

    Raises:
        ConfigError: it cannot be read.
    """
    if path is None:
        return False
    tree = load_config(_AnySections, path)
    return bool(set(tree.model_extra or ()) & {"model", "embeddings", "relations", "train_data"})


class _AnySections(BaseConfig, extra="allow"):
    """Whatever a file has."""


def _without_lr(optimizer: Any) -> Any:
    """The rate of a published algorithm counts where there is no schedule."""
    if not isinstance(optimizer, Mapping):
        return optimizer
    own = {name: dict(value) if isinstance(value, Mapping) else value for name, value in optimizer.items()}
    rates = [value.pop("lr") for value in own.values() if isinstance(value, dict) and "lr" in value]
    return own if "learning_rate" in own or not rates else {**own, "learning_rate": rates[0]}


def prepare_published(published: PublishedConfig, config: TwhinConfig, out: Path) -> dict[str, int]:
    """Make the graph of a published configuration.

    Args:
        published: says where edges are.
        config: the same as ours, with tables and relations.
        out: the folder to write, whole or not at all.

    Returns:
        The number of edges of each split.

    Raises:
        ConfigError: no edges, or a table without a size.
        DataError: a file of edges is not as it should be, or an edge names what is not there.
    """
    require_replaceable(out, PARTS, ["relations.json"])
    if published.train_data is None:
        raise ConfigError("train_data: not given, needed for the edges of a published configuration")
    vocabularies = {node: _vocabulary(config, node) for node in config.node_types}
    sources: dict[Split, PublishedData | None] = {
        "train": published.train_data,
        "validation": published.validation_data,
    }
    counts: dict[str, int] = {}
    with whole_folder(out) as folder:
        (folder / "vocabulary").mkdir()
        for node, ids in vocabularies.items():
            pq.write_table(pa.table({"id": ids}), folder / "vocabulary" / f"{node}.parquet")
        relations = [{"name": r.name, "head": r.head, "tail": r.tail} for r in config.relations]
        write_json(folder / "relations.json", relations)
        heads, tails = (
            np.array([len(vocabularies[getattr(relation, end)]) for relation in config.relations])
            for end in ("head", "tail")
        )
        for split, data in sources.items():
            if data is not None:
                reader = EdgeReader(triple_files(data.data_root), heads, tails)
                counts[split] = _copy(reader, data, folder / f"{SPLITS[split]}.parquet")
    return counts


def _vocabulary(config: TwhinConfig, node: str) -> pa.Array:
    table = config.embeddings.table(node)
    if table.num_embeddings is None:
        raise ConfigError(f"embeddings.tables: found no num_embeddings of {node}, needed for its row numbers")
    ids = read_ids(table.vocab) if table.vocab else pa.array(range(table.num_embeddings))
    if len(ids) != table.num_embeddings:
        raise DataError(f"{table.vocab}: found {len(ids):,} ids, allowed are the {table.num_embeddings:,} of {node}")
    return ids


def _copy(reader: EdgeReader, data: PublishedData, path: Path) -> int:
    """Write the edges that `offset` and `limit` leave."""
    end = None if data.limit is None else data.offset + data.limit
    writer, at, written = None, 0, 0
    try:
        for group in reader.row_groups:
            first, last = max(data.offset - at, 0), group.rows if end is None else min(end - at, group.rows)
            at += group.rows
            if first < last:
                edges = reader.read(group)
                columns = {name: getattr(edges, name) for name in ("lhs", "rel", "rhs", "weight", "time")}
                table = pa.table({name: column[first:last] for name, column in columns.items() if column is not None})
                writer = writer or pq.ParquetWriter(path, table.schema)
                writer.write_table(table)
                written += last - first
    finally:
        if writer is not None:
            writer.close()
    if not written:
        raise DataError(f"{data.data_root}: found no edge after the first {data.offset:,}, allowed is one or more")
    return written


def notes(published: PublishedConfig) -> Sequence[str]:
    """What of a published configuration says nothing here, as lines to print."""
    training = [f"training.{name}" for name in published.training if name not in TRAINING]
    left = [*(["runtime"] if published.runtime else []), *training]
    return [f"note: {', '.join(left)} of the published configuration have no meaning here"] if left else []
