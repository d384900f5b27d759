"""The validation sets of a published configuration, each evaluated under its name, alike on one rank and on many.

A set is read once, or as far as `num_eval_steps` and `eval_timeout_in_s` allow, always in the same order. Each rank
collects what its share of the rows says, and the metrics are of all ranks' rows together.
"""

import itertools
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from tml.core.distributed import gathered, is_first_rank, unwrap
from tml.core.progress import progress
from tml.metrics.binary import BinaryMetrics, BinaryResult
from tml.projects.home.recap.calibration import calibrated_probabilities
from tml.projects.home.recap.evaluate import METRICS, evaluation_table
from tml.projects.home.recap.model import HeavyRanker, RankerLoss
from tml.projects.home.recap.published_config import PublishedConfig, PublishedData
from tml.projects.home.recap.published_data import PublishedInputs, PublishedReader, sampling_ratios


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
            f"validation/{name}/{metric}/{task}": result["models"]["ranker"][metric]
            for name, evaluated in found.items()
            for task, result in evaluated["tasks"].items()
            for metric in METRICS
        }
        return {name: value for name, value in values.items() if value is not None}

    def _evaluate_set(
        self, name: str, data: PublishedData, model: HeavyRanker, of_training: Mapping[str, float]
    ) -> dict[str, Any]:
        reader = self.inputs.reader(data, epochs=1)
        labels, probabilities, complete = self._predict(name, data, model, reader)
        # Only now is it known what `downsample_negatives` did to the set.
        of_set = sampling_ratios(data, reader)
        own = [BinaryMetrics() for _ in data.evaluated]
        for number, task in enumerate(data.evaluated):
            logits = torch.logit(probabilities[number].double())
            corrected = calibrated_probabilities(logits, of_training[task] / of_set[task])
            own[number].update(labels[number].numpy(), corrected.numpy())
        merged = [BinaryMetrics() for _ in data.evaluated]
        rows, all_complete = 0, True
        for of_rank, count, is_whole in gathered((own, labels.shape[1], complete)):
            rows, all_complete = rows + count, all_complete and is_whole
            for metrics, others in zip(merged, of_rank, strict=True):
                metrics.merge(others)
        tasks = {task: _as_model(metrics.compute()) for task, metrics in zip(data.evaluated, merged, strict=True)}
        return {"examples": rows, "complete": all_complete, "tasks": tasks}

    def _predict(
        self, name: str, data: PublishedData, model: HeavyRanker, reader: PublishedReader
    ) -> tuple[Tensor, Tensor, bool]:
        """Labels and uncorrected probabilities, (tasks, rows) each, of this rank, and whether time was enough."""
        training, device = self.config.training, next(model.parameters()).device
        labels, probabilities, start = [], [], time.monotonic()
        is_late = False
        batches = itertools.islice(reader, training.num_eval_steps)
        with progress(f"evaluate {name}", training.num_eval_steps, "batches", shown=is_first_rank()) as bar:
            for batch in batches:
                said = model.probabilities({feature: values.to(device) for feature, values in batch.items()})
                probabilities.append(torch.stack([said[task] for task in data.evaluated]).float().cpu())
                labels.append(self._labels_that_count(batch, data, model))
                bar.advance(1)
                limit = training.eval_timeout_in_s
                if limit is not None and time.monotonic() - start > limit:
                    is_late = True
                    break
        if is_late:
            rows = sum(part.shape[1] for part in labels)
            print(
                f"evaluate {name}: stopped after {limit:g} s and {rows:,} examples (eval_timeout_in_s)", file=sys.stderr
            )
        return torch.cat(labels, dim=1), torch.cat(probabilities, dim=1), not is_late

    def _labels_that_count(self, batch: Mapping[str, Tensor], data: PublishedData, model: HeavyRanker) -> Tensor:
        """(tasks, rows), NaN where a task does not apply."""
        applies = model.applies(batch)
        labels = torch.stack([batch[task] for task in model.tasks])
        if applies is not None:
            labels = torch.where(applies.T, labels, torch.nan)
        return labels[[model.tasks.index(task) for task in data.evaluated]]


def _as_model(result: BinaryResult) -> dict[str, Any]:
    values = asdict(result)
    counts = {name: values[name] for name in ("positives", "examples")}
    return {**counts, "models": {"ranker": {name: values[name] for name in METRICS}}}


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
