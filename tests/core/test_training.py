"""The loop: exactly so many steps, and a training interrupted anywhere is the one that never was."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from tml.core import checkpoint
from tml.core.errors import DataError, UserError
from tml.core.step import _to_device
from tml.core.training import TrainingConfig, TrainResult, TrainState, resume, train


class Model(nn.Module):
    """Two tasks, with all that has a state of its own: batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))

    def forward(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any]]:
        losses = (self.layers(batch["x"]) - batch["y"]).square().mean(dim=0)
        return losses.mean(), {"losses": {"like": losses[0], "reply": losses[1]}}


class Batches:
    """Endless batches that know their position."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            generator = torch.Generator().manual_seed(self.given)
            self.given += 1
            yield {"x": torch.randn(6, 4, generator=generator), "y": torch.randn(6, 2, generator=generator)}

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.given = state["given"]


class WithoutPosition:
    """The same batches, without a word of where they are."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(Batches())


def make(batches: Any = None, seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 20))
    return TrainState(model, optimizer, schedule, batches or Batches())


CONFIG = TrainingConfig(num_steps=25, log_every=4, evaluate_every=10, checkpoint_every=7)


def evaluate(model: nn.Module) -> dict[str, float]:
    assert not model.training
    assert not torch.is_grad_enabled()
    # An evaluation that draws random numbers must not make a resumed training another one.
    return {"noisy": float(torch.rand(())), "auc/like": float("nan"), "weight": float(next(model.parameters()).sum())}


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics, without those that are of the clock."""
    clock = ("seconds", "train/examples_per_second")
    parsed = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in clock} for line in parsed]


def stop_at(step: int) -> Callable[[TrainState, Mapping[str, float]], None]:
    def stop(state: TrainState, _measured: Mapping[str, float]) -> None:
        if state.step == step:
            raise KeyboardInterrupt

    return stop


def go_on(folder: Path, batches: Any = None) -> tuple[TrainState, TrainResult]:
    """What a new process does."""
    state = make(batches, seed=99)
    resume(state, folder, "config")
    torch.manual_seed(98)
    return state, train(state, CONFIG, folder, evaluate, fingerprint="config")


def assert_same(state: TrainState, folder: Path, reference: tuple[TrainState, Path]) -> None:
    other, other_folder = reference
    for name, value in other.model.state_dict().items():
        assert torch.equal(value, state.model.state_dict()[name]), name
    assert lines(folder) == lines(other_folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainState, Path]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    state = make()
    train(state, CONFIG, folder, evaluate, fingerprint="config")
    return state, folder


def test_exactly_so_many_steps_each_thing_at_its_own_time(uninterrupted: tuple[TrainState, Path]) -> None:
    state, folder = uninterrupted
    assert state.step == 25
    assert next(iter(state.optimizer.state.values()))["step"] == 25
    assert state.batches.given == 25  # type: ignore[attr-defined]
    assert [line["step"] for line in lines(folder) if "train/loss" in line] == [4, 8, 12, 16, 20, 24, 25]
    assert [line["step"] for line in lines(folder) if "validation/noisy" in line] == [10, 20, 25]
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(folder / "checkpoints")] == [14, 21, 25]


def test_tensorboard_has_the_same_values(uninterrupted: tuple[TrainState, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, folder = uninterrupted
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    for key in ("train/loss", "train/loss/reply", "learning_rate/0", "gradient_norm", "validation/noisy"):
        expected = [(line["step"], line[key]) for line in lines(folder) if key in line]
        found = [(scalar.step, scalar.value) for scalar in events.Scalars(key)]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected], key
    assert "validation/auc/like" not in events.Tags()["scalars"]
    assert lines(folder)[-1]["validation/auc/like"] is None


def test_the_log_is_the_average_since_the_last_one(tmp_path: Path) -> None:
    config = TrainingConfig(num_steps=8, log_every=4)
    train(make(), config, tmp_path)

    reference = make()
    reference.model.train()
    losses, rates, norms = [], [], []
    batches = iter(reference.batches)
    for _ in range(8):
        loss, outputs = reference.model(next(batches))
        reference.optimizer.zero_grad()
        loss.backward()
        rates.append(reference.optimizer.param_groups[0]["lr"])
        norms.append(float(torch.cat([p.grad.flatten() for p in reference.model.parameters()]).norm()))  # type: ignore[union-attr]
        reference.optimizer.step()
        reference.scheduler.step()  # type: ignore[union-attr]
        losses.append((loss.item(), outputs["losses"]["like"].item()))
    first, second = lines(tmp_path)
    for line, part in ((first, losses[:4]), (second, losses[4:])):
        assert line["train/loss"] == pytest.approx(sum(loss for loss, _ in part) / 4)
        assert line["train/loss/like"] == pytest.approx(sum(like for _, like in part) / 4)
    assert second["learning_rate/0"] == rates[7]
    assert second["gradient_norm"] == pytest.approx(norms[7], rel=1e-6)


@pytest.mark.parametrize("step", [1, 3, 4, 7, 10, 13, 20, 24, 25])
def test_interrupted_and_resumed_is_uninterrupted(
    step: int, tmp_path: Path, uninterrupted: tuple[TrainState, Path]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(make(), CONFIG, tmp_path, evaluate, [stop_at(step)], fingerprint="config")
    assert checkpoint.latest(tmp_path / "checkpoints", "config") == tmp_path / f"checkpoints/step-{step:08d}"
    state, result = go_on(tmp_path)
    assert result.step == 25
    assert result.metrics["train/loss"] == lines(tmp_path)[-2]["train/loss"]
    assert_same(state, tmp_path, uninterrupted)


def test_resumed_without_a_position_reads_past_what_it_has_had(
    tmp_path: Path, uninterrupted: tuple[TrainState, Path]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(make(WithoutPosition()), CONFIG, tmp_path, evaluate, [stop_at(11)], fingerprint="config")
    state, _ = go_on(tmp_path, WithoutPosition())
    assert_same(state, tmp_path, uninterrupted)


def test_a_crash_goes_on_from_the_last_checkpoint(tmp_path: Path, uninterrupted: tuple[TrainState, Path]) -> None:
    def crash(state: TrainState, _measured: Mapping[str, float]) -> None:
        if state.step == 19:
            raise RuntimeError("the machine is gone")

    with pytest.raises(RuntimeError):
        train(make(), CONFIG, tmp_path, evaluate, [crash], fingerprint="config")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "train/l')
    assert checkpoint.latest(tmp_path / "checkpoints", "config") == tmp_path / "checkpoints/step-00000014"
    state, _ = go_on(tmp_path)
    assert_same(state, tmp_path, uninterrupted)


def test_interrupted_while_evaluating(tmp_path: Path, uninterrupted: tuple[TrainState, Path]) -> None:
    def interrupted(model: nn.Module) -> dict[str, float]:
        evaluate(model)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make(), CONFIG, tmp_path, interrupted, fingerprint="config")
    assert checkpoint.latest(tmp_path / "checkpoints", "config") == tmp_path / "checkpoints/step-00000010"
    state, _ = go_on(tmp_path)
    assert_same(state, tmp_path, uninterrupted)


@pytest.mark.parametrize("where", ["before", "after"])
def test_interrupted_in_the_middle_of_a_step(
    where: str, tmp_path: Path, uninterrupted: tuple[TrainState, Path]
) -> None:
    state = make()
    forward, calls = state.model.forward, 0

    def interrupted(batch: Any) -> Any:
        nonlocal calls
        calls += 1
        result = forward(batch) if calls < 18 or where == "after" else None
        if calls == 18:
            raise KeyboardInterrupt
        return result

    state.model.forward = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        train(state, CONFIG, tmp_path, evaluate, fingerprint="config")
    # After the forward pass batch norm has seen the batch: step 17 is not whole any more, so 14 stays the newest.
    newest = {"before": 17, "after": 14}[where]
    assert checkpoint.latest(tmp_path / "checkpoints", "config") == tmp_path / f"checkpoints/step-{newest:08d}"
    state, _ = go_on(tmp_path)
    assert_same(state, tmp_path, uninterrupted)


def test_control_c_waits_for_the_end_of_the_step(tmp_path: Path, uninterrupted: tuple[TrainState, Path]) -> None:
    state = make()

    def press(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if next(iter(optimizer.state.values()))["step"] == 16:
            os.kill(os.getpid(), signal.SIGINT)

    state.optimizer.register_step_post_hook(press)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(state, CONFIG, tmp_path, evaluate, fingerprint="config")
    assert signal.getsignal(signal.SIGINT) is before
    assert state.step == 16
    state, _ = go_on(tmp_path)
    assert_same(state, tmp_path, uninterrupted)


def test_resume_takes_no_checkpoint_of_another_config(tmp_path: Path) -> None:
    train(make(), TrainingConfig(num_steps=3), tmp_path, fingerprint="old")
    state = make()
    assert not resume(state, tmp_path, "new")
    train(state, TrainingConfig(num_steps=2), tmp_path, fingerprint="new")
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path / "checkpoints")] == [2]
    assert [line["step"] for line in lines(tmp_path)] == [2]


def test_a_finished_training_does_nothing_more(tmp_path: Path) -> None:
    config = TrainingConfig(num_steps=3, log_every=1)
    first = train(make(), config, tmp_path)
    state = make(seed=5)
    assert resume(state, tmp_path)
    again = train(state, config, tmp_path)
    assert state.batches.given == 3  # type: ignore[attr-defined]
    assert again.step == 3
    assert train(state, TrainingConfig(num_steps=2), tmp_path).step == 3
    assert again.metrics["train/loss"] == first.metrics["train/loss"]
    assert len(lines(tmp_path)) == 3


def test_generators_are_restored(tmp_path: Path) -> None:
    state = make()
    state.generators = {"negatives": torch.Generator().manual_seed(3)}
    torch.rand(5, generator=state.generators["negatives"])
    train(state, TrainingConfig(num_steps=1), tmp_path)
    expected = torch.rand(2, generator=state.generators["negatives"])
    other = make()
    other.generators = {"negatives": torch.Generator()}
    resume(other, tmp_path)
    other.start()
    assert torch.equal(torch.rand(2, generator=other.generators["negatives"]), expected)


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    train(make(), TrainingConfig(num_steps=1), tmp_path)
    state = make()
    state.model = nn.Sequential(nn.Linear(1, 1))
    with pytest.raises(DataError, match=r"missing 0\.bias, 0\.weight; left over layers\.0\.bias"):
        resume(state, tmp_path)
    state.model = Model()
    state.model.layers[4] = nn.Linear(8, 3)  # type: ignore[operator]
    with pytest.raises(DataError, match=r"another shape layers\.4\.bias, layers\.4\.weight"):
        resume(state, tmp_path)


@pytest.mark.parametrize("infinite", ["loss", "gradient"])
def test_what_is_not_finite_stops_with_the_step(infinite: str, tmp_path: Path) -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            bad = batch.item() == 3
            return (self.weight * (float("nan") if bad and infinite == "loss" else 1.0)).sum() + (
                self.weight.abs().sqrt().sum() if bad and infinite == "gradient" else 0.0
            )

    model = Breaks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    state = TrainState(model, optimizer, None, [torch.tensor(float(i)) for i in range(10)])
    with pytest.raises(UserError, match=f"the {infinite} at step 4 is (nan|inf)"):
        train(state, TrainingConfig(num_steps=10, log_every=1), tmp_path)
    assert state.step == 3
    assert torch.equal(model.weight, torch.zeros(1))


def test_finite_batches() -> None:
    batches = list(zip(range(5), Batches(), strict=False))
    finite = [batch for _, batch in batches]
    assert train(make(finite), TrainingConfig(num_steps=None)).step == 5
    with pytest.raises(DataError, match="ended after step 5, but num_steps is 6"):
        train(make(finite), TrainingConfig(num_steps=6))
    with pytest.raises(DataError, match="no training batches"):
        train(make(iter(())), TrainingConfig(num_steps=None))


def test_a_loss_that_is_none_is_refused() -> None:
    state = make()
    state.model.forward = lambda batch: batch["x"]  # type: ignore[method-assign]
    with pytest.raises(
        UserError, match=r"Model\.forward must return a scalar loss .* found a tensor of shape \(6, 4\)"
    ):
        train(state, TrainingConfig(num_steps=1))


def test_the_position_is_looked_up_before_the_next_batch_is_drawn(tmp_path: Path) -> None:
    """Waiting for a batch can be interrupted too: that batch was not had."""

    class Interrupted(Batches):
        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            for batch in super().__iter__():
                if self.given == 6:
                    raise KeyboardInterrupt
                yield batch

    with pytest.raises(KeyboardInterrupt):
        train(make(Interrupted()), CONFIG, tmp_path, fingerprint="config")
    newest = checkpoint.latest(tmp_path / "checkpoints", "config")
    assert newest is not None
    assert checkpoint.load(newest)["batches"] == {"given": 5}


class Regression(nn.Module):
    """No layer that mixes examples, so that a batch is the sum of its parts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any]]:
        losses = (self.layers(batch["x"]) - batch["y"]).square().mean(dim=0)
        return losses.mean(), {"losses": {"like": losses[0], "reply": losses[1]}}


def regression(batches: Any) -> TrainState:
    model = Regression()
    return TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1), None, batches)


def parts(sizes: list[int], count: int) -> list[list[dict[str, torch.Tensor]]]:
    """`count` large batches, each cut into parts of these sizes."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        x, y = (torch.randn(sum(sizes), width, generator=generator).split(sizes) for width in (4, 2))
        made.append([{"x": one, "y": other} for one, other in zip(x, y, strict=True)])
    return made


@pytest.mark.parametrize("sizes", [[8, 8, 8], [5, 9, 2]])
def test_accumulated_batches_are_one_large_batch(sizes: list[int], tmp_path: Path) -> None:
    pieces = parts(sizes, 20)
    small = regression([piece for batch in pieces for piece in batch])
    large = regression([{n: torch.cat([piece[n] for piece in batch]) for n in ("x", "y")} for batch in pieces])
    train(small, TrainingConfig(num_steps=20, log_every=5, accumulate_batches=3), tmp_path / "small")
    train(large, TrainingConfig(num_steps=20, log_every=5), tmp_path / "large")
    assert (small.step, small.batches_read, large.batches_read) == (20, 60, 20)
    for one, other in zip(small.model.parameters(), large.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    for line, expected in zip(lines(tmp_path / "small"), lines(tmp_path / "large"), strict=True):
        assert line == {key: pytest.approx(value, rel=1e-5) for key, value in expected.items()}


def test_accumulation_resumes_between_steps(tmp_path: Path) -> None:
    config = TrainingConfig(num_steps=9, accumulate_batches=3, checkpoint_every=2)
    whole = make(WithoutPosition())
    train(whole, config)
    with pytest.raises(KeyboardInterrupt):
        train(make(WithoutPosition()), config, tmp_path, None, [stop_at(5)])
    state = make(WithoutPosition(), seed=99)
    assert resume(state, tmp_path)
    assert (state.step, state.batches_read) == (5, 15)
    train(state, config, tmp_path)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, state.model.state_dict()[name]), name


def test_the_last_batches_that_do_not_fill_a_step_make_one() -> None:
    batches = [batch for _, batch in zip(range(7), Batches(), strict=False)]
    state = make(batches)
    assert train(state, TrainingConfig(num_steps=None, accumulate_batches=3)).step == 3
    assert state.batches_read == 7


class Averaging(torch.optim.SGD):
    """Keeps the sum of what was passed, as the average of a training that evaluates with it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.1)
        self.model, self.inside = model, 0

    @contextmanager
    def averaged(self) -> Iterator[None]:
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict({name: torch.zeros_like(value) for name, value in own.items()})
        self.inside += 1
        try:
            yield
        finally:
            self.model.load_state_dict(own)


def test_evaluation_sees_averaged_weights_and_an_interruption_in_it_loses_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Model()
    state = TrainState(model, Averaging(model), None, Batches())

    def zero(model: nn.Module) -> dict[str, float]:
        if state.step == 4:
            raise KeyboardInterrupt
        return {"weight": float(next(model.parameters()).abs().sum())}

    with pytest.raises(KeyboardInterrupt):
        train(state, TrainingConfig(num_steps=6, evaluate_every=2), tmp_path, zero)
    assert [line["validation/weight"] for line in lines(tmp_path)] == [0.0]
    assert next(model.parameters()).any()
    newest = checkpoint.latest(tmp_path / "checkpoints")
    assert newest is not None
    assert checkpoint.step_of(newest) == 4
    saved = checkpoint.load(newest)["model"]
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


class Jagged:
    """What is made of tensors and moves by itself, as TorchRec's batches are."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def to(self, device: torch.device, non_blocking: bool = False) -> "Jagged":
        return Jagged(self.values.to(device, non_blocking=non_blocking))


class Named(NamedTuple):
    dense: torch.Tensor
    jagged: Jagged
    name: str


def test_every_kind_of_batch_is_moved_to_the_device() -> None:
    tensor = torch.zeros(2)
    moved = _to_device({"a": [tensor, (tensor, 3)], "b": Named(tensor, Jagged(tensor), "c")}, torch.device("meta"))
    (first, (second, three)), named = moved["a"], moved["b"]
    assert three == 3
    assert isinstance(named, Named)
    assert named.name == "c"
    assert all(value.device.type == "meta" for value in (first, second, named.dense, named.jagged.values))


class Scalar(nn.Module):
    def __init__(self, outputs: Any, trained: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.outputs, self.trained = outputs, trained

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return (self.weight if self.trained else self.weight.detach()) * batch.sum(), self.outputs


@pytest.mark.parametrize("outputs", [None, {"losses": None}, {"losses": {"like": 0.5, "reply": torch.tensor([2])}}])
def test_losses_of_tasks_are_numbers_or_tensors_or_none(outputs: Any) -> None:
    model = Scalar(outputs)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.0), None, [torch.ones(3)])
    metrics = train(state, TrainingConfig(num_steps=1)).metrics
    expected = {"like": 0.5, "reply": 2.0} if outputs and outputs["losses"] else {}
    assert {key: value for key, value in metrics.items() if key.startswith("train/loss/")} == {
        f"train/loss/{task}": value for task, value in expected.items()
    }


def test_a_loss_without_a_gradient_is_refused() -> None:
    model = Scalar(None, trained=False)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.0), None, [torch.ones(3)])
    with pytest.raises(UserError, match=r"^Scalar\.forward must return a loss with a gradient, found"):
        train(state, TrainingConfig(num_steps=1))


def test_only_the_first_of_several_ranks_tells_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tml.core.training.is_first_rank", lambda: False)
    result = train(make(), TrainingConfig(num_steps=3), tmp_path)
    assert result.step == 3
    assert "train/loss" in result.metrics
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
