"""The scheduler: sets what follows the step, learning rates and weight decays, in every group."""

import warnings
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from tml.core.errors import DataError


class RateScheduler(LRScheduler):
    """Sets every group's rate to its `schedule` at the number of finished steps; call `step` after the optimizer's.

    A group's weight decay follows its `weight_decay_schedule`, where it has one.
    """

    def get_lr(self) -> list[float | Tensor]:
        """The rates of the next step, one for each group."""
        return [group["schedule"].at(self.last_epoch) for group in self.optimizer.param_groups]

    def _update_lr(self, epoch: int | None = None) -> None:
        super()._update_lr(epoch)
        for group in self.optimizer.param_groups:
            if "weight_decay_schedule" in group:
                group["weight_decay"] = group["weight_decay_schedule"].at(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """`step`, the number of finished steps, and `schedules` of rates and weight decays by group, as JSON."""
        return {"step": self.last_epoch, "schedules": self._schedules()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the step of a state, and set the rates of the next step.

        Schedules are the config's. Where the state was made with others, a warning names the groups.

        Raises:
            DataError: it is no state of a scheduler.
        """
        if not isinstance(state_dict.get("step"), int):
            raise DataError(
                f"not a state of the scheduler: found {', '.join(state_dict) or 'nothing'}, needed is `step`"
            )
        saved, own = state_dict.get("schedules", {}), self._schedules()
        changed = [f"{name}: {saved[name]}, now {own[name]}" for name in own if saved.get(name, own[name]) != own[name]]
        if changed:
            warnings.warn(f"the schedules are not those of the state; {'; '.join(changed)}", stacklevel=2)
        self.last_epoch = state_dict["step"] - 1
        self._step_count = state_dict["step"] + 1
        self._update_lr()

    def _schedules(self) -> dict[str, str]:
        schedules: dict[str, Any] = {}
        for group in self.optimizer.param_groups:
            schedules[group["name"]] = group["schedule"]
            if "weight_decay_schedule" in group:
                schedules[f"weight decay of {group['name']}"] = group["weight_decay_schedule"]
        return {name: schedule.model_dump_json(exclude_defaults=True) for name, schedule in schedules.items()}
