"""The optimizer of TwHIN: one for the tables, each at its own algorithm and rate, and the relations' operators."""

from tml.optimizers.builders import build
from tml.optimizers.grouped import GroupedOptimizer
from tml.optimizers.scheduler import RateScheduler
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.model import TwhinModel


def build_optimizer(model: TwhinModel, config: TwhinConfig) -> tuple[GroupedOptimizer, RateScheduler]:
    """Build the optimizer and the scheduler; its groups are the node types and `translations`, the operators."""
    tables = {node: config.embeddings.table(node).optimizer for node in model.embeddings.sizes}
    configs = {node: optimizer for node, optimizer in tables.items() if optimizer is not None}
    modules = {f"embeddings.{model.embeddings.path(node)}": node for node in configs}
    return build(
        model,
        {**configs, "translations": config.translation_optimizer},
        {**modules, "operators": "translations"},
    )
