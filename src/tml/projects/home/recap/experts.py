"""Mixtures of experts as a backbone: what each task gets is a sum of experts' outputs, weighted by a gate of its own.

**MMoE** (Ma et al. 2018, "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts"), with
experts f_i, and for task k a gate on the same input x:

    y_k = Σ_i softmax(W_k·x)_i · f_i(x)

**PLE** (Tang et al. 2020, "Progressive Layered Extraction"): some experts are shared, some are a task's own, in levels.
At each level task k has

    y_k = Σ_i softmax(W_k·x_k)_i · f_i        over the shared experts and its own

where its own experts and its gate read x_k, the shared ones x_s; at the first level both are the input, at the next
x_k = y_k, and x_s = y_s comes from a gate on x_s over the experts of all tasks and the shared ones. One level is the
paper's CGC.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tml.projects.home.recap.network_config import MmoeConfig, PleConfig
from tml.projects.home.recap.networks import Network, build_network


class MMoE(nn.Module):
    """Maps (batch, `width`) to one (batch, `out_width`) a task.

    Args:
        config: the experts.
        tasks: how many.
        width: of the input.
        fields: the widths of its last parts that are embeddings.
        generator: draws the initial weights.
    """

    def __init__(
        self,
        config: MmoeConfig,
        tasks: int,
        width: int,
        fields: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.tasks = tasks
        experts = [build_network(config.expert, width, fields, generator) for _ in range(config.num_experts)]
        self.experts = nn.ModuleList(experts)
        self.gates = _gate(width, tasks * config.num_experts, generator)
        self.out_width = experts[0].out_width

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs (batch, width) to a tensor (batch, out_width) for each task."""
        outputs = torch.stack([expert(inputs) for expert in self.experts], dim=1)
        weights = torch.softmax(self.gates(inputs).reshape(len(inputs), self.tasks, -1), dim=2)
        return torch.bmm(weights, outputs).unbind(dim=1)


class PleLevel(nn.Module):
    """One level: shared experts, each task's own, and the gates; the last level has no gate for the shared ones."""

    def __init__(
        self,
        config: PleConfig,
        tasks: int,
        width: int,
        fields: Sequence[int],
        last: bool,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()

        def experts(number: int) -> list[Network]:
            return [build_network(config.expert, width, fields, generator) for _ in range(number)]

        own, shared = config.task_experts, config.shared_experts
        commons = experts(shared)
        self.out_width = commons[0].out_width
        self.shared = nn.ModuleList(commons)
        self.own = nn.ModuleList(nn.ModuleList(experts(own)) for _ in range(tasks))
        self.gates = nn.ModuleList(_gate(width, own + shared, generator) for _ in range(tasks))
        self.shared_gate = None if last else _gate(width, tasks * own + shared, generator)

    def forward(self, by_task: Sequence[Tensor], shared: Tensor) -> tuple[list[Tensor], Tensor]:
        """What each task and the shared experts read, (batch, width) each, to the same at the next level."""
        commons = [expert(shared) for expert in self.shared]
        owns = [
            [expert(inputs) for expert in experts]  # type: ignore[attr-defined]
            for experts, inputs in zip(self.own, by_task, strict=True)
        ]
        mixed = [
            _mix(gate(inputs), [*own, *commons]) for gate, inputs, own in zip(self.gates, by_task, owns, strict=True)
        ]
        if self.shared_gate is None:
            return mixed, shared
        return mixed, _mix(self.shared_gate(shared), [output for own in owns for output in own] + commons)


class PLE(nn.Module):
    """Maps (batch, `width`) to one (batch, `out_width`) a task; arguments as for `MMoE`."""

    def __init__(
        self,
        config: PleConfig,
        tasks: int,
        width: int,
        fields: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.tasks = tasks
        self.levels = nn.ModuleList()
        for number in range(1, config.num_levels + 1):
            level = PleLevel(config, tasks, width, fields, number == config.num_levels, generator)
            self.levels.append(level)
            width, fields = level.out_width, ()
        self.out_width = width

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs (batch, width) to a tensor (batch, out_width) for each task."""
        by_task, shared = [inputs] * self.tasks, inputs
        for level in self.levels:
            by_task, shared = level(by_task, shared)
        return tuple(by_task)


def _gate(width: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    gate = nn.Linear(width, outputs, bias=False)
    nn.init.xavier_uniform_(gate.weight, generator=generator)
    return gate


def _mix(logits: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """The sum of outputs (batch, width) each, weighted by the softmax of (batch, outputs)."""
    weights = torch.softmax(logits, dim=1).unsqueeze(1)
    return torch.bmm(weights, torch.stack(list(outputs), dim=1)).squeeze(1)
