"""Embedding tables beyond one machine: TorchRec's, cut by rows over the ranks that torchrun started.

Each rank has some rows of every table and trains on batches of its own. `begin` fetches the rows of a batch, each once
and all tables in one exchange; `finish` sends their gradients back, where FBGEMM's kernels sum them, divide by the
number of ranks and update the rows at once (`optimizers/in_backward.py`). So gradients are never kept, cannot be summed
over several batches, and see no clipping.

Every exchange is one that all ranks take part in: outside of training, too, they call `read` with as many tables in the
same order. A checkpoint has whole tables, put together by the first rank, and fits any number of ranks.
"""

import os
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from tml.core.distributed import import_torchrec
from tml.core.errors import ConfigError
from tml.core.sharding import is_sharded
from tml.embeddings.engine import TableEngine
from tml.embeddings.local import DataType


class ShardedTables(TableEngine):
    """Named embedding tables of one dimension, sharded by `shard`.

    Args:
        sizes, dim, generator, scale: as of `LocalTables`; each rank draws the first vectors of its own rows.
        types: allowed is fp32 alone.
        frozen: allowed are none.

    Raises:
        ConfigError: TorchRec is not installed, or a table is to be what a kernel that updates in backward cannot be.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        dim: int,
        generator: torch.Generator,
        scale: float = 1.0,
        types: Mapping[str, DataType] | None = None,
        frozen: Collection[str] = (),
    ) -> None:
        super().__init__(sizes, dim)
        refused = {name: f"kept as {kind}" for name, kind in (types or {}).items() if kind != "fp32"}
        for name, found in {**refused, **dict.fromkeys(frozen, "frozen")}.items():
            raise ConfigError(f"embeddings.tables: {name} is {found}, allowed under torchrun is fp32 that learns")
        if dim % 4:
            raise ConfigError(f"embedding_dim: found {dim}, allowed under torchrun are multiples of 4")
        self._device = generator.device
        self._torchrec = import_torchrec("torchrec")
        configs = [
            self._torchrec.EmbeddingConfig(
                name=name,
                embedding_dim=dim,
                num_embeddings=rows,
                feature_names=[name],
                init_fn=_Draw(generator.initial_seed(), number, scale / dim**0.5),
            )
            for number, (name, rows) in enumerate(sizes.items())
        ]
        # On no device: the pieces are made where they belong, and no rank needs room for a whole table.
        self.collection = self._torchrec.EmbeddingCollection(device=torch.device("meta"), tables=configs)
        self._fetched: dict[str, tuple[Tensor, Tensor]] = {}
        self._gradients: dict[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where vectors are read to."""
        return self._device

    def path(self, name: str) -> str:
        """The path of a table's module below this one."""
        return f"collection.embeddings.{name}"

    def learns(self, name: str) -> bool:
        """Whether a table takes gradients: all do."""
        return name in self.sizes

    def begin(self, batch: Mapping[str, Any]) -> None:
        """Fetch the rows of a batch; every rank calls it, each with a batch of its own."""
        unique = {name: read["unique"] for name, read in batch["reads"].items()}
        found = self._look_up(unique)
        none = torch.empty(0, dtype=torch.int64, device=self.device)
        self._fetched = {name: (unique.get(name, none), vectors) for name, vectors in found.items()}

    def read(self, name: str, rows: Tensor | slice) -> Tensor:
        """Vectors of rows, (n,) int64 or a slice, as (n, dimension), without a gradient.

        Between `begin` and `finish` they are of the batch's rows; else every rank calls it.
        """
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(self.sizes[name]), device=self.device)
        if self._fetched:
            unique, vectors = self._fetched[name]
            return vectors.detach().index_select(0, torch.searchsorted(unique, rows))
        # FBGEMM has no kernel for the CPU that works without autograd's dispatch, as in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            return self._look_up({name: rows.clone()})[name]

    @torch.no_grad()
    def write(self, name: str, rows: Tensor | slice, vectors: Tensor) -> None:
        """Put vectors (n, dimension) in the place of those of rows, each one there once; every rank has all of them."""
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(self.sizes[name]), device=self.device)
        table = self.collection.state_dict()[f"embeddings.{name}.weight"]
        assert is_sharded(table), "the model has been sharded"
        for piece in table.local_shards():
            start, size = piece.metadata.shard_offsets[0], piece.metadata.shard_sizes[0]
            here = (rows >= start) & (rows < start + size)
            piece.tensor[rows[here] - start] = vectors[here].to(piece.tensor)

    def add_gradients(self, name: str, rows: Tensor, gradients: Tensor) -> None:
        """Take the gradients of the rows that `begin` fetched, all of them."""
        assert len(rows) == len(self._fetched[name][0])
        before = self._gradients.get(name)
        self._gradients[name] = gradients if before is None else before + gradients

    def finish(self) -> None:
        """Send the gradients to the ranks that have the rows; every rank calls it."""
        vectors = [vectors for _, vectors in self._fetched.values()]
        gradients = [self._gradients.get(name, torch.zeros_like(of)) for name, (_, of) in self._fetched.items()]
        self._fetched, self._gradients = {}, {}
        torch.autograd.backward(vectors, gradients)

    def _look_up(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows of some tables by one exchange."""
        none = torch.empty(0, dtype=torch.int64, device=self.device)
        values = [rows.get(name, none) for name in self.sizes]
        lengths = torch.tensor([len(of_table) for of_table in values], device=self.device)
        wanted = self._torchrec.KeyedJaggedTensor.from_lengths_sync(list(self.sizes), torch.cat(values), lengths)
        found = self.collection(wanted)
        return {name: found[name].values() for name in self.sizes}


class _Draw:
    """Fills in a rank's rows of a table."""

    def __init__(self, seed: int, number: int, deviation: float) -> None:
        self.seed, self.number, self.deviation = seed, number, deviation

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Tensor:
        if rows.is_meta:
            return rows
        mixed = hash((self.seed, self.number, distributed.get_rank())) & (2**63 - 1)
        generator = torch.Generator(rows.device).manual_seed(mixed)
        return rows.normal_(0.0, self.deviation, generator=generator)


def shard(model: nn.Module, path: str) -> nn.Module:
    """Cut the tables of a model by rows over the ranks of the process group, and average its other gradients.

    Args:
        model: all that is trained.
        path: that of its `ShardedTables`.

    Returns:
        The model in TorchRec's DistributedModelParallel.
    """
    tables = model.get_submodule(path)
    assert isinstance(tables, ShardedTables)
    ranks, here = distributed.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", distributed.get_world_size()))
    plans = import_torchrec("torchrec.distributed.sharding_plan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchRec's own, about PyTorch's older interfaces
        plan = plans.construct_module_sharding_plan(
            tables.collection,
            {name: plans.row_wise() for name in tables.sizes},
            local_size=here,
            world_size=ranks,
            device_type=tables.device.type,
        )
        whole = import_torchrec("torchrec.distributed.types").ShardingPlan({f"{path}.collection": plan})
        parallel = import_torchrec("torchrec.distributed.model_parallel").DistributedModelParallel
        sharded: nn.Module = parallel(model, device=tables.device, plan=whole)
    return sharded
