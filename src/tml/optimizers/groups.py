"""Which group each parameter belongs to: decided by the module that it is in, never by a piece of its name.

A module is found by its path, as `towers.is_replied`; it has the parameters whose names go on from that path by whole
components, so `towers.is_replied` has nothing of `towers.is_replied_reply_engaged_by_author`. Where one such module is
inside another, the inner one decides. A parameter that several modules share has several names; it belongs to the one
group among them, and to two groups it cannot belong. Paths are those of the bare model: DistributedDataParallel,
`torch.compile` and TorchRec's DistributedModelParallel add nothing to them, wherever they are.
"""

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from tml.core.distributed import unwrap
from tml.core.errors import ConfigError, listed


def assign_groups(
    names: Iterable[Sequence[str]], modules: Mapping[str, str], rest: str | None = None
) -> dict[str, list[str]]:
    """Put every parameter into exactly one group.

    Args:
        names: for each parameter all its names; the first one stands for it.
        modules: group by module path; a parameter's own name is a path too, and the model's is empty.
        rest: the group of the parameters that are in none of these modules.

    Returns:
        Parameter names by group, in the order given; a group without parameters is left out.

    Raises:
        ConfigError: parameters in two groups, or in none while there is no `rest`.

    Example:
        >>> assign_groups([["a.weight"], ["ab.weight"]], {"a": "first"}, rest="others")
        {'first': ['a.weight'], 'others': ['ab.weight']}
    """
    groups: dict[str, list[str]] = {}
    nowhere = []
    for aliases in names:
        found = sorted({group for name in aliases if (group := _innermost(name, modules)) is not None})
        if len(found) > 1:
            raise ConfigError(f"parameter {aliases[0]}: found in {' and '.join(found)}, allowed is one group")
        group = found[0] if found else rest
        if group is None:
            nowhere.append(aliases[0])
        else:
            groups.setdefault(group, []).append(aliases[0])
    if nowhere:
        raise ConfigError(f"no learning rate for the parameters {listed(nowhere)}, only for {listed(modules)}")
    return groups


def _innermost(name: str, modules: Mapping[str, str]) -> str | None:
    path = name
    while path not in modules:
        if not path:
            return None
        path = path.rpartition(".")[0]
    return modules[path]


def trainable_parameters(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Every parameter that is not frozen, with all names that it has in the bare model."""
    names: dict[nn.Parameter, list[str]] = {}
    for path, module in walk(model):
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                names.setdefault(parameter, []).append(_join(path, name))
    return names


def find_towers(model: nn.Module) -> dict[str, str]:
    """Module path by task, from the model's `towers: nn.ModuleDict`, whose keys are task names with `/` for `.`.

    The outermost `towers` counts. A model without one has no towers.

    Raises:
        ConfigError: two different `towers` equally far out, or a list of them, which has no task names.
    """
    named = {path: module for path, module in walk(model) if path.rpartition(".")[2] == "towers"}
    found = {path: module for path, module in named.items() if isinstance(module, nn.ModuleDict)}
    for path, module in named.items():
        if isinstance(module, nn.ModuleList) and not found:
            raise ConfigError(f"{path}: found a ModuleList, allowed is a ModuleDict, a tower by its task's name")
    depth = min((path.count(".") for path in found), default=0)
    outermost = {module: path for path, module in found.items() if path.count(".") == depth}
    if len(outermost) > 1:
        raise ConfigError(f"the model has several sets of towers, {' and '.join(outermost.values())}; allowed is one")
    return {key.replace("/", "."): f"{path}.{key}" for towers, path in outermost.items() for key in towers}


def find_tables(model: nn.Module, prefix: str = "") -> dict[str, Any]:
    """The embedding tables by module path: each has a `weight`; `prefix` is the model's own path.

    They are `nn.Embedding` and `nn.EmbeddingBag`, alone or in a collection of TorchRec's, and what
    DistributedModelParallel has made of them.
    """
    tables: dict[str, Any] = {}
    for path, module in walk(model, prefix):
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            tables[path] = module
        elif is_sharded_collection(module):
            tables |= {name: table for name, table in walk(module, path) if "weight" in table._parameters}
    return tables


def is_sharded_collection(module: nn.Module) -> bool:
    """Whether TorchRec has sharded this collection of embedding tables."""
    # Where a class was never imported nothing can be of it; TorchRec need not be installed.
    classes = (("embeddingbag", "ShardedEmbeddingBagCollection"), ("embedding", "ShardedEmbeddingCollection"))
    loaded = ((sys.modules.get(f"torchrec.distributed.{name}"), class_name) for name, class_name in classes)
    return any(source is not None and isinstance(module, getattr(source, class_name)) for source, class_name in loaded)


def walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module with its path in the bare model; a shared one once for each path to it."""
    module = unwrap(module)
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from walk(child, _join(path, name))


def require_same_tasks(configured: Collection[str], present: Collection[str]) -> None:
    """Refuse learning rates for other tasks than the model has towers for.

    Raises:
        ConfigError: with the tasks that are on one side only.
    """
    without_tower = sorted(set(configured) - set(present))
    if without_tower:
        has = f"has towers for {', '.join(sorted(present))}" if present else "has no towers"
        raise ConfigError(f"tower_learning_rates: found {', '.join(without_tower)}, but the model {has}")
    without_rate = sorted(set(present) - set(configured))
    if without_rate:
        raise ConfigError(
            f"tower_learning_rates: no rate for {', '.join(without_rate)}, which the model has towers for"
        )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
