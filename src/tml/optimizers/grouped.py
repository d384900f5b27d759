"""One optimizer of several: parameter groups that differ in algorithm, under one state and one scheduler.

Groups that share an algorithm share one `torch.optim` optimizer and its fused kernel; in most models that is a single
Adam. The state is kept by parameter name, so it loads into a model whose modules were made in another order.

On the CPU torch's fused Adam rounds otherwise than its plain one (by the last bit); ours is the fused one, unless the
config says `fused: false`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from tml.core.bfloat16 import Copies
from tml.core.errors import ConfigError, DataError, listed
from tml.core.gradients import gradients_of, norms_by_group, total
from tml.core.sharding import full_state
from tml.optimizers import sliced_adam
from tml.optimizers.averaging import WeightAverage
from tml.optimizers.in_backward import InBackward
from tml.optimizers.row_updates import RowOptimizer
from tml.optimizers.rowwise_adagrad import RowwiseAdagrad
from tml.optimizers.table import groups_table


class GroupedOptimizer(torch.optim.Optimizer):
    """Several optimizers as one.

    Each parameter group has, beside its algorithm's own settings, `name`, `param_names`, `schedule` (a `LearningRate`),
    `weight_decay_schedule` where it has one, and `clip_gradient_norm`, a number or None. Where a group needs two
    algorithms or leaves some parameters out of weight decay, several entries of `param_groups` have its name.
    `param_groups` and `state` are shared with the parts.

    Attributes:
        copies: weights in bfloat16, which the training loop puts here and a step writes along; see `sliced_adam`.

    Args:
        parts: optimizers whose groups have these keys; no parameter is in two of them.
        clip_gradient_norm: where the norm of the whole gradient is larger, after groups were clipped by their own
            limits, it is scaled down to this.
        average: is updated after every step.
        aliases: other names of shared parameters → the name in `param_names`. A model whose modules were made in
            another order may have saved its state under one of them.
    """

    def __init__(
        self,
        parts: Sequence[torch.optim.Optimizer],
        clip_gradient_norm: float | None = None,
        average: WeightAverage | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__([group for part in parts for group in part.param_groups], defaults={})
        self.parts, self.clip_gradient_norm, self.average = tuple(parts), clip_gradient_norm, average
        self.aliases = dict(aliases or {})
        self.copies: Copies | None = None
        self._norms: dict[str, float] | None = None
        for part in parts:
            self.state.update(part.state)
            part.state = self.state

    def __getstate__(self) -> dict[str, Any]:
        # torch knows of nothing but groups, state and defaults.
        own = ("parts", "clip_gradient_norm", "average", "aliases")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}, "_norms": None, "copies": None}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only for torch's constructor: groups are those of the config.

        Raises:
            ConfigError: the optimizer is made.
        """
        if hasattr(self, "parts"):
            raise ConfigError("add_param_group: groups are those of the config, build the optimizer of the whole model")
        super().add_param_group(param_group)

    @property
    def accumulates(self) -> bool:
        """Whether gradients can be summed over several batches: not where tables are updated in backward."""
        return not any(isinstance(part, InBackward) for part in self.parts)

    @property
    def sliced(self) -> frozenset[Tensor]:
        """The parameters whose gradients may be bfloat16, and whose copies in bfloat16 a step writes: of `copies`.

        None where gradients are clipped: scaled in 8 bits they would be rounded twice.
        """
        named = () if self.clips else self._named()
        return frozenset(parameter for _, parameter, _, part in named if sliced_adam.can_slice(part, parameter))

    @property
    def clips(self) -> bool:
        """Whether gradients are clipped, so that every step measures their norms."""
        return self.clip_gradient_norm is not None or any(g["clip_gradient_norm"] for g in self.param_groups)

    def gradient_norms(self, for_step: bool = False) -> dict[str, float]:
        """The norm of each group's gradient before clipping.

        Args:
            for_step: the gradient stays as it is until `step`, which then need not measure it again.
        """
        norms = norms_by_group(self.param_groups)
        self._norms = norms if for_step else None
        return norms

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        super().zero_grad(set_to_none)
        self._norms = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Clip the gradients and update all parameters once; `closure`, if given, computes loss and gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            self._norms = None
        if self.clips:
            self._clip()
        # Said outright, since torch's sparse updates otherwise warn that these checks are off.
        with torch.sparse.check_sparse_tensor_invariants(enable=False):  # type: ignore[no-untyped-call]
            for part in self.parts:
                if self.copies is not None and isinstance(part, torch.optim.Adam):
                    sliced_adam.step(part, self.copies)
                else:
                    part.step()
        self._norms = None
        if self.average:
            self.average.update()
        return loss

    @torch.no_grad()
    def _clip(self) -> None:
        norms = self.gradient_norms() if self._norms is None else self._norms
        limits = {group["name"]: group["clip_gradient_norm"] or math.inf for group in self.param_groups}
        scales = {name: limits[name] / norm if norm > limits[name] else 1.0 for name, norm in norms.items()}
        whole = total({name: norm * scales[name] for name, norm in norms.items()})
        if self.clip_gradient_norm is not None and whole > self.clip_gradient_norm:
            scales = {name: scale * (self.clip_gradient_norm / whole) for name, scale in scales.items()}
        for group in self.param_groups:
            if scales[group["name"]] < 1 and (gradients := gradients_of(group["params"])):
                torch._foreach_mul_(gradients, scales[group["name"]])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block the model has its averaged weights, where the config asks for an average."""
        if self.average is None:
            yield
            return
        with self.average.applied():
            yield

    def state_dict(self) -> dict[str, Any]:
        """The state by parameter name, as plain values and tensors.

        Where tables are sharded every rank calls it, and the first has the whole of their state.

        Returns:
            `state`: {parameter name: its state}, empty for a parameter that has not been updated yet.
            `average`: the state of the averaged weights; None without.
        """
        state = {name: full_state(self.state.get(parameter, {})) for name, parameter, _, _ in self._named()}
        return {"state": state, "average": self.average.state_dict() if self.average else None}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state by parameter names; learning rates and settings stay those of the config.

        Raises:
            DataError: it is no state, names are missing or left over, or a state is of another algorithm or has another
                shape than its parameter.
        """
        if not isinstance(state_dict.get("state"), Mapping):
            raise DataError(f"not a state of the optimizer: found {listed(state_dict) or 'nothing'}, needed is `state`")
        saved, average = self._by_own_names(state_dict["state"]), state_dict.get("average")
        own = {name for name, _, _, _ in self._named()}
        sides = {"missing": own - saved.keys(), "left over": saved.keys() - own}
        found = [f"{what} {listed(sorted(names))}" for what, names in sides.items() if names]
        if (average is None) != (self.average is None):
            found.append("left over the averaged weights" if average else "missing the averaged weights")
        if found:
            raise DataError(f"the optimizer's state is of another model: {'; '.join(found)}")
        loaded = {}
        for name, parameter, group, part in self._named():
            if not isinstance(part, InBackward):
                _require_state_of(part, name, saved[name])
                loaded[parameter] = {k: _like(v, k, name, parameter, group, part) for k, v in saved[name].items()}
        for name, parameter, _, part in self._named():
            if isinstance(part, InBackward):
                part.load(name, parameter, saved[name])
        if self.average and average:
            self.average.load_state_dict({**average, "averages": self._by_own_names(average["averages"])})
        self.state.update(loaded)

    def _by_own_names(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        named = ((self.aliases.get(name, name), name) for name in saved)
        return {name if own in saved else own: saved[name] for own, name in named}

    def _named(self) -> list[tuple[str, Tensor, dict[str, Any], torch.optim.Optimizer]]:
        return [
            (name, parameter, group, part)
            for part in self.parts
            for group in part.param_groups
            for name, parameter in zip(group["param_names"], group["params"], strict=True)
        ]

    def table(self) -> Table:
        """The groups with their size, algorithm, rate now and schedule, for a terminal: `rich.print` shows it."""
        return groups_table(self.parts, self.clip_gradient_norm, self.average)

    def __rich__(self) -> Table:
        return self.table()


_STATES = {
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.Muon: {"momentum_buffer"},
    torch.optim.Adagrad: {"step", "sum"},
    RowwiseAdagrad: {"sum"},
}
"""What an algorithm keeps for a parameter; those that are not here are Adams."""


def _require_state_of(part: torch.optim.Optimizer, name: str, saved: Mapping[str, Any]) -> None:
    by_row = part.state_names if isinstance(part, RowOptimizer) else {"step", "exp_avg", "exp_avg_sq"}
    needed = _STATES.get(type(part), by_row)
    # Torch makes Adagrad's state at once, that of the others at a parameter's first update.
    if saved.keys() == needed or (not saved and not isinstance(part, torch.optim.Adagrad)):
        return
    found = ", ".join(sorted(saved)) or "nothing"
    raise DataError(
        f"the optimizer's state of {name}: found {found}, but {type(part).__name__} needs {', '.join(sorted(needed))}"
    )


def _like(
    value: Any, key: str, name: str, parameter: Tensor, group: dict[str, Any], part: torch.optim.Optimizer
) -> Any:
    """A value of a saved state as the part needs it: a copy on the right device, refused in another shape."""
    if not isinstance(value, Tensor):
        return value
    if key == "step":
        # Fused kernels on an accelerator read the step there; everything else counts on the CPU.
        return value.clone().to(parameter.device) if group.get("fused") else value.clone()
    shape = parameter.shape[:1] if isinstance(part, RowwiseAdagrad) else parameter.shape
    if value.shape != shape:
        raise DataError(
            f"the optimizer's state {key} of {name}: found shape {tuple(value.shape)}, needed is {tuple(shape)}"
        )
    return value.clone().to(parameter.device)
