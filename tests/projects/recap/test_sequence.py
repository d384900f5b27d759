"""Target attention over what a viewer was shown last: the formula in NumPy, what is not there, and what it learns."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from tml.core.errors import ConfigError
from tml.data.id_numbers import NO_ID
from tml.embeddings.files import Embeddings
from tml.projects.home.recap.config import InputShapes, ModelConfig, SequenceAttentionConfig
from tml.projects.home.recap.data import ShownVectors
from tml.projects.home.recap.model import HeavyRanker
from tml.projects.home.recap.sequence import AGES, SequenceAttention

CONFIG = SequenceAttentionConfig(num_embeddings=50, embedding_dim=6, num_heads=2)


def make(config: SequenceAttentionConfig = CONFIG) -> SequenceAttention:
    generator = torch.Generator().manual_seed(0)
    attention = SequenceAttention(config, engagements=3, vectors=(9, 4), generator=generator)
    attention.initialise(torch.randn(8, 4, generator=generator))
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return attention.eval()


def batch(rows: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    posts = torch.randint(0, 40, (rows, length), generator=generator)
    there = torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=generator)
    seconds = torch.rand(rows, length, generator=generator).mul(14).exp() - 1
    seconds[::3, -1] = -1
    return {
        "sequence_posts": torch.where(there, posts, NO_ID),
        "sequence_outcomes": torch.randint(0, 8, (rows, length), generator=generator, dtype=torch.int32),
        "sequence_ages": seconds,
        "sequence_rows": torch.randint(0, 9, (rows, length), generator=generator),
        "sequence_target_row": torch.randint(0, 9, (rows,), generator=generator),
        "post_id": torch.randint(0, 40, (rows,), generator=generator),
    }


def slow(attention: SequenceAttention, inputs: dict[str, torch.Tensor], row: int) -> np.ndarray:
    weights = {
        name: value.double().numpy() for name, value in attention.state_dict().items() if value.is_floating_point()
    }

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def post(identifier: int, row: torch.Tensor) -> np.ndarray:
        own = attention.posts(torch.tensor([identifier])).detach().double().numpy()[0]
        return own + weights["projection.weight"] @ weights["vectors"][row]

    target = post(int(inputs["post_id"][row]), inputs["sequence_target_row"][row])
    query, part = linear("query", target), 3
    scores: list[list[float]] = [[], []]
    values = []
    for place, identifier in enumerate(inputs["sequence_posts"][row].tolist()):
        if identifier == NO_ID:
            continue
        seconds = float(inputs["sequence_ages"][row, place])
        age = AGES - 1 if seconds < 0 else min(int(np.log2(seconds / 60 + 1)), AGES - 2)
        outcome = int(inputs["sequence_outcomes"][row, place])
        told = linear("outcome", np.array([outcome >> bit & 1 for bit in range(3)])) + weights["age"][age]
        event = np.concatenate([post(identifier, inputs["sequence_rows"][row, place]), told])
        key = linear("key", event)
        values.append(linear("value", event))
        for head in range(2):
            own = slice(part * head, part * head + part)
            scores[head].append(query[own] @ key[own] / np.sqrt(part) + weights["age_bias"][age, head])
    attended = []
    for head in range(2):
        share = np.exp(scores[head] - np.max(scores[head]))
        attended.append((share / share.sum()) @ np.array(values)[:, part * head : part * head + part])
    out = np.concatenate([target, *attended, np.mean(values, axis=0)])
    out = (out - out.mean()) / np.sqrt(out.var() + 1e-5)
    return out * weights["norm.weight"] + weights["norm.bias"]


def test_it_is_the_formula() -> None:
    attention, inputs = make(), batch(12, 5)
    found = attention(inputs).detach().double().numpy()
    for row in range(12):
        np.testing.assert_allclose(found[row], slow(attention, inputs, row), rtol=0, atol=2e-4)


def test_what_is_not_there_and_its_order_do_not_matter() -> None:
    attention, inputs = make(), batch(12, 5)
    said = attention(inputs)
    longer = {name: torch.nn.functional.pad(v, (0, 3), value=0) if v.ndim == 2 else v for name, v in inputs.items()}
    longer["sequence_posts"][:, 5:] = NO_ID
    torch.testing.assert_close(attention(longer), said)
    turned = {name: values.flip(1) if values.ndim == 2 else values for name, values in inputs.items()}
    torch.testing.assert_close(attention(turned), said, rtol=1e-4, atol=1e-5)


def test_a_viewer_without_a_past_has_finite_outputs_and_gradients() -> None:
    attention, inputs = make(), batch(3, 4)
    inputs["sequence_posts"].fill_(NO_ID)
    outputs = attention(inputs)
    outputs.sum().backward()
    assert outputs.isfinite().all()
    assert all(p.grad is None or p.grad.to_dense().isfinite().all() for p in attention.parameters())


def test_gradients_have_the_same_bits_on_several_threads() -> None:
    attention, inputs = make(), batch(400, 30)
    target = torch.randn(400, sum(attention.fields), generator=torch.Generator().manual_seed(2))
    found = []
    torch.set_num_threads(4)
    try:
        for _ in range(8):
            attention.zero_grad()
            (attention(inputs) * target).sum().backward()
            found.append({name: p.grad.to_dense() for name, p in attention.named_parameters() if p.grad is not None})
    finally:
        torch.set_num_threads(1)
    for gradients in found[1:]:
        for name, gradient in gradients.items():
            assert torch.equal(gradient, found[0][name]), name


def test_it_learns_that_a_post_is_liked_again() -> None:
    """The label is whether the post that is ranked was liked before: only attention over the sequence can tell."""
    shapes = InputShapes(continuous=1, tasks=("again",), sequence_length=4, sequence_engagements=1)
    config = ModelConfig(sequence_config=SequenceAttentionConfig(num_embeddings=2000, embedding_dim=16))
    generator = torch.Generator().manual_seed(0)
    model = HeavyRanker(config, shapes, generator)
    optimizer = torch.optim.SparseAdam([p for n, p in model.named_parameters() if "sequence.posts" in n], lr=0.01)
    others = torch.optim.Adam([p for n, p in model.named_parameters() if "sequence.posts" not in n], lr=0.003)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(300):
            posts = torch.randint(0, 8, (256, 1), generator=generator) + torch.arange(4) * 2
            outcomes = torch.randint(0, 2, (256, 4), generator=generator, dtype=torch.int32)
            target = posts[:, 1]
            again = ((posts == target[:, None]) & (outcomes > 0)).any(dim=1).float()
            inputs = {
                "continuous": torch.zeros(256, 1),
                "binary": torch.zeros(256, 0),
                "sequence_posts": posts,
                "sequence_outcomes": outcomes,
                "sequence_ages": torch.full((256, 4), 60.0),
                "post_id": target,
            }
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(inputs)[:, 0], again)
            optimizer.zero_grad()
            others.zero_grad()
            loss.backward()
            optimizer.step()
            others.step()
    assert loss < 0.2


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValidationError, match="num_heads: found 4, allowed are divisors"):
        SequenceAttentionConfig(embedding_dim=6)
    with pytest.raises(ConfigError, match="sequence_config: found one, but the dataset has no sequences"):
        HeavyRanker(ModelConfig(sequence_config=CONFIG), InputShapes(continuous=1, tasks=("a",)))


def test_vectors_of_a_file_have_one_length_and_an_unknown_post_has_none() -> None:
    attention = make()
    lengths = attention.vectors.norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([0.0] + [2.0] * 8))
    shown = ShownVectors(Embeddings(pa.array([30, 10, 20]), np.array([[3.0], [1.0], [2.0]], np.float32)))
    rows = shown.rows(torch.tensor([[10, 30, 15], [20, NO_ID, 99]]))
    assert rows.tolist() == [[1, 3, 0], [2, 0, 0]]
    assert shown.vectors[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert shown.shape == (4, 1)
    assert ShownVectors(Embeddings(pa.array([], pa.int64()), np.zeros((0, 1), np.float32))).rows(rows).sum() == 0
