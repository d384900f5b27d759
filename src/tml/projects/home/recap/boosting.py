"""What the ranker must beat on its own inputs: gradient boosted trees (LightGBM, Ke et al. 2017), one model a task.

Trees see the same columns as the ranker: continuous ones as they are, NaN and infinities as missing; binary ones;
pre-trained embeddings; discrete ones as categories. The last tenth of training, in time, is held apart within training:
it says when to stop, and which of a few settings is best, if there is a search. The number of trees is then known, and
the model is fitted once more on all of the training examples: the latest ones tell most about what comes next.

All tasks share one binned copy of the data. Examples whose label does not count have weight 0. Rows are binned in the
order of time and no thread count is left to chance, so the same data gives the same trees.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from tml.core.config import BaseConfig
from tml.core.errors import DataError
from tml.core.progress import progress
from tml.projects.home.recap.config import InputShapes

Floats = npt.NDArray[np.float32]

INNER_SHARE = 0.1
"""Part of the training examples, the latest, that decides when to stop."""

SMALLEST_INNER = 20
"""With fewer examples than this held apart there is nothing to decide by."""


class LightGbmConfig(BaseConfig):
    """Gradient boosted trees on the ranker's inputs, one model a task.

    Attributes:
        num_leaves, learning_rate, min_data_in_leaf, feature_fraction: as LightGBM has them.
        categorical: whether discrete columns are categories; else they are numbers, in the order of their vocabulary.
        max_trees: at most, if nothing stops before.
        stop_after: trees without a better cross-entropy on what is held apart within training.
        search: try the settings of `SEARCH` for each task and keep the best, by what is held apart within training.
        max_rows: the latest training examples that are fitted.
    """

    num_leaves: int = Field(15, ge=2)
    learning_rate: float = Field(0.1, gt=0)
    min_data_in_leaf: PositiveInt = 100
    feature_fraction: float = Field(0.3, gt=0, le=1)
    categorical: bool = True
    max_trees: PositiveInt = 1000
    stop_after: PositiveInt = 30
    search: bool = False
    max_rows: PositiveInt = 2_000_000


SEARCH: tuple[Mapping[str, Any], ...] = (
    {"num_leaves": 7, "min_data_in_leaf": 100, "feature_fraction": 0.3, "learning_rate": 0.1},
    {"num_leaves": 15, "min_data_in_leaf": 100, "feature_fraction": 0.3, "learning_rate": 0.05},
    {"num_leaves": 31, "min_data_in_leaf": 100, "feature_fraction": 0.5, "learning_rate": 0.05},
    {"num_leaves": 31, "min_data_in_leaf": 400, "feature_fraction": 0.3, "learning_rate": 0.05},
    {"num_leaves": 63, "min_data_in_leaf": 400, "feature_fraction": 0.2, "learning_rate": 0.03},
)
"""What a search tries, each with categories and without; the first that is best is kept."""


def is_installed() -> bool:
    """Whether LightGBM is there: `pip install 'tml[baselines]'`."""
    return find_spec("lightgbm") is not None


def tree_matrix(batch: Mapping[str, Tensor], shapes: InputShapes) -> Floats:
    """A batch as trees take it, (batch, columns) float32: continuous, binary, embeddings, and the discrete ones last.

    A discrete value out of range is 0, unknown, as for the ranker.
    """
    continuous = batch["continuous"].float()
    parts = [torch.where(continuous.isfinite(), continuous, torch.nan), batch["binary"].float()]
    parts += [batch[name].float() for name in shapes.embeddings]
    if shapes.discrete:
        values, sizes = batch["discrete"], torch.tensor(shapes.discrete)
        parts.append(torch.where((values >= 0) & (values < sizes), values, 0).float())
    matrix: Floats = torch.cat(parts, dim=1).numpy()
    return matrix


@dataclass(frozen=True)
class TaskTrees:
    """The model of one task.

    Attributes:
        booster: LightGBM's; None where training has one class only.
        rate: the base rate, which then stands for every prediction.
        settings: what it was fitted with.
        trees: how many.
    """

    booster: Any
    rate: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    trees: int = 0

    def predict(self, matrix: Floats) -> npt.NDArray[np.float64]:
        """Probabilities, (rows,), of rows of `tree_matrix`."""
        if self.booster is None or not len(matrix):
            return np.full(len(matrix), self.rate)
        said: npt.NDArray[np.float64] = self.booster.predict(matrix)
        return said


class BoostedTrees:
    """The models of all tasks.

    Args:
        config: how they are fitted.
        seed: of the columns and rows that each tree sees.

    Attributes:
        tasks: the fitted model of each task, in the order of the labels' columns.

    Example:
        >>> x = np.arange(400, dtype=np.float32).reshape(-1, 1) % 7
        >>> trees = BoostedTrees(LightGbmConfig(min_data_in_leaf=5), seed=0).fit([x], x > 3, discrete=0)
        >>> bool(trees.predict(x)[4, 0] > 0.5 > trees.predict(x)[0, 0])
        True
    """

    def __init__(self, config: LightGbmConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.tasks: list[TaskTrees] = []

    def fit(self, chunks: Sequence[Floats], labels: npt.ArrayLike, discrete: int) -> "BoostedTrees":
        """Fit a model a task.

        Args:
            chunks: the training rows, in the order of time, as matrices of the same columns.
            labels: (rows, tasks) 0, 1, or NaN, which does not count.
            discrete: how many columns, the last ones, are discrete.

        Raises:
            DataError: no rows, or another number of labels than of rows.
        """
        y = np.asarray(labels, np.float32)
        rows = sum(map(len, chunks))
        if not rows or rows != len(y):
            raise DataError(f"boosted trees: found {rows} rows and {len(y)} labels, allowed is one number above 0")
        width = chunks[0].shape[1]
        categories = list(range(width - discrete, width))
        fits = [_Fit(self.config, self.seed, y[:, task]) for task in range(y.shape[1])]
        kinds = self._kinds(discrete)
        with progress("fit trees", total=len(fits) * len(kinds), unit="tasks") as bar:
            for categorical in kinds:
                # One binned copy for all tasks; a second one only where a search asks for both kinds.
                data = _Data(chunks, categories if categorical else [], rows)
                for fit in fits:
                    fit.try_all(data, categorical)
                    bar.advance()
        self.tasks = [fit.result for fit in fits]
        return self

    def _kinds(self, discrete: int) -> tuple[bool, ...]:
        if not discrete:
            return (False,)
        return (True, False) if self.config.search else (self.config.categorical,)

    def predict(self, matrix: Floats) -> npt.NDArray[np.float64]:
        """Probabilities, (rows, tasks)."""
        return np.stack([task.predict(matrix) for task in self.tasks], axis=1)


class _Data:
    """The training rows, binned once: all of them, and cut in time into what is fitted and what decides."""

    def __init__(self, chunks: Sequence[Floats], categories: list[int], rows: int) -> None:
        import lightgbm

        settings = {"feature_pre_filter": False, "verbosity": -1, "force_col_wise": True}
        # As a list: LightGBM bins the chunks one by one, and no copy of the whole is made.
        self.whole = lightgbm.Dataset(list(chunks), categorical_feature=categories, params=settings).construct()
        self.cut = rows - int(rows * INNER_SHARE)
        self.fitted = self.whole.subset(list(range(self.cut))).construct()
        self.inner = self.whole.subset(list(range(self.cut, rows))).construct()


class _Fit:
    """The fit of one task.

    Attributes:
        result: the best model so far.
    """

    def __init__(self, config: LightGbmConfig, seed: int, labels: npt.NDArray[np.float32]) -> None:
        self.config, self.seed = config, seed
        self.counts = np.isfinite(labels).astype(np.float32)
        self.labels = np.nan_to_num(labels)
        rate = float(self.labels.sum() / self.counts.sum()) if self.counts.any() else 0.5
        self.result = TaskTrees(None, rate)
        self.least = float("inf")

    def try_all(self, data: _Data, categorical: bool) -> None:
        """Try the settings on binned data, and fit the best on all of it, if it is better than what there was."""
        rate = self.result.rate
        if not 0 < rate < 1:
            return
        loss, trees, settings = min((self._try(data, settings) for settings in self._candidates()), key=lambda t: t[0])
        if loss < self.least:
            self.least = loss
            self._label(data.whole, slice(None))
            booster = self._train(data.whole, settings, trees)
            self.result = TaskTrees(booster, rate, {**settings, "categorical": categorical}, trees)

    def _candidates(self) -> Iterator[dict[str, Any]]:
        names = ("num_leaves", "min_data_in_leaf", "feature_fraction", "learning_rate")
        own = {name: getattr(self.config, name) for name in names}
        yield from ({**own, **other} for other in SEARCH) if self.config.search else (own,)

    def _try(self, data: _Data, settings: dict[str, Any]) -> tuple[float, int, dict[str, Any]]:
        """The cross-entropy on what is held apart, and how many trees of which settings reach it."""
        import lightgbm

        inner = slice(data.cut, None)
        if self.counts[inner].sum() < SMALLEST_INNER or not 0 < self.labels[: data.cut].sum() < data.cut:
            return 0.0, self.config.stop_after, settings
        self._label(data.fitted, slice(data.cut))
        self._label(data.inner, inner)
        stop = lightgbm.early_stopping(self.config.stop_after, verbose=False)
        booster = self._train(data.fitted, settings, self.config.max_trees, valid_sets=[data.inner], callbacks=[stop])
        loss = float(booster.best_score["valid_0"]["binary_logloss"])
        return loss, max(1, int(booster.best_iteration)), settings

    def _label(self, data: Any, rows: slice) -> None:
        data.set_label(self.labels[rows])
        data.set_weight(None if self.counts.all() else self.counts[rows])

    def _train(self, data: Any, settings: Mapping[str, Any], trees: int, **more: Any) -> Any:
        import lightgbm

        parameters = {
            "objective": "binary",
            "verbosity": -1,
            "deterministic": True,
            "force_col_wise": True,
            "seed": self.seed,
            "num_threads": torch.get_num_threads(),
            "feature_pre_filter": False,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "lambda_l2": 10.0,
            # Rare categories tell little: without this they are where trees overfit.
            "cat_smooth": 100.0,
            "cat_l2": 50.0,
            "min_data_per_group": 200,
            **settings,
        }
        return lightgbm.train(parameters, data, trees, **more)
