"""bfloat16 against float64, and kept copies against copies made anew."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tml.core.bfloat16 import Copies, Linear, in_bfloat16, left_factor, linear, linears, product, transposed
from tml.core.precision import SMALLEST, Numbers, multiplies_bfloat16, numbers
from tml.core.step import take_step
from tml.core.train_state import TrainState
from tml.optimizers.grouped import GroupedOptimizer
from tml.projects.home.recap.optimizer import build_optimizer

ROUNDING = 2.0**-8
CPU = torch.device("cpu")


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def factors(rows: int = 70, inputs: int = 37, outputs: int = 45) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, inputs), (outputs, inputs), (outputs,))
    x, weight, bias = (torch.randn(shape, generator=generator).bfloat16().float() for shape in shapes)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize("rows", [1, 32, 70])
def test_a_product_and_its_gradients_are_those_of_float64_up_to_rounding(rows: int) -> None:
    given = factors(rows)
    with autocast():
        assert in_bfloat16(given[0])
        outputs = linear(*given)
    assert outputs.dtype is torch.bfloat16
    ours = torch.autograd.grad(outputs.sum() + outputs.square().sum(), given)

    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    expected = F.linear(*exact)
    theirs = torch.autograd.grad(expected.sum() + expected.square().sum(), exact)
    torch.testing.assert_close(outputs.double(), expected, rtol=ROUNDING, atol=0.05)
    for mine, true in zip(ours, theirs, strict=True):
        assert mine.dtype is torch.float32
        # Terms are rounded before they are summed.
        assert (mine - true).norm() < 2 * ROUNDING * true.norm()


def test_outside_autocast_and_for_a_logit_it_is_float32() -> None:
    x, weight, bias = factors()
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), rtol=0, atol=0)
    with autocast():
        logit = linear(x.bfloat16(), weight[:1], bias[:1])
    torch.testing.assert_close(logit, F.linear(x, weight[:1], bias[:1]))
    assert logit.dtype is torch.float32


def test_second_derivatives_are_refused_rather_than_wrong() -> None:
    x, weight, _ = factors()
    with autocast():
        loss = linear(x, weight).square().sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()  # type: ignore[no-untyped-call]


def test_a_copy_follows_whatever_is_written_to_its_weight() -> None:
    weight = nn.Parameter(torch.randn(3, 4))
    copies = Copies()

    def check() -> None:
        torch.testing.assert_close(copies.of(weight), weight.detach().bfloat16(), rtol=0, atol=0)

    check()
    with torch.no_grad():
        weight.mul_(2)
    check()
    module = nn.Linear(4, 3)
    module.weight = weight
    module.load_state_dict({"weight": torch.ones(3, 4), "bias": torch.zeros(3)})
    check()
    weight.sum().backward()  # type: ignore[no-untyped-call]
    copies.forget()
    torch.optim.Adam([weight], lr=0.1, fused=True).step()  # moves no version
    check()


def test_joint_copies_follow_and_take_over_from_single_ones() -> None:
    weights = [nn.Parameter(torch.randn(rows, 4)) for rows in (3, 1, 2)]
    copies = Copies()
    single = copies.of(weights[1])
    joint = copies.of(*weights)
    torch.testing.assert_close(joint, torch.cat(weights).detach().bfloat16(), rtol=0, atol=0)
    assert copies.of(*weights) is joint
    assert copies.to_write(weights[1]).data_ptr() == joint[3:4].data_ptr() != single.data_ptr()
    with torch.no_grad():
        weights[2].mul_(2)
    torch.testing.assert_close(copies.of(*weights), torch.cat(weights).detach().bfloat16(), rtol=0, atol=0)
    # A weight alone again: memory of its own, and the joint copy of the others is made anew.
    torch.testing.assert_close(copies.of(weights[0]), weights[0].detach().bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(copies.of(*weights), torch.cat(weights).detach().bfloat16(), rtol=0, atol=0)


def test_layers_of_the_same_inputs_are_one_product() -> None:
    torch.manual_seed(0)
    layers, inputs = [nn.Linear(37, outputs) for outputs in (5, 12)], torch.randn(70, 37, requires_grad=True)
    tensors = [inputs, *(parameter for layer in layers for parameter in layer.parameters())]
    with autocast():
        joint = linears(inputs, layers)
        single = torch.cat([linear(inputs, layer.weight, layer.bias) for layer in layers], dim=1)
    found = [[outputs, *torch.autograd.grad(outputs.square().sum(), tensors)] for outputs in (joint, single)]
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= 2 * ROUNDING * theirs.norm()


def test_a_clipped_product_and_its_gradients_are_those_of_relu_after_it() -> None:
    given = factors()
    with autocast():
        clipped, plain = linear(*given, relu=True), F.relu(linear(*given))
    found = [[outputs, *torch.autograd.grad(outputs.sum(), given)] for outputs in (clipped, plain)]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    torch.testing.assert_close(linear(*given, relu=True), F.relu(F.linear(*given)), rtol=0, atol=0)


@pytest.mark.parametrize("rows", [1, 33, 70])
def test_a_left_factor_is_read_as_if_nothing_were_beside_it(rows: int) -> None:
    """oneDNN reads past the end of a row whose length is no multiple of 32."""
    torch.full((500, 500), torch.nan)  # what memory may hold
    matrix, other = torch.randn(rows, 40).bfloat16(), torch.randn(rows, 50).bfloat16()
    turned = transposed(matrix)
    torch.testing.assert_close(turned, matrix.t(), rtol=0, atol=0)
    expected = matrix.t().double() @ other.double()
    torch.testing.assert_close((turned @ other).double(), expected, rtol=ROUNDING, atol=0.01)
    wide = left_factor(matrix, *matrix.shape)
    assert wide._base is not None
    assert not wide._base[:, 40:].any()


def test_a_product_of_other_numbers_is_exact() -> None:
    left, right, bias = (tensor.detach().double() for tensor in factors())
    torch.testing.assert_close(product(left, right, bias, relu=True), F.relu(F.linear(left, right, bias)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.other = Linear(40, 900), Linear(900, 2), nn.Linear(2, 1)

    def forward(self, batch: Tensor) -> Tensor:
        loss: Tensor = self.other(self.two(torch.relu(self.one(batch)))).float().square().mean()
        return loss


CONFIGS: dict[str, dict[str, Any]] = {
    "adam": {"adam": {}},
    "adamw": {"adamw": {}, "weight_decay": 0.1},
    "clipped": {"adam": {}, "clip_gradient_norm": 0.01},
    "plain": {"adam": {"fused": False}},
    "sgd": {"sgd": {}},
}


def trained(algorithm: str, keep: bool, steps: int = 4, precision: str = "bfloat16") -> tuple[Net, GroupedOptimizer]:
    torch.manual_seed(0)
    net = Net()
    config = {**CONFIGS[algorithm], "single_task_learning_rate": {"constant": 0.01}}
    optimizer, scheduler = build_optimizer(net, config)
    state = TrainState(net, optimizer, scheduler, [])
    generator = torch.Generator().manual_seed(1)
    with numbers(precision, net, optimizer, accumulates=not keep) as computing:  # type: ignore[arg-type]
        for _ in range(steps):
            take_step(state, [torch.randn(64, 40, generator=generator)], measure=False, start=0.0, numbers=computing)
    return net, optimizer


@pytest.mark.parametrize("algorithm", CONFIGS)
def test_kept_copies_and_slices_give_the_bits_of_three_walks(algorithm: str) -> None:
    (kept, optimizer), (anew, other) = trained(algorithm, True), trained(algorithm, False)
    for mine, theirs in zip(kept.parameters(), anew.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        assert optimizer.state[mine].keys() == other.state[theirs].keys()


def test_a_training_in_bfloat16_is_near_one_in_float32_and_leaves_nothing_behind() -> None:
    (half, optimizer), (full, _) = trained("adam", True), trained("adam", True, precision="float32")
    for mine, theirs in zip(half.parameters(), full.parameters(), strict=True):
        assert mine.dtype is torch.float32
        assert mine.grad is not None
        assert mine.grad.dtype is torch.float32
        assert (mine - theirs).abs().mean() < 0.01  # of four steps of 0.01
    assert optimizer.copies is None
    copy.deepcopy(half)(torch.zeros(2, 40)).backward()


def test_gradients_are_kept_in_bfloat16_only_where_the_optimizer_takes_them() -> None:
    for algorithm in CONFIGS:
        kept = torch.bfloat16 if algorithm in ("adam", "adamw") else torch.float32
        net = Net()
        config = {**CONFIGS[algorithm], "single_task_learning_rate": {"constant": 0.01}}
        optimizer, _ = build_optimizer(net, config)
        with numbers("bfloat16", net, optimizer) as computing:
            with computing.forward():
                loss = net(torch.randn(8, 40))
            loss.backward()
            assert net.one.weight.grad is not None
            assert net.one.weight.grad.dtype is kept
            assert net.other.weight.grad is not None
            assert net.other.weight.grad.dtype is torch.float32


def test_auto_takes_bfloat16_for_a_large_model_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(SMALLEST // 10, 10))
    for supported in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda supported=supported: supported)
        assert multiplies_bfloat16(CPU) is supported
        for model, precision, expected in (
            (small, "auto", torch.float32),
            (large, "auto", torch.bfloat16 if supported else torch.float32),
            (small, "bfloat16", torch.bfloat16),
            (large, "float32", torch.float32),
        ):
            with numbers(precision, model, torch.optim.SGD(model.parameters())) as found:  # type: ignore[arg-type]
                assert found.dtype is expected


def test_float32_is_what_a_step_computes_in_by_default() -> None:
    with Numbers(CPU).forward():
        assert not torch.is_autocast_enabled("cpu")
