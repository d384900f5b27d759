"""Embedding tables that learn while backward runs, in TorchRec's DistributedModelParallel.

FBGEMM's kernels compute the gradients of the rows of a batch and apply them at once, so a gradient never takes up
memory. `apply_in_backward` declares that before the model is sharded; `build` then finds such tables by themselves and
makes them an `InBackward`, a part of the one optimizer with the same schedules and the same state by parameter name.

What is other than with an ordinary optimizer:
- There is no `.grad`: norms of gradients and clipping do not see these tables, and a gradient that is not finite has
  been applied when it is found.
- Every backward is an update, so gradients cannot be summed over several.
- Adam moves only the rows of a batch, as `torch.optim.SparseAdam` does; its epsilon is added to the corrected root.
  Stochastic gradient descent and both Adagrads leave other rows alone in any case.
"""

import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tml.core.distributed import import_torchrec
from tml.core.errors import ConfigError, DataError, listed
from tml.core.sharding import copy_into, full_shape, is_sharded
from tml.optimizers.config import (
    AdagradConfig,
    AdamConfig,
    Algorithm,
    OptimizerConfig,
    RowwiseAdagradConfig,
    SgdConfig,
)
from tml.optimizers.groups import find_tables, walk
from tml.optimizers.kernels import Table, empty_state, find_kernels, on_all_ranks, sharded_weights
from tml.optimizers.schedules import LearningRate


def apply_in_backward(model: nn.Module, config: OptimizerConfig, tables: Collection[str] | None = None) -> None:
    """Declare that embedding tables are updated in backward; call it before DistributedModelParallel.

    Tables whose rates differ are declared in calls of their own, since those of one call may share a kernel.

    Args:
        model: bare or in a loss, with TorchRec's EmbeddingBagCollection or EmbeddingCollection.
        config: the algorithm, and the rate until `build` sets that of every step.
        tables: paths of tables, or of modules around them; by default all tables of these collections.

    Raises:
        ConfigError: TorchRec is not installed, FBGEMM has no kernel for the algorithm, or a table is not there, is
            frozen, or was declared already.
    """
    modules = import_torchrec("torchrec.modules.embedding_modules")
    collections = modules.EmbeddingBagCollection, modules.EmbeddingCollection
    weights: dict[str, nn.Parameter] = {}
    for path, module in walk(model):
        if isinstance(module, collections):
            weights |= {f"{name}.weight": table.weight for name, table in find_tables(module, path).items()}
    if not weights:
        raise ConfigError("the model has no tables in an EmbeddingBagCollection or EmbeddingCollection to shard")
    chosen = {name: weight for name, weight in weights.items() if tables is None or _is_in(name, tables)}
    for path in tables or ():
        if not any(_is_in(name, [path]) for name in weights):
            raise ConfigError(f"tables: found {path}, which has none of the model's tables {listed(weights)}")
    for name, weight in chosen.items():
        if not weight.requires_grad:
            raise ConfigError(f"embedding table {name}: frozen, but a kernel that updates in backward always does")
        if hasattr(weight, "_in_backward_optimizers"):
            raise ConfigError(f"embedding table {name}: declared twice to be updated in backward, allowed is once")
    settings = _settings(config.algorithm, listed(chosen))
    optimizer = getattr(import_torchrec("torchrec.optim"), _CLASSES[type(config.algorithm)])
    # Where TorchRec's own function points to.
    declare = import_torchrec("torch.distributed.optim")._apply_optimizer_in_backward
    for weight in chosen.values():
        # TorchRec reads `_batch_key` only to keep tables out of one kernel, which has one rate.
        kwargs = {**settings, "lr": config.learning_rate.at(0), "_batch_key": repr(config.learning_rate)}
        declare(optimizer, [weight], kwargs, register_hook=False)


def tables_in_backward(model: nn.Module) -> list[str]:
    """The names of the parameters that are updated in backward, or declared to be."""
    return [
        f"{path}.{name}" if path else name
        for path, module in walk(model)
        for name, parameter in module._parameters.items()
        if is_in_backward(parameter)
    ]


def is_in_backward(parameter: Tensor | None) -> bool:
    """Whether a parameter is updated in backward, or declared to be."""
    return hasattr(parameter, "_in_backward_optimizers")


def require_declared(model: nn.Module, names: Collection[str]) -> None:
    """Refuse parameters of ordinary optimizers that are pieces of a table: each rank's state would be another.

    Raises:
        ConfigError: with the tables that were sharded without being declared.
    """
    dense = sorted(sharded_weights(model).keys() & set(names))
    if dense:
        raise ConfigError(
            f"the tables {listed(dense)} are sharded with TorchRec's dense kernel, allowed are tables declared by"
            " apply_in_backward or sharded data_parallel"
        )


class InBackward(torch.optim.Optimizer):
    """The tables that one algorithm updates in backward, as a part of a `GroupedOptimizer`.

    A kernel reads its rate, and Adam's its step, when it computes embeddings: before each forward it gets the rate
    that its group has then, so a rate set at any time after a step is that of the next one. `step` only counts.

    The state of a table has the names that torch.optim uses, so a checkpoint fits the model that is not sharded, too.
    Its tensors are sharded as the table is.

    Args:
        model: in DistributedModelParallel; every rank makes the same parts in the same order.
        algorithm: what the tables must have been declared with.
        groups: `params` as (name, parameter), `name`, `lr` and `schedule` each.

    Raises:
        ConfigError: a table is not sharded, was declared with another algorithm or settings, shares a kernel with one
            of another schedule, or is cut by columns although its algorithm works on whole rows.
    """

    def __init__(self, model: nn.Module, algorithm: Algorithm, groups: Sequence[dict[str, Any]]) -> None:
        kernels, weights = find_kernels(model), sharded_weights(model)
        schedules = {name: group["schedule"] for group in groups for name, _ in group["params"]}
        _require_sharded(schedules, weights)
        tables = on_all_ranks(kernels)
        for name in schedules:
            _require_fits(name, algorithm, tables[name], schedules, full_shape(weights[name])[0])
        self.title = f"{_CLASSES[type(algorithm)]} (in backward)"
        super().__init__(groups, defaults={})
        prepared = set()
        for group in self.param_groups:
            group["size"] = sum(full_shape(weights[name]).numel() for name in group["param_names"])
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                kernel = kernels.get(name)
                if kernel is not None:
                    state = dict(kernel.states[name])
                    if kernel.module not in prepared:
                        kernel.module.register_forward_pre_hook(_before_forward(self, group, parameter))
                        prepared.add(kernel.module)
                else:
                    state = empty_state(tables[name], weights[name])
                if isinstance(algorithm, AdamConfig | AdagradConfig):
                    state["step"] = torch.tensor(0.0)
                self.state[parameter] = state

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Count a step: the update was in backward."""
        assert closure is None, "GroupedOptimizer has called it"
        for group in self.param_groups:
            for parameter in group["params"]:
                if "step" in self.state[parameter]:
                    self.state[parameter]["step"] += 1

    def load(self, name: str, parameter: Tensor, saved: Mapping[str, Any]) -> None:
        """Take over the state of one table, whose tensors are whole; an empty one starts anew.

        Raises:
            DataError: the state is of another algorithm or of a table of another shape.
        """
        own = self.state[parameter]
        pieces = {key: value for key, value in own.items() if is_sharded(value)}
        if saved and pieces.keys() != saved.keys() - {"step"}:
            found, needed = (", ".join(sorted(keys)) or "nothing" for keys in (saved.keys() - {"step"}, pieces))
            raise DataError(f"the optimizer's state of {name}: found {found}, needed is {needed}")
        for key, piece in pieces.items():
            try:
                copy_into(piece, saved[key] if saved else torch.zeros(full_shape(piece)))
            except ValueError as error:
                raise DataError(f"the optimizer's state {key} of {name}: {error}") from None
        if "step" in own:
            own["step"].fill_(float(saved.get("step", 0)))


def _require_sharded(names: Collection[str], weights: Mapping[str, Any]) -> None:
    unsharded = [name for name in names if name not in weights]
    if unsharded:
        raise ConfigError(
            f"the tables {listed(unsharded)} are declared to be updated in backward but not sharded: build the"
            " optimizer of the DistributedModelParallel"
        )
    for name in names:
        if not hasattr(weights[name], "local_shards"):
            raise ConfigError(
                f"embedding table {name}: sharded as a DTensor, allowed is a ShardingEnv with output_dtensor=False"
            )


def _require_fits(
    name: str, algorithm: Algorithm, table: Table, schedules: Mapping[str, LearningRate], rows: int
) -> None:
    if table.algorithm != algorithm:
        raise ConfigError(f"embedding table {name}: its kernel has {table.algorithm!r}, but its config {algorithm!r}")
    for names in table.together:
        for other in names:
            if schedules.get(other, schedules[name]) != schedules[name]:
                raise ConfigError(
                    f"embedding tables {name} and {other}: found two learning rates for one kernel, declare the tables"
                    " in two calls of apply_in_backward"
                )
    if any(state.size[0] != rows for state in table.states.values()):
        raise ConfigError(
            f"embedding table {name}: cut by columns, but rowwise_adagrad has one rate for a whole row; allowed is to"
            " cut it by rows or not at all"
        )


def _before_forward(
    part: InBackward, group: Mapping[str, Any], parameter: Tensor
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    # Weak, so that a model does not keep the optimizers alive that were once built for it.
    reference = weakref.ref(part)

    def prepare(kernel: Any, _inputs: tuple[Any, ...]) -> None:
        part = reference()
        if part is None:
            return
        kernel.set_learning_rate(float(group["lr"]))
        step = part.state[parameter].get("step")
        if step is not None:
            # Kernels count every forward, those of an evaluation too.
            kernel.iter.fill_(int(step))
            kernel.iter_cpu.fill_(int(step))

    return prepare


# The classes of TorchRec's that stand for the algorithms.
_CLASSES = {SgdConfig: "SGD", AdagradConfig: "Adagrad", RowwiseAdagradConfig: "RowWiseAdagrad", AdamConfig: "Adam"}


def _settings(algorithm: Algorithm, names: str) -> dict[str, float]:
    """What TorchRec hands to FBGEMM."""
    if isinstance(algorithm, SgdConfig) and algorithm.momentum == 0:
        return {}
    if isinstance(algorithm, AdagradConfig) and algorithm.initial_accumulator_value == 0:
        return {"eps": algorithm.epsilon}
    if isinstance(algorithm, RowwiseAdagradConfig):
        return {"eps": algorithm.epsilon}
    if isinstance(algorithm, AdamConfig) and torch.cuda.is_available():
        return {"beta1": algorithm.beta_1, "beta2": algorithm.beta_2, "eps": algorithm.epsilon}
    raise ConfigError(
        f"embedding tables {names}: found {algorithm!r}, allowed in backward are sgd without momentum, adagrad"
        " that starts at 0, rowwise_adagrad, and on CUDA adam"
    )


def _is_in(name: str, paths: Collection[str]) -> bool:
    return any(f"{name}.".startswith(f"{path}.") for path in paths)
