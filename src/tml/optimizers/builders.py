"""From a model and a config for each part of it to one optimizer and one scheduler."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from tml.core.errors import ConfigError, listed
from tml.optimizers.averaging import WeightAverage, floating_buffers
from tml.optimizers.config import (
    AdagradConfig,
    AdamConfig,
    AdamWConfig,
    Algorithm,
    AverageConfig,
    MuonConfig,
    OptimizerConfig,
    RowwiseAdagradConfig,
    SgdConfig,
)
from tml.optimizers.grouped import GroupedOptimizer
from tml.optimizers.groups import assign_groups, find_tables, trainable_parameters, walk
from tml.optimizers.in_backward import InBackward, is_in_backward, require_declared
from tml.optimizers.row_updates import RowOptimizer
from tml.optimizers.rowwise_adagrad import RowwiseAdagrad
from tml.optimizers.scheduler import RateScheduler
from tml.optimizers.weight_decay import without_decay


def build(
    model: nn.Module,
    configs: Mapping[str, OptimizerConfig],
    modules: Mapping[str, str] | None = None,
    rest: str | None = None,
    clip_gradient_norm: float | None = None,
    average: AverageConfig | None = None,
) -> tuple[GroupedOptimizer, RateScheduler]:
    """Build the optimizer and the scheduler of a model whose parts learn in ways of their own.

    Args:
        model: bare or wrapped; frozen parameters are left out. In TorchRec's DistributedModelParallel every rank
            builds; tables updated in backward keep the algorithm that `apply_in_backward` declared.
        configs: algorithm, learning rate, weight decay and clipping by group.
        modules: group by module path (or by name, for a parameter); by default every group is the path that it is
            named after.
        rest: the group of all other parameters; None allows no others.
        clip_gradient_norm: the largest norm of the gradient of all groups together.
        average: keeps averaged weights, if given.

    Raises:
        ConfigError: a module that the model lacks, a parameter in two groups or without one or of a lazy module that
            has seen no batch, nothing to train, or an algorithm that a parameter cannot have.

    Example:
        >>> model = nn.ModuleDict({"users": nn.Embedding(10, 4, sparse=True), "head": nn.Linear(4, 1)})
        >>> optimizer, scheduler = build(model, {
        ...     "users": OptimizerConfig(rowwise_adagrad={}, learning_rate=0.01),
        ...     "head": OptimizerConfig(adam={}, learning_rate=0.001),
        ... })
        >>> [group["name"] for group in optimizer.param_groups]
        ['users', 'head']
    """
    modules = {name: name for name in configs} if modules is None else modules
    aliases = trainable_parameters(model)
    _require_present(model, modules)
    parameters = {names[0]: parameter for parameter, names in aliases.items()}
    if not parameters:
        raise ConfigError("the model has no trainable parameters")
    lazy = [name for name, parameter in parameters.items() if is_lazy(parameter)]
    if lazy:
        raise ConfigError(f"the parameters {listed(lazy)} have no shape yet: run a batch through the model first")
    groups = assign_groups(aliases.values(), modules, rest)
    for group in groups.keys() - configs.keys():
        raise ConfigError(f"{group}: no learning rate, but there are the parameters {listed(groups[group])}")
    require_declared(model, [name for name, parameter in parameters.items() if not is_in_backward(parameter)])
    tables = {table.weight: getattr(table, "sparse", False) for table in find_tables(model).values()}
    plan = _Plan(model, set(tables), {weight for weight, sparse in tables.items() if sparse})
    for group, config in configs.items():
        named = [(name, parameters[name]) for name in groups.get(group, ())]
        plan.add(group, config, named, without_decay(model, config.no_weight_decay))
    kept = None
    if average is not None:
        by_row = plan.sparse | {parameter for parameter in tables if is_in_backward(parameter)}
        dense = {name: parameter for name, parameter in parameters.items() if parameter not in by_row}
        kept = WeightAverage(dense, floating_buffers(walk(model)), average.decay)
    others = {other: first for first, *more in aliases.values() for other in more}
    optimizer = GroupedOptimizer(plan.optimizers(), clip_gradient_norm, kept, others)
    return optimizer, RateScheduler(optimizer)


@dataclass(frozen=True)
class _Kernel:
    """What parameters must share to be updated by one optimizer of torch."""

    algorithm: Algorithm
    sparse: bool = False
    fused: bool = False
    in_backward: bool = False


class _Plan:
    """Sorts parameters by kernel; `tables` are embedding tables, and `sparse` those of them with sparse gradients."""

    def __init__(self, model: nn.Module, tables: set[nn.Parameter], sparse: set[nn.Parameter]) -> None:
        self.model, self.tables, self.sparse = model, tables, sparse
        self.groups: dict[_Kernel, list[dict[str, Any]]] = {}

    def add(
        self,
        group: str,
        config: OptimizerConfig,
        named: Iterable[tuple[str, nn.Parameter]],
        without_decay: set[nn.Parameter | None],
    ) -> None:
        """Add a group; parameters `without_decay` become an entry of their own."""
        kinds: dict[tuple[_Kernel, bool], list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in named:
            decays = _decays(config) and parameter not in without_decay
            kernel = self._kernel(group, config.algorithm, name, parameter)
            if (kernel.sparse or kernel.in_backward) and decays:
                how = "updated in backward" if kernel.in_backward else "with sparse gradients"
                raise ConfigError(
                    f"weight_decay of {group}: found {name}, a table {how}, which has none; "
                    "add embeddings to no_weight_decay"
                )
            if kernel.in_backward and config.clip_gradient_norm is not None:
                raise ConfigError(
                    f"clip_gradient_norm of {group}: found {name}, a table updated in backward, whose gradient is "
                    "never there to be clipped"
                )
            kinds.setdefault((kernel, decays), []).append((name, parameter))
        for (kernel, decays), members in kinds.items():
            entry: dict[str, Any] = {"params": members, "name": group, "schedule": config.learning_rate}
            entry |= {"lr": config.learning_rate.at(0), "clip_gradient_norm": config.clip_gradient_norm}
            if not kernel.sparse and not kernel.in_backward:
                entry["weight_decay"] = config.weight_decay.at(0) if decays else 0.0
            if decays:
                entry["weight_decay_schedule"] = config.weight_decay
            self.groups.setdefault(kernel, []).append(entry)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """One optimizer for each kernel; those that run in backward come last."""
        return [
            InBackward(self.model, kernel.algorithm, groups) if kernel.in_backward else _make(kernel, groups)
            for kernel, groups in sorted(self.groups.items(), key=lambda item: item[0].in_backward)
        ]

    def _kernel(self, group: str, algorithm: Algorithm, name: str, parameter: nn.Parameter) -> _Kernel:
        if is_in_backward(parameter):
            return _Kernel(algorithm, in_backward=True)
        sparse = parameter in self.sparse
        if isinstance(algorithm, MuonConfig):
            if sparse:
                raise ConfigError(f"muon of {group}: found {name}, a table with sparse gradients; allowed are others")
            if parameter.ndim != 2 or 1 in parameter.shape or parameter in self.tables:
                algorithm = algorithm.others
        if isinstance(algorithm, SgdConfig) and sparse and algorithm.momentum:
            raise ConfigError(
                f"sgd.momentum of {group}: found {algorithm.momentum}, a table with sparse gradients has 0"
            )
        if isinstance(algorithm, RowwiseAdagradConfig) and parameter.ndim < 2:
            raise ConfigError(
                f"rowwise_adagrad of {group}: found {name} of shape {tuple(parameter.shape)}; allowed are tables"
            )
        return _Kernel(algorithm, sparse, not sparse and _is_fused(algorithm, parameter))


def _decays(config: OptimizerConfig) -> bool:
    return config.weight_decay.constant != 0


def _require_present(model: nn.Module, modules: Mapping[str, str]) -> None:
    present: set[str] = set()
    for path, module in walk(model):
        present |= {path} | {f"{path}.{name}" if path else name for name in module._parameters}
    absent = [path for path in modules if path not in present]
    if absent:
        raise ConfigError(f"learning rates for {', '.join(absent)}, which the model lacks")


def _is_fused(algorithm: Algorithm, parameter: nn.Parameter) -> bool:
    if isinstance(algorithm, MuonConfig | RowwiseAdagradConfig) or not algorithm.fused:
        return False
    devices = ("cpu", "cuda") if isinstance(algorithm, AdagradConfig) else ("cpu", "cuda", "mps")
    return parameter.device.type in devices and parameter.is_floating_point()


def _make(kernel: _Kernel, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    algorithm = kernel.algorithm
    if kernel.sparse and not isinstance(algorithm, RowwiseAdagradConfig):
        return RowOptimizer(groups, algorithm)
    if isinstance(algorithm, AdamConfig | AdamWConfig):
        betas, epsilon = (algorithm.beta_1, algorithm.beta_2), algorithm.epsilon
        kind = torch.optim.AdamW if isinstance(algorithm, AdamWConfig) else torch.optim.Adam
        return kind(groups, betas=betas, eps=epsilon, fused=kernel.fused)
    if isinstance(algorithm, AdagradConfig):
        start, epsilon = algorithm.initial_accumulator_value, algorithm.epsilon
        return torch.optim.Adagrad(groups, initial_accumulator_value=start, eps=epsilon, fused=kernel.fused)
    if isinstance(algorithm, RowwiseAdagradConfig):
        return RowwiseAdagrad(groups, eps=algorithm.epsilon)
    if isinstance(algorithm, SgdConfig):
        return torch.optim.SGD(groups, momentum=algorithm.momentum, nesterov=algorithm.nesterov, fused=kernel.fused)
    return torch.optim.Muon(
        groups,
        momentum=algorithm.momentum,
        nesterov=algorithm.nesterov,
        ns_steps=algorithm.newton_schulz_steps,
        eps=algorithm.epsilon,
        adjust_lr_fn=algorithm.adjust_learning_rate,
    )
