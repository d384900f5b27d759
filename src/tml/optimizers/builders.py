"""From a model and a config for each part of it to one optimizer and one scheduler."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tml.core.errors import ConfigError
from tml.optimizers.config import AdagradConfig, AdamConfig, Algorithm, OptimizerConfig, SgdConfig
from tml.optimizers.grouped import GroupedOptimizer, RateScheduler
from tml.optimizers.groups import assign_groups, find_tables, listed, trainable_parameters, walk
from tml.optimizers.in_backward import InBackward, is_in_backward, require_declared


def build(
    model: nn.Module,
    configs: Mapping[str, OptimizerConfig],
    modules: Mapping[str, str] | None = None,
    rest: str | None = None,
) -> tuple[GroupedOptimizer, RateScheduler]:
    """Build the optimizer and the scheduler of a model whose parts learn in ways of their own.

    Args:
        model: bare or wrapped; frozen parameters are left out. In TorchRec's DistributedModelParallel every rank
            builds; tables updated in backward keep the algorithm that `apply_in_backward` declared.
        configs: algorithm and learning rate by group.
        modules: group by module path (or by name, for a parameter); by default every group is the path that it is
            named after.
        rest: the group of all other parameters; None allows no others.

    Raises:
        ConfigError: a module that the model lacks, a parameter in two groups or without one, nothing to train, or
            momentum for a table with sparse gradients, or another algorithm than a table was declared with.

    Example:
        >>> model = nn.ModuleDict({"users": nn.Embedding(10, 4, sparse=True), "head": nn.Linear(4, 1)})
        >>> optimizer, scheduler = build(model, {
        ...     "users": OptimizerConfig(sgd={}, learning_rate={"constant": 0.01}),
        ...     "head": OptimizerConfig(adam={}, learning_rate={"constant": 0.001}),
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
    groups = assign_groups(aliases.values(), modules, rest)
    for group in groups.keys() - configs.keys():
        raise ConfigError(f"{group}: no learning rate, but there are the parameters {listed(groups[group])}")
    require_declared(model, [name for name, parameter in parameters.items() if not is_in_backward(parameter)])
    sparse = {table.weight for table in find_tables(model).values() if getattr(table, "sparse", False)}
    parts: dict[tuple[Algorithm, bool, bool], list[dict[str, Any]]] = {}
    in_backward: dict[Algorithm, list[dict[str, Any]]] = {}
    for group, config in configs.items():
        kinds: dict[tuple[bool, bool], list[tuple[str, nn.Parameter]]] = {}
        tables: list[tuple[str, nn.Parameter]] = []
        for name in groups.get(group, ()):
            parameter = parameters[name]
            if is_in_backward(parameter):
                tables.append((name, parameter))
                continue
            kind = parameter in sparse, parameter not in sparse and _has_fused(config.algorithm, parameter)
            kinds.setdefault(kind, []).append((name, parameter))
        common = {"lr": config.learning_rate.at(0), "name": group, "schedule": config.learning_rate}
        for kind, named in kinds.items():
            parts.setdefault((config.algorithm, *kind), []).append({"params": named, **common})
        if tables:
            in_backward.setdefault(config.algorithm, []).append({"params": tables, **common})
    optimizer = GroupedOptimizer(
        [_make(*kind, entries) for kind, entries in parts.items()]
        + [InBackward(model, algorithm, entries) for algorithm, entries in in_backward.items()]
    )
    return optimizer, RateScheduler(optimizer)


def _require_present(model: nn.Module, modules: Mapping[str, str]) -> None:
    present: set[str] = set()
    for path, module in walk(model):
        present |= {path} | {f"{path}.{name}" if path else name for name in module._parameters}
    absent = [path for path in modules if path not in present]
    if absent:
        raise ConfigError(f"learning rates for {', '.join(absent)}, which the model lacks")


def _has_fused(algorithm: Algorithm, parameter: nn.Parameter) -> bool:
    devices = ("cpu", "cuda") if isinstance(algorithm, AdagradConfig) else ("cpu", "cuda", "mps")
    return parameter.device.type in devices and parameter.is_floating_point()


def _make(algorithm: Algorithm, sparse: bool, fused: bool, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if isinstance(algorithm, AdamConfig):
        betas, epsilon = (algorithm.beta_1, algorithm.beta_2), algorithm.epsilon
        if sparse:
            return torch.optim.SparseAdam(groups, betas=betas, eps=epsilon)
        return torch.optim.Adam(groups, betas=betas, eps=epsilon, fused=fused)
    if isinstance(algorithm, AdagradConfig):
        start, epsilon = algorithm.initial_accumulator_value, algorithm.epsilon
        return torch.optim.Adagrad(groups, initial_accumulator_value=start, eps=epsilon, fused=fused)
    if isinstance(algorithm, SgdConfig):
        if sparse and algorithm.momentum:
            names = ", ".join(group["name"] for group in groups)
            raise ConfigError(
                f"sgd.momentum of {names}: found {algorithm.momentum}, a table with sparse gradients has 0"
            )
        return torch.optim.SGD(groups, momentum=algorithm.momentum, fused=fused)
    raise TypeError(f"no optimizer for {type(algorithm).__name__}")
