"""A training step of the published Heavy Ranker (48 million parameters) against plain PyTorch and against the machine.

At 128 and 1,024 examples a batch, in the numbers that `precision: auto` chooses here:

    train_step.examples_per_second.B    of a whole step: zeroing, forward, backward, update and schedules
    train_step.vs_plain.B               plain over ours; plain is the same model in eager float32 with one unfused
                                        `torch.optim.Adam(foreach=False)` a group
    train_step.float32_vs_plain.B       the same of ours in float32
    train_step.of_bound.B               the bound over ours; the bound is the time of the model's matrix products alone,
                                        in our numbers and one layer after the other, and of the optimizer's bytes (7
                                        passes of 4 bytes a parameter) at the bandwidth of a copy
    train_step.matrix_rate.B            of these products, in multiply-adds a second times two

The three ways and the bound are timed in turn, in one process, on parameters of their own.

python benchmarks/train_step.py [--short]
"""

import argparse
import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from _machine import print_figure, print_machine, seconds
from _published import published_ranker, random_batch
from torch import Tensor, nn

from tml.core.memory import keep_freed_memory
from tml.core.precision import Precision, numbers
from tml.projects.home.recap.model import RankerLoss
from tml.projects.home.recap.optimizer import build_optimizer

BATCHES = (128, 1024)
Step = Callable[[dict[str, Tensor]], None]


def plain(model: nn.Module) -> Step:
    groups = build_optimizer(model).optimizer.param_groups
    adams = [torch.optim.Adam(g["params"], lr=1e-4, betas=(0.95, 0.999), eps=1e-7, foreach=False) for g in groups]

    def step(batch: dict[str, Tensor]) -> None:
        for adam in adams:
            adam.zero_grad()
        model(batch)[0].backward()
        for adam in adams:
            adam.step()

    return step


@contextmanager
def ours(model: nn.Module, precision: Precision) -> Iterator[tuple[Step, torch.dtype]]:
    """A step as the training loop does it, but for the log; and the numbers it computes in."""
    optimizer, scheduler = build_optimizer(model)
    with numbers(precision, model, optimizer) as computing:

        def step(batch: dict[str, Tensor]) -> None:
            optimizer.zero_grad()
            with computing.forward():
                loss = model(batch)[0]
            loss.backward()
            computing.forget()
            optimizer.step()
            scheduler.step()

        yield step, computing.dtype


class Products:
    """The matrix products of a step: of each layer forward, and the two of its backward, with factors as stored."""

    def __init__(self, model: nn.Module, rows: int, dtype: torch.dtype) -> None:
        layers = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
        self.multiply_adds = 3 * rows * sum(weight.numel() for weight in layers)
        self.factors = []
        for weight in layers:
            outputs, inputs = weight.shape
            shapes = ((rows, inputs), (inputs, outputs), (rows, outputs), (outputs, inputs), (outputs, rows))
            self.factors.append([torch.rand(shape).to(dtype) for shape in shapes])

    def __call__(self) -> None:
        for x, transposed, _, _, _ in self.factors:
            torch.mm(x, transposed)
        for x, _, gradient, weight, transposed_gradient in reversed(self.factors):
            torch.mm(gradient, weight)
            torch.mm(transposed_gradient, x)


def measure(rows: int, steps: dict[str, Step], model: RankerLoss, dtype: torch.dtype, runs: int) -> None:
    """Print the figures of one size of batch."""
    batch = random_batch(rows)
    products = Products(model, rows, dtype)
    size = sum(parameter.numel() for parameter in model.parameters())
    source, target = torch.rand(size), torch.rand(size)
    took: dict[str, list[float]] = {name: [] for name in (*steps, "products", "copy")}
    for _ in range(runs + 1):
        for name, step in steps.items():
            took[name].append(seconds(functools.partial(step, batch)))
        took["products"].append(seconds(products))
        took["copy"].append(seconds(lambda: target.copy_(source)))
    took = {name: values[1:] for name, values in took.items()}  # the first makes states and buffers

    # Seven passes of the optimizer; a copy is two.
    bound = [p + 7 / 2 * c for p, c in zip(took["products"], took["copy"], strict=True)]
    print_figure(f"train_step.examples_per_second.{rows}", [rows / t for t in took["auto"]], "examples/s", True)
    print_figure(f"train_step.vs_plain.{rows}", _ratios(took["plain"], took["auto"]), "ratio", True)
    print_figure(f"train_step.float32_vs_plain.{rows}", _ratios(took["plain"], took["float32"]), "ratio", True)
    print_figure(f"train_step.of_bound.{rows}", _ratios(bound, took["auto"]), "ratio", True)
    rates = [2 * products.multiply_adds / t / 1e9 for t in took["products"]]
    print_figure(f"train_step.matrix_rate.{rows}", rates, "GFLOP/s", True)


def _ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="few runs")
    short = parser.parse_args().short
    keep_freed_memory()
    print_machine()
    model = published_ranker()
    with (
        ours(copy.deepcopy(model), "auto") as (auto, dtype),
        ours(copy.deepcopy(model), "float32") as (float32, _),
    ):
        steps = {"plain": plain(copy.deepcopy(model)), "auto": auto, "float32": float32}
        for rows in BATCHES:
            measure(rows, steps, model, dtype, 2 if short else 10)


if __name__ == "__main__":
    main()
