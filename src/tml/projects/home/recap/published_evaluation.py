"""The validation sets of a published configuration, each evaluated under its name, alike on one rank and on many.

A set is read once, or as far as `num_eval_steps` and `eval_timeout_in_s` allow, always in the same order. Each rank
collects what its share of the rows says, and the metrics are of all ranks' rows together.
"""

import itertools
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from tml.core.distributed import gathered, is_first_rank, unwrap
from tml.core.progress import progress
from tml.metrics.binary import BinaryResult
from tml.projects.home.recap.conditions import labels_that_count
from tml.projects.home.recap.evaluate import evaluation_table
from tml.projects.home.recap.model import HeavyRanker, RankerLoss
from tml.projects.home.recap.published_config import PublishedConfig, PublishedData
from tml.projects.home.recap.published_data import PublishedInputs, PublishedReader, sampling_ratios
from tml.projects.home.recap.published_segments import SegmentedMetrics


class ValidationSets:
    """Evaluates a model on every validation set of a config.

    Args:
        config: a published configuration.
        inputs: what its model reads.

    Attributes:
        latest: what `evaluate` found last; None before.
    """

    def __init__(self, config: PublishedConfig, inputs: PublishedInputs) -> None:
        self.config, self.inputs = config, inputs
        self.latest: dict[str, Any] | None = None

    @torch.no_grad()
    def evaluate(self, model: HeavyRanker, ratios: Mapping[str, float]) -> dict[str, Any]:
        """The content of `evaluation.json`: for every set its examples, and the metrics of each of its tasks.

        Args:
            model: in evaluation mode; every rank must call it.
            ratios: what training's sampling did to each task, as `sampling_ratios` says.
        """
        sets = {
            name: self._evaluate_set(name, data, model, ratios) for name, data in self.config.validation_data.items()
        }
        self.latest = {"sets": sets}
        return self.latest

    def log_values(self, objective: nn.Module, ratios: Mapping[str, float]) -> dict[str, float]:
        """The same for the training's log: `NAME/auc/TASK` and so on; what is undefined is left out."""
        loss = unwrap(objective)
        assert isinstance(loss, RankerLoss)
        found = self.evaluate(loss.model, ratios)["sets"]
        values = {
            f"validation/{name}/{metric}/{task}": value
            for name, evaluated in found.items()
            for task, result in evaluated["tasks"].items()
            for metric, value in result["models"]["ranker"].items()
        }
        return {name: value for name, value in values.items() if value is not None}

    def _evaluate_set(
        self, name: str, data: PublishedData, model: HeavyRanker, of_training: Mapping[str, float]
    ) -> dict[str, Any]:
        of_set = sampling_of_set(self.inputs, data, self.config.training.num_eval_steps)
        ratios = {task: of_training[task] / of_set[task] for task in model.tasks}
        metrics = SegmentedMetrics(data.evaluated, self.config.model.stratifiers or ())
        training, device, rows = self.config.training, next(model.parameters()).device, 0
        start, is_late = time.monotonic(), False
        with progress(f"evaluate {name}", training.num_eval_steps, "batches", shown=is_first_rank()) as bar:
            for batch in self._batches(self.inputs.reader(data, epochs=1)):
                on_device = {feature: values.to(device) for feature, values in batch.items()}
                said = model.probabilities(on_device, ratios)
                metrics.update(labels_that_count(model.conditions, on_device), said, batch.get("discrete"))
                rows += len(batch["continuous"])
                bar.advance(1)
                is_late = time.monotonic() - start > (training.eval_timeout_in_s or math.inf)
                if is_late:
                    break
        if is_late:
            reason = f"stopped after {training.eval_timeout_in_s:g} s and {rows:,} examples (eval_timeout_in_s)"
            print(f"evaluate {name}: {reason}", file=sys.stderr)
        merged, examples, complete = SegmentedMetrics(data.evaluated, self.config.model.stratifiers or ()), 0, True
        for of_rank, count, was_late in gathered((metrics, rows, is_late)):
            merged.merge(of_rank)
            examples, complete = examples + count, complete and not was_late
        return {
            "examples": examples,
            "complete": complete,
            "tasks": {task: _as_model(own.compute()) for task, own in merged.whole.items()},
            "segments": merged.figures(),
        }

    def _batches(self, reader: PublishedReader) -> Iterator[dict[str, Tensor]]:
        return itertools.islice(reader, self.config.training.num_eval_steps)


def sampling_of_set(inputs: PublishedInputs, data: PublishedData, batches: int | None) -> dict[str, float]:
    """What a set's own sampling did to each task: known only when its batches, or so many, have been counted."""
    reader = inputs.reader(data, epochs=1)
    if data.preprocess.downsample_negatives is not None:
        for _ in itertools.islice(reader, batches):
            pass
    return sampling_ratios(data, reader)


def _as_model(result: BinaryResult) -> dict[str, Any]:
    values = asdict(result)
    counts = {name: values.pop(name) for name in ("positives", "examples")}
    return {**counts, "models": {"ranker": values}}


def evaluation_tables(evaluation: Mapping[str, Any]) -> list[Table]:
    """A table for every validation set."""
    tables = []
    for name, evaluated in evaluation["sets"].items():
        table = evaluation_table(evaluated)
        table.title = f"{escape(name)}: {evaluated['examples']:,} examples" + (
            "" if evaluated["complete"] else ", in part"
        )
        tables.append(table)
    return tables
