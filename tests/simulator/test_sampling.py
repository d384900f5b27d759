import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tml.simulator.sampling import draw_in_rows, expand


def test_draws_follow_each_rows_weights() -> None:
    weights = np.array([[1.0, 2.0, 0.0, 1.0], [0.0, 0.0, 5.0, 0.0], [0.1, 0.0, 0.0, 0.9]])
    rows = np.tile([0, 1, 2], 20_000)
    drawn = draw_in_rows(weights, rows, np.random.default_rng(0))
    for row, weight in enumerate(weights):
        share = np.bincount(drawn[rows == row], minlength=4) / 20_000
        np.testing.assert_allclose(share, weight / weight.sum(), atol=5 * 0.5 / np.sqrt(20_000))


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.lists(st.sampled_from([0.0, 1e-12, 0.5, 1.0, 1e9]), min_size=3, max_size=3), min_size=1, max_size=5),
    st.integers(0, 2**32),
)
def test_what_has_no_weight_is_never_drawn(weights: list[list[float]], seed: int) -> None:
    matrix = np.array([row if sum(row) > 0 else [0.0, 1.0, 0.0] for row in weights])
    rows = np.arange(200) % len(matrix)
    drawn = draw_in_rows(matrix, rows, np.random.default_rng(seed))
    assert (matrix[rows, drawn] > 0).all()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), max_size=20))
def test_expand_counts_within_each_group(lengths: list[int]) -> None:
    owner, place = expand(np.array(lengths, dtype=np.int64))
    assert list(zip(owner, place, strict=True)) == [(i, j) for i, n in enumerate(lengths) for j in range(n)]
