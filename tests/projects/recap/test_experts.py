"""MMoE and PLE against the papers' formulas, in NumPy, one sample and one task at a time."""

import numpy as np
import pytest
import torch

from tml.projects.home.recap.config import MlpConfig, MmoeConfig, NetworkConfig, PleConfig
from tml.projects.home.recap.experts import PLE, MMoE

WIDTH, ROWS, TASKS = 5, 4, 3
EXPERT = NetworkConfig(mlp_config=MlpConfig(layer_sizes=(6,), final_activation=True))
Tower = dict[str, np.ndarray]


def filled(net: torch.nn.Module) -> tuple[torch.nn.Module, torch.Tensor, Tower]:
    generator = torch.Generator().manual_seed(3)
    net = net.double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator)
    state = {name: parameter.detach().numpy() for name, parameter in net.named_parameters()}
    return net, torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64), state


def expert(state: Tower, name: str, x: np.ndarray) -> np.ndarray:
    return np.maximum(state[f"{name}.layers.0.weight"] @ x + state[f"{name}.layers.0.bias"], 0)


def mixed(logits: np.ndarray, outputs: list[np.ndarray]) -> np.ndarray:
    weights = np.exp(logits) / np.exp(logits).sum()
    return sum(weight * output for weight, output in zip(weights, outputs, strict=True))


def test_mmoe_equals_the_papers_formula() -> None:
    experts = 4
    net, inputs, state = filled(MMoE(MmoeConfig(num_experts=experts, expert=EXPERT), TASKS, WIDTH))
    found = [output.detach().numpy() for output in net(inputs)]
    assert len(found) == TASKS
    for row, x in enumerate(inputs.numpy()):
        outputs = [expert(state, f"experts.{i}", x) for i in range(experts)]
        for task in range(TASKS):
            gate = state["gates.weight"][task * experts : (task + 1) * experts]
            np.testing.assert_allclose(found[task][row], mixed(gate @ x, outputs), rtol=1e-9)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(("shared", "own"), [(1, 1), (2, 3)])
def test_ple_equals_the_papers_formula(levels: int, shared: int, own: int) -> None:
    config = PleConfig(num_levels=levels, shared_experts=shared, task_experts=own, expert=EXPERT)
    net, inputs, state = filled(PLE(config, TASKS, WIDTH))
    found = [output.detach().numpy() for output in net(inputs)]
    for row, x in enumerate(inputs.numpy()):
        by_task, common = [x] * TASKS, x
        for level in range(levels):
            at = f"levels.{level}"
            commons = [expert(state, f"{at}.shared.{i}", common) for i in range(shared)]
            owns = [[expert(state, f"{at}.own.{k}.{i}", by_task[k]) for i in range(own)] for k in range(TASKS)]
            following = [
                mixed(state[f"{at}.gates.{k}.weight"] @ by_task[k], [*owns[k], *commons]) for k in range(TASKS)
            ]
            if level < levels - 1:
                everyone = [output for outputs in owns for output in outputs] + commons
                common = mixed(state[f"{at}.shared_gate.weight"] @ common, everyone)
            by_task = following
        for task in range(TASKS):
            np.testing.assert_allclose(found[task][row], by_task[task], rtol=1e-8)
    assert f"levels.{levels - 1}.shared_gate.weight" not in state


@pytest.mark.parametrize("kind", ["mmoe", "ple"])
def test_gradients(kind: str) -> None:
    smooth = NetworkConfig(mlp_config=MlpConfig(layer_sizes=(3,)))
    net, inputs, _ = filled(
        MMoE(MmoeConfig(num_experts=2, expert=smooth), 2, WIDTH)
        if kind == "mmoe"
        else PLE(PleConfig(num_levels=2, shared_experts=1, expert=smooth), 2, WIDTH)
    )
    names, values = zip(*net.named_parameters(), strict=True)

    def function(x: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs: tuple[torch.Tensor, ...]
        outputs = torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), x)
        return outputs

    assert torch.autograd.gradcheck(function, (inputs[:2].requires_grad_(), *values))


def test_in_ple_a_task_reaches_its_own_experts_and_the_shared_alone() -> None:
    net, inputs, _ = filled(PLE(PleConfig(num_levels=1, expert=EXPERT), TASKS, WIDTH))
    net(inputs)[1].sum().backward()
    moved = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert all(name.startswith(("levels.0.own.1", "levels.0.shared", "levels.0.gates.1")) for name in moved)
