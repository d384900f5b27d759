"""`build_optimizer`: the optimizer of a multi-task ranker.

Each tower, the backbone and, where asked for, the embedding tables learn at rates of their own:

    optimizer, scheduler = build_optimizer(model, optimizer_config)   # as published
    built = build_optimizer(model)                                    # default rates
    build_optimizer(algorithm).train()                                # a model of your own, with its batches

A tower is a module of the model's `towers: nn.ModuleDict`, whose keys are task names with `/` for `.`; everything else
is the backbone. Groups are named after their tasks, and `backbone`, `embeddings` or, with a single rate, `model`.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn

from tml.core.config import parse_config
from tml.core.distributed import unwrap
from tml.core.errors import ConfigError, listed
from tml.core.training import Callback, TrainingConfig, TrainResult, TrainState, train
from tml.optimizers.builders import build
from tml.optimizers.config import OptimizerConfig
from tml.optimizers.grouped import GroupedOptimizer
from tml.optimizers.groups import find_tables, find_towers, require_same_tasks
from tml.optimizers.in_backward import tables_in_backward
from tml.optimizers.scheduler import RateScheduler
from tml.projects.home.recap.optimizer.config import RecapOptimizerConfig, default_config

BACKBONE, EMBEDDINGS, MODEL = "backbone", "embeddings", "model"


@runtime_checkable
class RecommendationAlgorithm(Protocol):
    """A `torch.nn.Module` that brings its own training data."""

    def __call__(self, batch: Any) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The loss of a batch, a scalar tensor, or (loss, outputs): what `nn.Module` makes of `forward`."""
        ...

    def training_batches(self) -> Iterable[Any]:
        """One pass over the training data: tensors, or dicts, lists or tuples of them."""
        ...


class _Pair(NamedTuple):
    optimizer: GroupedOptimizer
    scheduler: RateScheduler


class BuiltOptimizer(_Pair):
    """The pair (optimizer, scheduler), which can also train the model that it was built for."""

    model: nn.Module

    def train(
        self,
        batches: Iterable[Any] | None = None,
        steps: int | None = None,
        callbacks: Sequence[Callback] = (),
        accumulate_batches: int = 1,
    ) -> TrainResult:
        """Train the model.

        Args:
            batches: what the model's forward takes; by default the model's own `training_batches()`.
            steps: how many steps, with as many passes over the batches as that takes; by default one pass.
            callbacks: called after every step with the state and what was measured.
            accumulate_batches: batches a step, whose gradients are averaged as those of one large batch.

        Returns:
            Steps, seconds and the latest metrics, such as `train/loss`.

        Raises:
            ConfigError: there are no batches: none given, and the model does not offer any; or a number of steps or of
                batches a step that is not at least 1.
            UserError: the loss is not finite.
        """
        for name, number in {"steps": steps, "accumulate_batches": accumulate_batches}.items():
            if number is not None and (type(number) is not int or number < 1):
                raise ConfigError(f"{name}: found {number!r}, allowed is a whole number of at least 1")
        if batches is not None:
            source: Callable[[], Iterable[Any]] = functools.partial(iter, batches)
        else:
            algorithm = unwrap(self.model)
            if not isinstance(algorithm, RecommendationAlgorithm):
                name = type(algorithm).__name__
                raise ConfigError(f"no training batches: give train(batches=...) or {name} a training_batches() method")
            source = algorithm.training_batches
        state = TrainState(self.model, self.optimizer, self.scheduler, source() if steps is None else _passes(source))
        config = TrainingConfig(num_steps=steps, accumulate_batches=accumulate_batches)
        return train(state, config, callbacks=callbacks)


def build_optimizer(
    model: nn.Module,
    optimizer_config: RecapOptimizerConfig | Mapping[str, Any] | None = None,
    emb_optimizer_config: OptimizerConfig | Mapping[str, Any] | None = None,
) -> BuiltOptimizer:
    """Build the optimizer and the learning-rate scheduler of a ranker.

    Args:
        model: any module, bare or wrapped in a loss, in DistributedDataParallel, in TorchRec's
            DistributedModelParallel or by `torch.compile`. Frozen parameters are left out.
        optimizer_config: a config, or a mapping of its fields as YAML gives it; by default the published rates, or a
            single one where the model has no towers.
        emb_optimizer_config: algorithm and rate of all `nn.Embedding` and `nn.EmbeddingBag` tables, also those of
            TorchRec's collections; by default they learn with the module that they are in. Needed where tables are
            updated in backward, and then with the algorithm given to `apply_in_backward`.

    Returns:
        A tuple (optimizer, scheduler); call `scheduler.step()` after each `optimizer.step()`, or only `train()`.

    Raises:
        ConfigError: a rate for a tower that the model lacks, a tower, a backbone or a table updated in backward
            without one, a parameter in two towers, or an algorithm that a parameter cannot have; with the names.

    Example:
        >>> model = nn.ModuleDict({"backbone": nn.Linear(4, 2), "towers": nn.ModuleDict({"is_click": nn.Linear(2, 1)})})
        >>> optimizer, scheduler = build_optimizer(model)
        >>> [group["name"] for group in optimizer.param_groups]
        ['backbone', 'is_click']
    """
    if isinstance(optimizer_config, Mapping):
        optimizer_config = parse_config(RecapOptimizerConfig, dict(optimizer_config), "optimizer_config")
    if isinstance(emb_optimizer_config, Mapping):
        emb_optimizer_config = parse_config(OptimizerConfig, dict(emb_optimizer_config), "emb_optimizer_config")
    towers = find_towers(model)
    config = optimizer_config or default_config(towers)
    configs: dict[str, OptimizerConfig] = {}
    modules: dict[str, str] = {}
    rates = config.multi_task_learning_rates
    if rates is None:
        rest = MODEL
        assert config.single_task_learning_rate is not None  # exactly one of the two is set
        configs[MODEL] = config.of_group(MODEL, config.single_task_learning_rate)
    else:
        rest = BACKBONE
        _require_distinct(towers)
        require_same_tasks(rates.tower_learning_rates, towers)
        if rates.backbone_learning_rate is not None:
            configs[BACKBONE] = config.of_group(BACKBONE, rates.backbone_learning_rate)
        for task, rate in rates.tower_learning_rates.items():
            configs[task] = config.of_group(task, rate)
            modules[towers[task]] = task
    for group in config.groups.keys() - configs.keys():
        raise ConfigError(f"groups: found {group}, allowed are {', '.join(configs)}")
    if emb_optimizer_config is not None:
        tables = find_tables(model)
        if not tables:
            raise ConfigError("emb_optimizer_config: given, but the model has no embedding tables")
        configs[EMBEDDINGS] = emb_optimizer_config
        modules |= dict.fromkeys(tables, EMBEDDINGS)
    elif in_backward := tables_in_backward(model):
        raise ConfigError(
            f"no learning rate for the tables {listed(in_backward)}, which are updated in backward: give "
            "emb_optimizer_config"
        )
    built = BuiltOptimizer(*build(model, configs, modules, rest, config.clip_gradient_norm, config.average))
    built.model = model
    return built


def _require_distinct(tasks: Iterable[str]) -> None:
    taken = {BACKBONE, EMBEDDINGS} & set(tasks)
    if taken:
        raise ConfigError(f"towers: found {' and '.join(sorted(taken))}, a name that a group of parameters has already")


def _passes(source: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """Pass after pass, until one gives nothing."""
    while True:
        empty = True
        for batch in source():
            empty = False
            yield batch
        if empty:
            return
