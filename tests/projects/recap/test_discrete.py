"""Small embeddings: each column has rows of its own, and a width by rule."""

import numpy as np
import pytest
import torch

from tml.core.errors import ConfigError
from tml.projects.home.recap.config import DimensionRuleConfig, SmallEmbeddingsConfig, SmallTableConfig
from tml.projects.home.recap.discrete import MixedEmbeddings, SmallEmbeddings, build_small_embeddings, width_of


def test_small_embeddings_look_up_each_columns_own_rows() -> None:
    embeddings = SmallEmbeddings((3, 1, 4), width=2, generator=torch.Generator().manual_seed(0))
    tables = embeddings.table.weight.detach().numpy()
    a, b, c = tables[:3], tables[3:4], tables[4:]
    discrete = torch.tensor([[0, 0, 0], [2, 0, 3], [1, 0, 2]])
    expected = [np.concatenate([a[i], b[j], c[k]]) for i, j, k in discrete.tolist()]
    np.testing.assert_array_equal(embeddings(discrete).detach(), expected)


def test_an_index_outside_a_column_is_its_unknown_value() -> None:
    embeddings = SmallEmbeddings((3, 1, 4), width=2)
    outside = torch.tensor([[3, 1, 4], [-1, -7, 10**12], [99, 2, -(2**63)]])
    torch.testing.assert_close(embeddings(outside), embeddings(torch.zeros(3, 3, dtype=torch.int64)))


def test_the_rule_gives_wider_vectors_to_columns_of_more_values() -> None:
    config = SmallEmbeddingsConfig(dimension_rule=DimensionRuleConfig(factor=2, power=0.25, largest=12))
    assert [width_of(config, size) for size in (1, 16, 17, 81, 10**6)] == [2, 4, 5, 6, 12]
    module, fields = build_small_embeddings(config, (16, 81, 15))
    assert fields == (4, 4, 6)
    assert isinstance(module, MixedEmbeddings)
    found = module(torch.tensor([[3, 80, 2], [16, 0, 14]])).detach()
    narrow, wide = module.groups["4"].table.weight.detach(), module.groups["6"].table.weight.detach()
    expected = [torch.cat([narrow[3], narrow[16 + 2], wide[80]]), torch.cat([narrow[0], narrow[16 + 14], wide[0]])]
    assert torch.equal(found, torch.stack(expected))


def test_tables_choose_columns_sizes_and_widths() -> None:
    tables = (
        SmallTableConfig(index=2, name="country", num_embeddings=4, embedding_dim=3),
        SmallTableConfig(index=0),
    )
    module, fields = build_small_embeddings(SmallEmbeddingsConfig(embedding_dim=5, tables=tables), (7, 9, 1))
    assert module is not None
    assert fields == (3, 5)
    # The dataset knows of one value; a published one counts none, and the table says how many there are.
    four = module(torch.tensor([[0, 8, 3], [0, 0, 4]])).detach()
    assert not torch.equal(four[0], four[1])
    assert torch.equal(four[1], module(torch.tensor([[0, 0, 0]]))[0])
    with pytest.raises(ConfigError, match="found the index 2, allowed is less than the 2 discrete columns"):
        build_small_embeddings(SmallEmbeddingsConfig(tables=tables), (7, 9))


def test_a_column_can_be_left_out_to_the_last() -> None:
    _, fields = build_small_embeddings(SmallEmbeddingsConfig(embedding_dim=5), (7, 9), without=1)
    assert fields == (5,)
    assert build_small_embeddings(SmallEmbeddingsConfig(), (7,), without=0) == (None, ())
