"""The state of a training: all that the steps to come depend on.

Beside parameters, optimizer and learning-rate schedule these are the step, the position in the data, the random state
and the running averages of the log: a training resumed without any one of them would be another training.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tml.core.distributed import gathered, ranks, unwrap
from tml.core.errors import DataError
from tml.core.sharding import copy_into, differences, full_state, is_sharded


@dataclass
class TrainState:
    """All that a training is at one moment.

    Attributes:
        model: forward(batch) returns the loss, a scalar tensor, or (loss, outputs); where outputs is a mapping with
            the key "losses", a mapping of task to scalar tensor or number, each task's loss is logged too.
        scheduler: stepped after every step of the optimizer; None for a constant rate.
        batches: any iterable. With `state_dict()` and `load_state_dict()` it tells its position and goes on from it;
            without them a resumed training reads past the batches that it has had.
        step: number of finished steps.
        batches_read: number of batches in them.
        generators: random generators to save and restore beside torch's own.
        seconds: time spent in these steps.
        logged, evaluated: the last step that has been.
        rates: learning rates of the last step and, where they were measured, the norms of its gradient.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None
    batches: Iterable[Any]
    step: int = 0
    batches_read: int = 0
    generators: Mapping[str, torch.Generator] = field(default_factory=dict)
    seconds: float = 0.0
    logged: int = 0
    evaluated: int = 0
    rates: dict[str, float] = field(default_factory=dict)
    _sums: dict[str, list[float]] = field(default_factory=dict)
    _resume_from: dict[str, Any] | None = None

    @property
    def device(self) -> torch.device:
        """The device of the model's first parameter."""
        return next(self.model.parameters()).device

    def position(self) -> dict[str, Any]:
        """The random state and the position in the data: what moves even where a step is not finished."""
        random = {"cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            random["device"] = torch.get_device_module(self.device).get_rng_state()
        random |= {f"generator/{name}": generator.get_state() for name, generator in self.generators.items()}
        tells = getattr(self.batches, "state_dict", None)
        return {"random": random, "batches": tells() if tells else None}

    def state_dict(self, position: dict[str, Any] | None = None) -> dict[str, Any]:
        """Everything that the steps to come depend on, as plain values and tensors.

        Every rank calls it: each has a position of its own, and where tensors are sharded the first gets the whole of
        them.

        Args:
            position: what `position()` was at the end of the last step; None asks for it now.
        """
        position = position or self.position()
        return {
            "model": full_state(unwrap(self.model).state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "step": self.step,
            "batches_read": self.batches_read,
            "progress": {"seconds": self.seconds, "logged": self.logged, "evaluated": self.evaluated},
            "averages": {"sums": self._sums, "rates": self.rates},
            **position,
            "ranks": gathered(position),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the state of a checkpoint; the random state is restored when `train` starts.

        Raises:
            DataError: the model of the checkpoint is another one.
        """
        load_model(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        self.step, self.batches_read = state["step"], state["batches_read"]
        self.seconds, self.logged, self.evaluated = (state["progress"][k] for k in ("seconds", "logged", "evaluated"))
        self._sums, self.rates = dict(state["averages"]["sums"]), dict(state["averages"]["rates"])
        rank, world_size = ranks()
        # With another number of ranks it is up to the batches whether they can go on from the first one's position.
        same = len(state.get("ranks", ())) == world_size
        self._resume_from = state["ranks"][rank] if same else {key: state[key] for key in ("random", "batches")}

    def start(self) -> Iterator[Any]:
        """The batches from the present position on; after a resume this also restores the random state."""
        resume_from, self._resume_from = self._resume_from, None
        if resume_from is None:
            return iter(self.batches)
        if resume_from["batches"] is not None:
            self.batches.load_state_dict(resume_from["batches"])  # type: ignore[attr-defined]
            batches = iter(self.batches)
        else:
            batches = iter(self.batches)
            for _ in itertools.islice(batches, self.batches_read):
                pass
        random = resume_from["random"]
        torch.set_rng_state(random["cpu"])
        if "device" in random and self.device.type != "cpu":
            torch.get_device_module(self.device).set_rng_state(random["device"])
        for name, generator in self.generators.items():
            generator.set_state(random[f"generator/{name}"])
        return batches

    def add(self, values: Mapping[str, float]) -> None:
        """Count values towards the averages of the next line; an undefined one does not count."""
        for key, value in values.items():
            if math.isfinite(value):
                total, count = self._sums.get(key, (0.0, 0.0))
                self._sums[key] = [total + value, count + 1]

    def averages(self) -> dict[str, float]:
        """The averages since the last restart, and the latest rates."""
        means = {key: total / count for key, (total, count) in self._sums.items()}
        seconds, examples = means.pop("seconds"), means.pop("examples")
        speed = {"train/examples_per_second": examples / max(seconds, 1e-9)} if examples else {}
        return {"seconds": self.seconds, **means, **speed, **self.rates}

    def restart_averages(self) -> None:
        """Begin new averages; the ones so far are logged."""
        self._sums, self.logged = {}, self.step


def load_model(model: nn.Module, saved: Mapping[str, torch.Tensor]) -> None:
    """Give a model, bare or wrapped, the parameters and buffers that were saved of one.

    Raises:
        DataError: they are of another model, with the names.
    """
    model = unwrap(model)
    own = model.state_dict()
    found = differences(own, saved)
    if found:
        raise DataError(f"the checkpoint is of another model: {'; '.join(found)}")
    sharded = {name: value for name, value in own.items() if is_sharded(value)}
    for name, value in sharded.items():
        copy_into(value, saved[name])
    model.load_state_dict({**saved, **sharded})
