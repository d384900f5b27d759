"""One optimizer of several: parameter groups that differ in algorithm, under one state and one scheduler.

Groups that share an algorithm share one `torch.optim` optimizer and its fused kernel; in most models that is a single
Adam. The state is kept by parameter name, so it loads into a model whose modules were made in another order.

On the CPU torch's fused Adam rounds otherwise than its plain one (by the last bit); ours is the fused one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from tml.core.errors import DataError
from tml.core.sharding import full_state
from tml.optimizers.groups import listed
from tml.optimizers.in_backward import InBackward


class GroupedOptimizer(torch.optim.Optimizer):
    """Several optimizers as one.

    Each parameter group has, beside its algorithm's own settings, `name`, `param_names`, and `schedule`, a
    `LearningRate`. `param_groups` and `state` are shared with the parts.

    Args:
        parts: optimizers whose groups have these keys; no parameter is in two of them.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], defaults={})
        self.parts = tuple(parts)
        for part in parts:
            self.state.update(part.state)
            part.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters once; `closure`, if given, computes loss and gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Said outright, since torch's sparse updates otherwise warn that these checks are off.
        with torch.sparse.check_sparse_tensor_invariants(enable=False):  # type: ignore[no-untyped-call]
            for part in self.parts:
                part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """`{"state": {parameter name: its state}}`, empty for a parameter that has not been updated yet.

        Where tables are sharded every rank calls it, and the first has the whole of their state.
        """
        return {"state": {name: full_state(self.state.get(parameter, {})) for _, name, parameter, _ in self._named()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state by parameter names; learning rates and settings stay those of the config.

        Raises:
            DataError: names are missing or left over, or a state has another shape than its parameter.
        """
        saved = state_dict["state"]
        own = {name for _, name, _, _ in self._named()}
        sides = {"missing": own - saved.keys(), "left over": saved.keys() - own}
        found = [f"{what} {listed(sorted(names))}" for what, names in sides.items() if names]
        if found:
            raise DataError(f"the optimizer's state is of another model: {'; '.join(found)}")
        for part, name, parameter, group in self._named():
            if isinstance(part, InBackward):
                part.load(name, parameter, saved[name])
            else:
                self.state[parameter] = {k: _like(v, k, name, parameter, group) for k, v in saved[name].items()}

    def _named(self) -> list[tuple[torch.optim.Optimizer, str, Tensor, dict[str, Any]]]:
        return [
            (part, name, parameter, group)
            for part in self.parts
            for group in part.param_groups
            for name, parameter in zip(group["param_names"], group["params"], strict=True)
        ]

    def __rich__(self) -> Table:
        return groups_table(self)


def _like(value: Any, key: str, name: str, parameter: Tensor, group: dict[str, Any]) -> Any:
    if not isinstance(value, Tensor):
        return value
    if key == "step":
        # Fused kernels on an accelerator read the step there; everything else counts on the CPU.
        return value.clone().to(parameter.device) if group.get("fused") else value.clone()
    if value.shape != parameter.shape:
        found, needed = tuple(value.shape), tuple(parameter.shape)
        raise DataError(f"the optimizer's state {key} of {name}: found shape {found}, needed is {needed}")
    return value.clone().to(parameter.device)


class RateScheduler(LRScheduler):
    """Sets every group's rate to its `schedule` at the number of finished steps; call `step` after the optimizer's."""

    def get_lr(self) -> list[float | Tensor]:
        """The rates of the next step, one for each group."""
        return [group["schedule"].at(self.last_epoch) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """`{"step": number of finished steps}`: the rest is in the config."""
        return {"step": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the step of a state, and set the rates of the next step."""
        self.last_epoch = state_dict["step"] - 1
        self._step_count = state_dict["step"] + 1
        self._update_lr()


def groups_table(optimizer: GroupedOptimizer) -> Table:
    """The groups as a table: parameters, tensors, algorithm, learning rate now, schedule.

    Groups often share a schedule, whose description is long: each one stands once, below the table.
    """
    table = Table(title="Optimizer", title_justify="left", box=SIMPLE_HEAD, caption_justify="left")
    table.add_column("group", overflow="ellipsis")
    for column in ("parameters", "tensors"):
        table.add_column(column, justify="right", min_width=len(column))
    table.add_column("algorithm", no_wrap=True)
    table.add_column("rate now", justify="right", min_width=8)
    table.add_column("schedule", min_width=8)
    letters: dict[str, str] = {"constant": "constant"}
    for part in optimizer.parts:
        for group in part.param_groups:
            size = group.get("size") or sum(parameter.numel() for parameter in group["params"])
            algorithm = getattr(part, "title", type(part).__name__) + (" (fused)" if group.get("fused") else "")
            schedule = letters.setdefault(str(group["schedule"]), chr(ord("A") + len(letters) - 1))
            cells = (f"{size:,}", f"{len(group['params']):,}", algorithm, f"{group['lr']:.3g}", schedule)
            table.add_row(group["name"], *cells)
    table.caption = "\n".join(f"{letter}: {text}" for text, letter in letters.items() if text != letter)
    return table
