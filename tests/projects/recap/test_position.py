"""Position debias: known in training, dropped at random, neutral where it is not known."""

import pytest
import torch

from tml.projects.home.recap.config import PositionDebiasConfig
from tml.projects.home.recap.position import UNKNOWN, PositionDebias


def make(**changes: float) -> PositionDebias:
    return PositionDebias(PositionDebiasConfig(max_position=5, num_dims=3, **changes), torch.Generator().manual_seed(0))


def batch(*positions: int) -> dict[str, torch.Tensor]:
    return {"continuous": torch.zeros(len(positions), 1), "position": torch.tensor(positions)}


def test_each_position_has_a_vector_up_to_the_last_and_an_unknown_one_the_neutral() -> None:
    debias = make().eval()
    table = debias.table.weight
    assert torch.equal(debias(batch(0, 4, 5, 6, 1000, UNKNOWN, -7)), table[[1, 5, 6, 6, 6, 0, 0]])
    assert torch.equal(debias({"continuous": torch.zeros(2, 1)}), table[[0, 0]])


def test_a_discrete_column_counts_from_one_and_zero_is_unknown() -> None:
    debias = make(position_feature_index=1).eval()
    found = debias({"discrete": torch.tensor([[9, 0], [9, 1], [9, 6], [9, 7]])})
    assert torch.equal(found, debias.table.weight[[0, 1, 6, 6]])


def test_positions_are_dropped_in_training_alone() -> None:
    debias, inputs = make(drop_probability=0.4), batch(*[2] * 10_000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        neutral = (debias(inputs) == debias.table.weight[0]).all(dim=1).float().mean().item()
    assert neutral == pytest.approx(0.4, abs=0.02)
    assert torch.equal(debias.eval()(inputs), debias.table.weight[3].expand(10_000, -1))


def test_a_ranking_without_positions_learns_the_mean_of_them() -> None:
    """A logit of the position's vector alone: the neutral one learns the base rate over all positions."""
    debias = make(drop_probability=0.5)
    head = torch.nn.Linear(3, 1)
    optimizer = torch.optim.Adam([*debias.parameters(), *head.parameters()], lr=0.05)
    generator = torch.Generator().manual_seed(0)
    rates = torch.tensor([0.8, 0.4, 0.2, 0.1])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(400):
            positions = torch.randint(0, 4, (512,), generator=generator)
            labels = (torch.rand(512, generator=generator) < rates[positions]).float()
            logits = head(debias({"continuous": torch.zeros(512, 1), "position": positions}))[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    debias.eval()
    found = torch.sigmoid(head(debias(batch(0, 1, 2, 3, UNKNOWN))))[:, 0]
    torch.testing.assert_close(found, torch.tensor([0.8, 0.4, 0.2, 0.1, 0.375]), rtol=0, atol=0.06)
