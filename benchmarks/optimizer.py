"""The optimizer of the published Heavy Ranker (48 million parameters, 11 groups) against other ways and the memory.

    optimizer.step_vs_published     one unfused Adam a group, each with its scheduler, over ours
    optimizer.step_vs_fused         ours over one bare `torch.optim.Adam(fused=True)` with a single group
    optimizer.step_vs_memory        ours over 7 passes of 4 bytes a parameter (weight, gradient and two moments read,
                                    weight and moments written) at the bandwidth of a copy
    optimizer.share_of_training     zeroing, clipping and scheduling, as a share of a whole training step
    optimizer.clipping_vs_update    the same three over the update alone

python benchmarks/optimizer.py [--short]
"""

import argparse
import copy
from collections.abc import Callable

import torch
from _machine import print_figure, print_machine, seconds
from _published import published_ranker, random_batch
from torch import nn

from tml.projects.home.recap.model import RankerLoss
from tml.projects.home.recap.optimizer import build_optimizer
from tml.projects.home.recap.optimizer.config import PUBLISHED_TOWER_RATES, default_config

BATCH = 1024


def ours(model: nn.Module) -> Callable[[], None]:
    optimizer, scheduler = build_optimizer(model)

    def step() -> None:
        optimizer.step()
        scheduler.step()

    return step


def one_adam_a_group(model: nn.Module) -> Callable[[], None]:
    groups = build_optimizer(model).optimizer.param_groups
    adams = [torch.optim.Adam(group["params"], lr=1.0, betas=(0.95, 0.999), eps=1e-7, fused=False) for group in groups]
    rates = [group["schedule"].at for group in groups]
    schedulers = [torch.optim.lr_scheduler.LambdaLR(adam, rate) for adam, rate in zip(adams, rates, strict=True)]

    def step() -> None:
        for adam, scheduler in zip(adams, schedulers, strict=True):
            adam.step()
            scheduler.step()

    return step


def bare_fused_adam(model: nn.Module) -> Callable[[], None]:
    return torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.95, 0.999), eps=1e-7, fused=True).step


def against_other_ways(model: nn.Module, runs: int) -> None:
    """The three ways in turn, each on parameters of its own, and copies of so many floats between them."""
    steps = {}
    for make in (ours, bare_fused_adam, one_adam_a_group):
        own = copy.deepcopy(model)
        for parameter in own.parameters():
            parameter.grad = torch.rand_like(parameter)
        steps[make.__name__] = make(own)
        steps[make.__name__]()  # makes the state
    size = sum(parameter.numel() for parameter in model.parameters())
    source, target = torch.rand(size), torch.rand(size)
    took: dict[str, list[float]] = {name: [] for name in (*steps, "copy")}
    for _ in range(runs):
        for name, step in steps.items():
            took[name].append(seconds(step))
        took["copy"].append(seconds(lambda: target.copy_(source)))

    def ratios(name: str, over: str, factor: float = 1.0) -> list[float]:
        return [a / (factor * b) for a, b in zip(took[name], took[over], strict=True)]

    print_figure("optimizer.step", [value * 1e3 for value in took["ours"]], "ms", False)
    print_figure("optimizer.step_vs_published", ratios("one_adam_a_group", "ours"), "ratio", True)
    print_figure("optimizer.step_vs_fused", ratios("ours", "bare_fused_adam"), "ratio", False)
    # A copy is two passes.
    print_figure("optimizer.step_vs_memory", ratios("ours", "copy", 7 / 2), "ratio", False)


def share_of_training(model: RankerLoss, runs: int) -> None:
    """A training step with a limit that always clips, taken apart."""
    published = default_config(PUBLISHED_TOWER_RATES)
    optimizer, scheduler = build_optimizer(model, published.model_copy(update={"clip_gradient_norm": 1e-6}))
    batch = random_batch(BATCH)
    of_step, of_update = [], []
    for _ in range(runs):
        zero = seconds(optimizer.zero_grad)
        work = seconds(lambda: model(batch)[0].backward())
        clip = seconds(optimizer._clip)
        # Clipped by now to the limit, give or take a rounding; the update is to be timed without it.
        optimizer.clip_gradient_norm = None
        update = seconds(optimizer.step)
        optimizer.clip_gradient_norm = 1e-6
        schedule = seconds(scheduler.step)
        of_step.append((zero + clip + schedule) / (zero + work + clip + update + schedule))
        of_update.append((zero + clip + schedule) / update)
    print_figure("optimizer.share_of_training", of_step[1:], "ratio", False)
    print_figure("optimizer.clipping_vs_update", of_update[1:], "ratio", False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="few runs")
    short = parser.parse_args().short
    print_machine()
    model = published_ranker()
    against_other_ways(model, 5 if short else 30)
    share_of_training(model, 3 if short else 10)


if __name__ == "__main__":
    main()
