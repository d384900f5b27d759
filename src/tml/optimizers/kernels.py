"""What TorchRec has made of a model's embedding tables: pieces on several ranks, and the kernels that update them.

One of FBGEMM's kernels holds the pieces that a rank has of one or more tables, with one algorithm and one rate. A rank
may have no piece of a table; what it must know of it all the same it learns from the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tml.core.sharding import is_sharded
from tml.optimizers.config import AdagradConfig, AdamConfig, Algorithm, RowwiseAdagradConfig, SgdConfig
from tml.optimizers.groups import is_sharded_collection, walk

State = dict[str, Any]
"""Sharded tensors by the names that torch.optim gives them."""


@dataclass(frozen=True)
class Kernel:
    """One kernel on this rank.

    Attributes:
        module: FBGEMM's.
        names: the names of its tables' weights.
        states: the state of each, views of the kernel's own memory.
    """

    module: Any
    names: tuple[str, ...]
    states: Mapping[str, State]

    @property
    def algorithm(self) -> Algorithm | str:
        """The algorithm and its settings; FBGEMM's name of one that has no config here."""
        kind, settings = self.module.optimizer.name, self.module.optimizer_args
        if settings.weight_decay:
            return f"{kind} with weight_decay {settings.weight_decay:g}"
        if kind == "EXACT_SGD":
            return SgdConfig()
        if kind == "EXACT_ADAGRAD":
            return AdagradConfig(epsilon=settings.eps)
        if kind == "EXACT_ROWWISE_ADAGRAD":
            return RowwiseAdagradConfig(epsilon=settings.eps)
        if kind == "ADAM":
            return AdamConfig(beta_1=settings.beta1, beta_2=settings.beta2, epsilon=settings.eps)
        return str(kind)


@dataclass(frozen=True)
class Table:
    """What every rank knows of a table that is updated in backward.

    Attributes:
        algorithm: that of its kernels.
        together: the names in each of its kernels, on all ranks.
        states: how each tensor of its state is cut.
    """

    algorithm: Algorithm | str
    together: tuple[tuple[str, ...], ...]
    states: Mapping[str, Any]


def sharded_weights(model: nn.Module) -> dict[str, Any]:
    """The weights of sharded tables by name, the same names on every rank."""
    weights: dict[str, Any] = {}
    for path, collection in _sharded_collections(model):
        weights |= {_name(path, key): value for key, value in collection.state_dict().items() if is_sharded(value)}
    return weights


def find_kernels(model: nn.Module) -> dict[str, Kernel]:
    """The kernels of this rank, each by the names of its tables' weights."""
    kernels: dict[str, Kernel] = {}
    for path, collection in _sharded_collections(model):
        for _, fused in collection.fused_optimizer.optimizers:
            weights = {_name(path, key): weight for key, weight in fused.params.items()}
            states = {name: _as_torch_names(fused.state[weight]) for name, weight in weights.items()}
            kernels |= dict.fromkeys(weights, Kernel(fused._emb_module, tuple(weights), states))
    return kernels


def on_all_ranks(kernels: Mapping[str, Kernel]) -> dict[str, Table]:
    """The tables of all ranks' kernels by name; every rank calls it."""
    here = {
        name: Table(
            kernel.algorithm, (kernel.names,), {key: value.metadata() for key, value in kernel.states[name].items()}
        )
        for name, kernel in kernels.items()
    }
    ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, here)
    tables: dict[str, Table] = {}
    for rank in ranks:
        for name, table in rank.items():
            together = tables[name].together if name in tables else ()
            tables[name] = Table(table.algorithm, (*together, *table.together), table.states)
    return tables


def empty_state(table: Table, weight: Any) -> State:
    """The state on a rank that has no piece of a table: no tensor, but how the whole is made of the others' pieces."""
    from torch.distributed._shard.sharded_tensor.api import ShardedTensor

    make, group = ShardedTensor._init_from_local_shards_and_global_metadata, weight._process_group
    return {key: make([], metadata, process_group=group) for key, metadata in table.states.items()}


def _sharded_collections(model: nn.Module) -> list[tuple[str, Any]]:
    # One that is shared goes by its first path, as its parameters do.
    found: dict[int, tuple[str, Any]] = {}
    for path, module in walk(model):
        if is_sharded_collection(module):
            found.setdefault(id(module), (path, module))
    return list(found.values())


def _as_torch_names(state: Mapping[str, Any]) -> State:
    # TorchRec calls the first tensor momentum1, whatever it is, and puts the table's name before each.
    keys = {key: key.rpartition(".")[2] for key in state}
    first = "exp_avg" if "exp_avg_sq" in keys.values() else "sum"
    return {first if short == "momentum1" else short: state[key] for key, short in keys.items()}


def _name(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
