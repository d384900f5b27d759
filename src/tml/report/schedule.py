"""Every group's learning rate over the steps of a training, before any of it is trained.

A plan prints itself as a table whose bars follow each rate over the steps; `schedule_picture` draws it.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table

from tml.core.config import BaseConfig, load_config
from tml.core.errors import ConfigError
from tml.optimizers.config import OptimizerConfig
from tml.optimizers.schedules import LearningRate
from tml.projects.home.recap.names import plain_name
from tml.projects.home.recap.optimizer import RecapOptimizerConfig
from tml.projects.home.recap.optimizer.optimizer import BACKBONE, EMBEDDINGS, MODEL
from tml.projects.home.recap.train import RecapConfig, default_optimizer

BLOCKS = " ▁▂▃▄▅▆▇█"
MOST_BARS, LEAST_BARS = 60, 16
LONGEST_WORDS, GAP = 48, 2
"""Characters that a schedule in words has in a line at most, and that stand between two columns."""
WIDE = 120
"""Characters of a line that has room for what each schedule is in words."""
LOG_FROM = 10
"""Peaks that differ by more than this factor are drawn on a logarithmic scale."""
LOWEST = 1e-300
"""Where a logarithmic scale begins at the lowest."""
LEAST_STEPS, ASSUMED_STEPS = 100, 1_000
MARGIN = 1.25
"""How much further than the last change of any schedule is looked, where no number of steps is given."""


@dataclass(frozen=True)
class Line:
    """The groups that share a schedule, and its rates at the start, at the highest and at the end of the plan."""

    groups: tuple[str, ...]
    schedule: LearningRate
    start: float
    peak: float
    end: float


@dataclass(frozen=True)
class Scale:
    """From rates to heights: linear from 0, or logarithmic from `low`, to `high`."""

    low: float
    high: float
    log: bool

    def share(self, rate: float) -> float:
        """How high a rate is, from 0 at `low` or below to 1 at `high`."""
        if rate <= self.low or self.high <= self.low:
            return 0.0
        if self.log:
            # Logarithms apart, since a quotient of rates may be beyond the largest number.
            return (math.log(rate) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (rate - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Plan:
    """The learning rates of a training.

    Attributes:
        name: what it is the plan of.
        rates: group of parameters → its schedule; a tower's group is called as its task. A weight decay that follows
            the step has a schedule here too.
        towers: the groups that are towers.
        steps: how far it goes.
        about: that in words, with what was assumed.
    """

    name: str
    rates: Mapping[str, LearningRate]
    towers: tuple[str, ...]
    steps: int
    about: str

    @property
    def title(self) -> str:
        """One line; what was assumed stands in `about`."""
        return f"Learning rates of {self.name}"

    @cached_property
    def lines(self) -> list[Line]:
        """Groups by their schedules, in the order of the config."""
        shared: dict[LearningRate, list[str]] = {}
        for group, schedule in self.rates.items():
            shared.setdefault(schedule, []).append(group)
        return [self._line(schedule, groups) for schedule, groups in shared.items()]

    def _line(self, schedule: LearningRate, groups: list[str]) -> Line:
        # Between its joints a rate only rises or falls, so it is highest at one of them or at an end.
        turns = {0, self.steps, *(step for step in schedule.joints if step < self.steps)}
        peak = max(schedule.at(step) for step in turns)
        return Line(tuple(groups), schedule, schedule.at(0), peak, schedule.at(self.steps))

    @cached_property
    def scale(self) -> Scale:
        """One scale for all groups, so that their heights can be compared."""
        peaks = [line.peak for line in self.lines if line.peak > 0]
        if not peaks or max(peaks) <= LOG_FROM * min(peaks):
            return Scale(0.0, max(peaks, default=0.0), log=False)
        # Ten times below the lowest peak, rounded down to a power of ten, so that its ramp is seen too.
        low = 10.0 ** (math.floor(math.log10(min(peaks))) - 1)
        return Scale(max(low, LOWEST), max(peaks), log=True)

    def names(self, line: Line) -> str:
        """The groups of a line in plain words."""
        others = [group for group in line.groups if group not in self.towers]
        if len(self.towers) > 2 and set(self.towers) <= set(line.groups):
            return " and ".join([*others, f"all {len(self.towers)} towers"])
        return ", ".join(group if group in others else plain_name(group) for group in line.groups)

    def bars(self, line: Line, width: int) -> str:
        """The rate at `width` steps from the first to the last, a block each; nothing where it is below the scale."""
        shares = [self.scale.share(line.schedule.at(self.steps * i // (width - 1))) for i in range(width)]
        return "".join(BLOCKS[math.ceil(min(share, 1.0) * (len(BLOCKS) - 1))] for share in shares)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield schedule_table(self, options.max_width)


class OptimizerFile(BaseConfig):
    """A file with the published structure, of which only the optimizer counts, or with nothing but that section."""

    model_config = ConfigDict(extra="ignore")

    optimizer: RecapOptimizerConfig | None = None
    multi_task_learning_rates: Any = None
    single_task_learning_rate: Any = None


def load_optimizer(path: Path, overrides: Sequence[str] = ()) -> RecapOptimizerConfig | None:
    """The optimizer's config in a file that has an `optimizer` section or is one; None where it is neither.

    Raises:
        ConfigError: what is wrong with it.
    """
    file = load_config(OptimizerFile, path, overrides)
    if file.multi_task_learning_rates is None and file.single_task_learning_rate is None:
        return file.optimizer
    return load_config(RecapOptimizerConfig, path, overrides)


def learning_rates(config: RecapOptimizerConfig) -> dict[str, LearningRate]:
    """Group of parameters → its learning rate; the backbone first, then towers by task, or only the model."""
    rates = config.multi_task_learning_rates
    if rates is None:
        assert config.single_task_learning_rate is not None  # exactly one of the two is set
        return {MODEL: config.single_task_learning_rate}
    backbone = rates.backbone_learning_rate
    return ({} if backbone is None else {BACKBONE: backbone}) | dict(rates.tower_learning_rates)


def weight_decays(config: RecapOptimizerConfig) -> dict[str, LearningRate]:
    """The weight decays that follow the step, under names that say whose they are; groups that share one as one."""
    groups: dict[LearningRate, list[str]] = {}
    for group, rate in learning_rates(config).items():
        decay = config.of_group(group, rate).weight_decay
        if decay.constant is None:
            groups.setdefault(decay, []).append(plain_name(group))
    alone = len(groups) == 1
    return {"weight decay" if alone else f"weight decay of {', '.join(names)}": d for d, names in groups.items()}


def plan_of_optimizer(
    config: RecapOptimizerConfig, name: str, steps: int | None = None, embeddings: OptimizerConfig | None = None
) -> Plan:
    """The plan of an optimizer's config.

    Args:
        config: with the schedules.
        name: what the plan is called.
        steps: how far to look; by default a quarter further than the last change of any schedule.
        embeddings: the config of the embedding tables, where they have one of their own.

    Raises:
        ConfigError: there is no group of parameters.
    """
    if not learning_rates(config):
        raise ConfigError(f"{name}: found no learning rate, neither of the backbone nor of a tower")
    rates = learning_rates(config)
    if embeddings is not None:
        rates[EMBEDDINGS] = embeddings.learning_rate
    rates |= weight_decays(config)
    if embeddings is not None and embeddings.weight_decay.constant is None:
        rates[f"weight decay of {EMBEDDINGS}"] = embeddings.weight_decay
    if steps is None:
        steps = max(LEAST_STEPS, *(math.ceil(MARGIN * rate.horizon) for rate in rates.values()))
    towers = config.multi_task_learning_rates.tower_learning_rates if config.multi_task_learning_rates else {}
    return Plan(name, rates, tuple(towers), steps, _counted(steps))


def plan_of_ranker(config: RecapConfig, tasks: Collection[str], name: str, steps: int | None = None) -> Plan:
    """The plan of a ranker's training, which fits its schedules to the number of steps where it is given none.

    Args:
        config: the ranker's.
        tasks: its tasks.
        name: what the plan is called.
        steps: how long to train, if not as the config says.
    """
    given = steps or config.training.num_steps
    if config.optimizer is not None:
        return plan_of_optimizer(config.optimizer, name, given, config.embedding_optimizer)
    fitted = given or ASSUMED_STEPS
    about = f"the default schedules, fitted to {_counted(fitted)}"
    if given is None:
        about += ", an assumption: neither --steps nor recap.training.num_steps says how many"
    plan = plan_of_optimizer(default_optimizer(tasks, fitted), name, fitted, config.embedding_optimizer)
    return replace(plan, about=about)


def _counted(steps: int) -> str:
    return f"{steps:,} step{'s' * (steps != 1)}"


def schedule_table(plan: Plan, width: int) -> Table:
    """A row for each schedule, no wider than `width` characters: groups, rates, and bars over the steps."""
    names = [plan.names(line) for line in plan.lines]
    rates = [tuple(rate_text(rate) for rate in (line.start, line.peak, line.end)) for line in plan.lines]
    words = [described(line.schedule) for line in plan.lines] if width >= WIDE else []
    table = Table(
        title=f"{escape(plan.title)}: {escape(plan.about)}",
        caption=_legend(plan.scale),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, GAP - 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("group")
    for heading in ("start", "peak", "end"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(f"steps 0 to {plan.steps:,}", no_wrap=True, style="cyan")
    if words:
        table.add_column("schedule", style="dim")
    # Bars get what the others leave; long names and descriptions rather go on in the next line.
    others = [
        min(width * 3 // 8, max(map(len, names))),
        *(max(5, *map(len, column)) for column in zip(*rates, strict=True)),
    ]
    others += [min(LONGEST_WORDS, max(map(len, words)))] if words else []
    bars = max(LEAST_BARS, min(MOST_BARS, width - sum(others) - GAP * (len(others) + 1)))
    for number, line in enumerate(plan.lines):
        table.add_row(
            escape(names[number]), *rates[number], plan.bars(line, bars), *map(escape, words[number : number + 1])
        )
    return table


def rate_text(rate: float) -> str:
    """A rate with four digits."""
    return f"{rate:.4g}"


def described(schedule: LearningRate) -> str:
    """A schedule in words."""
    return str(schedule) if schedule.constant is None else f"constant {schedule.constant:g}"


def _legend(scale: Scale) -> str:
    if scale.log:
        return f"bars: logarithmic, from {scale.low:g} to {scale.high:g}; blank below"
    return f"bars: linear, from 0 to {scale.high:g}; blank at 0"
