"""The optimizer of TwHIN: one for the tables, each at its own algorithm and rate, and the relations' operators."""

import torch

from tml.embeddings.local import TYPES
from tml.embeddings.partitioned import PartitionedTables
from tml.optimizers.builders import build
from tml.optimizers.config import Algorithm, RowwiseAdagradConfig
from tml.optimizers.grouped import GroupedOptimizer
from tml.optimizers.row_updates import state_of_rows
from tml.optimizers.scheduler import RateScheduler
from tml.projects.twhin.config import TwhinConfig
from tml.projects.twhin.model import TwhinModel


def build_optimizer(model: TwhinModel, config: TwhinConfig) -> tuple[GroupedOptimizer, RateScheduler]:
    """Build the optimizer and the scheduler; its groups are the node types and `translations`, the operators."""
    tables = {node: config.embeddings.table(node).optimizer for node in model.embeddings.sizes}
    configs = {node: optimizer for node, optimizer in tables.items() if optimizer is not None}
    modules = {f"embeddings.{model.embeddings.path(node)}": node for node in configs}
    optimizer, scheduler = build(
        model,
        {**configs, "translations": config.translation_optimizer},
        {**modules, "operators": "translations"},
    )
    if isinstance(model.embeddings, PartitionedTables):
        for node, own in configs.items():
            if node in model.embeddings.partitions.sizes and model.embeddings.learns(node):
                _keep_state(model.embeddings, node, own.algorithm, optimizer)
    return optimizer, scheduler


def _keep_state(tables: PartitionedTables, node: str, algorithm: Algorithm, optimizer: GroupedOptimizer) -> None:
    """Make the optimizer's state of a table that is cut, which goes to disk with its vectors."""
    table = tables.get_parameter(f"{tables.path(node)}.weight")
    step = {} if isinstance(algorithm, RowwiseAdagradConfig) else {"step": torch.zeros(())}
    optimizer.state[table] = {**step, **state_of_rows(algorithm, table)}
    tables.keep_state(node, lambda: optimizer.state[table])


def row_bytes(config: TwhinConfig, node: str) -> int:
    """Bytes of a node's vector and of its optimizer's state."""
    own = config.embeddings.table(node)
    vector = torch.empty(1, config.embedding_dim, dtype=TYPES[own.data_type])
    state = state_of_rows(own.optimizer.algorithm, vector) if own.optimizer and not own.frozen else {}
    return vector.nbytes + sum(tensor.nbytes for tensor in state.values())
