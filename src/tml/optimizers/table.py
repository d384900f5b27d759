"""The table of parameter groups that a training shows at its start."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from tml.optimizers.averaging import WeightAverage


def groups_table(
    parts: Sequence[torch.optim.Optimizer], clip_gradient_norm: float | None, average: WeightAverage | None
) -> Table:
    """Every group's parameters, tensors, algorithm, learning rate now and schedule; weight decay and clipping if any.

    Groups often share a schedule, whose description is long: each one stands once, below the table.
    """
    groups = [(getattr(part, "title", type(part).__name__), group) for part in parts for group in part.param_groups]
    decays = any("weight_decay_schedule" in group for _, group in groups)
    clips = any(group["clip_gradient_norm"] for _, group in groups)
    table = Table(title="Optimizer", title_justify="left", box=SIMPLE_HEAD, caption_justify="left")
    # Names of tasks differ at their ends: where there is no room one goes on in the next line.
    table.add_column("group", overflow="fold")
    for column in ("parameters", "tensors"):
        table.add_column(column, justify="right", min_width=len(column))
    table.add_column("algorithm", no_wrap=True)
    table.add_column("rate now", justify="right", min_width=8)
    table.add_column("schedule", min_width=8)
    for column in ["weight decay"] * decays + ["clipped at"] * clips:
        table.add_column(column, justify="right")
    letters: dict[str, str] = {}
    for algorithm, group in groups:
        size = group.get("size") or sum(parameter.numel() for parameter in group["params"])
        cells = [escape(group["name"]), f"{size:,}", f"{len(group['params']):,}"]
        cells += [algorithm + (" (fused)" if group.get("fused") else ""), f"{group['lr']:.3g}"]
        cells.append(_letter(group["schedule"], letters))
        if decays:
            schedule = group.get("weight_decay_schedule")
            cells.append(_decay(group["weight_decay"], schedule, letters) if schedule else "")
        if clips:
            cells.append(f"{group['clip_gradient_norm']:g}" if group["clip_gradient_norm"] else "")
        table.add_row(*cells)
    table.caption = "\n".join(_notes(letters, clip_gradient_norm, average))
    return table


def _letter(schedule: Any, letters: dict[str, str]) -> str:
    if schedule.constant is not None:
        return "constant"
    return letters.setdefault(str(schedule), _numeral(len(letters)))


def _numeral(number: int) -> str:
    """A to Z, then AA, AB and so on."""
    before, last = divmod(number, 26)
    return (_numeral(before - 1) if before else "") + chr(ord("A") + last)


def _decay(now: float, schedule: Any, letters: dict[str, str]) -> str:
    return f"{now:.3g}" if schedule.constant is not None else f"{now:.3g} ({_letter(schedule, letters)})"


def _notes(letters: dict[str, str], clip_gradient_norm: float | None, average: WeightAverage | None) -> Iterable[str]:
    yield from (f"{letter}: {text}" for text, letter in letters.items())
    if clip_gradient_norm is not None:
        yield f"the whole gradient is clipped at the norm {clip_gradient_norm:g}"
    if average is not None:
        yield f"weights are averaged with decay {average.decay:g}"
