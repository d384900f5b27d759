"""Training the Heavy Ranker on an example dataset."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tml.core.config import BaseConfig, parse_config
from tml.core.distributed import data_parallel, gathered, is_first_rank, pick_device, ranks, unwrap
from tml.core.errors import DataError, MissingStage
from tml.core.files import whole_file
from tml.core.memory import keep_freed_memory
from tml.core.precision import Precision
from tml.core.training import TrainingConfig, TrainResult, TrainState, averaged, resume, train
from tml.data.examples import Schema
from tml.data.reader import POOL_BYTES, ExampleReader
from tml.data.shards import OnError, Shards, read_part
from tml.metrics.binary import BinaryMetrics
from tml.optimizers.config import OptimizerConfig
from tml.optimizers.schedules import LearningRate, LinearRampToCosine
from tml.projects.home.recap.calibration import calibrated_probabilities
from tml.projects.home.recap.conditions import Conditions, labels_that_count
from tml.projects.home.recap.config import InputShapes, ModelConfig
from tml.projects.home.recap.data import DEFAULT_EMBEDDINGS, EmbeddingInput, RankerInputs, print_skipped
from tml.projects.home.recap.model import HeavyRanker, RankerLoss
from tml.projects.home.recap.optimizer import MultiTaskLearningRates, RecapOptimizerConfig, build_optimizer


class RankerTraining(TrainingConfig):
    """How long to train and what to do on the way; in bfloat16 where that is faster."""

    num_steps: PositiveInt | None = None
    log_every: PositiveInt = 50
    evaluate_every: PositiveInt = 200
    checkpoint_every: PositiveInt = 200
    precision: Precision = "auto"


EVALUATION_ROWS = 20_000
"""Held-out examples that are looked at on the way; the evaluation after training looks at all."""


class RecapConfig(BaseConfig):
    """The Heavy Ranker: what it reads, what it is, and how it is trained.

    Attributes:
        embeddings: name of an input → whose vectors it is, from TwHIN's files.
        model: the architecture.
        optimizer: learning rates by tower and for the backbone; null fits a schedule to the length of the training,
            see `default_optimizer`. The published rates are made for a training a thousand times as long.
        embedding_optimizer: algorithm and rate of the embedding tables; by default they learn with the backbone.
        batch_size: examples a step.
        epochs: passes over the training examples, where `training.num_steps` does not say otherwise.
        training: when to log, evaluate and save.
        pool_bytes: of examples in memory at a time, which are shuffled together. Where not all fit, the reader takes
            twice as much, to have the next ones ready.
        on_error: `skip` leaves out examples that are damaged and says how many; `stop` stops at the first.
    """

    embeddings: dict[str, EmbeddingInput] = Field(default_factory=lambda: dict(DEFAULT_EMBEDDINGS))
    model: ModelConfig = ModelConfig()
    optimizer: RecapOptimizerConfig | None = None
    embedding_optimizer: OptimizerConfig | None = None
    batch_size: int = Field(512, ge=2)
    epochs: float = Field(2.0, gt=0)
    training: RankerTraining = RankerTraining()
    pool_bytes: int = Field(POOL_BYTES, ge=1)
    on_error: OnError = "stop"


PEAK_RATE, FINAL_RATE = 2e-3, 2e-5


def default_optimizer(tasks: Collection[str], steps: int) -> RecapOptimizerConfig:
    """Adam for a training of so many steps: each rate rises over a twentieth of them, then falls along a cosine."""
    ramp = max(1, steps // 20)
    rate = LearningRate(
        linear_ramp_to_cosine=LinearRampToCosine(
            learning_rate=PEAK_RATE,
            final_learning_rate=FINAL_RATE,
            num_ramp_steps=ramp,
            final_num_steps=max(steps, ramp + 1),
        )
    )
    rates = MultiTaskLearningRates(backbone_learning_rate=rate, tower_learning_rates=dict.fromkeys(tasks, rate))
    return RecapOptimizerConfig(multi_task_learning_rates=rates)


def train_recap(
    config: RecapConfig, examples: Path, embeddings: Path | None, out: Path, seed: int, fingerprint: str
) -> TrainResult:
    """Train a ranker, or go on with a training that was interrupted, and write `out/model.safetensors`.

    In a process group every rank calls it: they share the batch, and the first one writes.

    Args:
        config: what to train.
        examples: an example dataset with the parts `train` and `validation`.
        embeddings: the folder of embeddings by id; None for none.
        out: takes checkpoints, metrics and the model.
        seed: of initial weights, order of examples and dropout.
        fingerprint: of everything the training depends on; checkpoints of another are not resumed.
    """
    rank, world_size = ranks()
    keep_freed_memory()
    schema = Schema.read(examples)
    inputs = RankerInputs(schema, config.embeddings, embeddings, config.model)
    reader = ExampleReader(
        examples,
        "train",
        min(config.batch_size, schema.part("train").rows) // world_size,
        seed,
        config.pool_bytes,
        inputs.batch,
        inputs.columns(),
        rank,
        world_size,
        on_error=config.on_error,
    )
    model = HeavyRanker(config.model, inputs.shapes(), torch.Generator().manual_seed(seed))
    rates = _base_rates(inputs, model.conditions, examples, config.on_error)
    model.initialise_biases(rates)
    inputs.initialise(model.featurization)
    large = model.featurization.large
    if large is not None and large.needs_counts:
        tables = read_part(examples, "train", inputs.id_columns, on_error=config.on_error)
        large.keep_frequent(inputs.ids(table) for table in tables)
    objective = data_parallel(RankerLoss(model).to(pick_device()))
    batches_per_step = config.training.accumulate_batches
    steps = config.training.num_steps or max(1, round(config.epochs * reader.batches_per_epoch / batches_per_step))
    optimizer, scheduler = build_optimizer(
        objective, config.optimizer or default_optimizer(schema.tasks, steps), config.embedding_optimizer
    )
    torch.manual_seed(seed + rank)  # ranks drop different units
    state = TrainState(objective, optimizer, scheduler, reader)
    resume(state, out, fingerprint)
    training = config.training.model_copy(update={"num_steps": steps})
    evaluate = _evaluator(inputs, examples, config.on_error)
    result = train(state, training, out, evaluate, label="train ranker", fingerprint=fingerprint)
    print_skipped("train ranker", reader.skipped)
    with averaged(optimizer):
        if is_first_rank():
            save_ranker(model, config.model, inputs.shapes(), out / "model.safetensors")
    return result


def save_ranker(model: HeavyRanker, config: ModelConfig, shapes: InputShapes, path: Path) -> None:
    """Write a model's parameters with its config and shapes beside them, as safetensors: data without code."""
    about = {"config": config.model_dump(mode="json"), "shapes": shapes.model_dump(mode="json")}
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with whole_file(path) as partial:
        # One entry, since safetensors writes several in any order, and the same model is to have the same bytes.
        save_file(tensors, partial, metadata={"ranker": json.dumps(about)})


def load_ranker(path: Path) -> HeavyRanker:
    """Read a model that `save_ranker` wrote, in evaluation mode.

    Raises:
        MissingStage: there is none.
        DataError: the file is damaged or of something else.
    """
    if not path.is_file():
        raise MissingStage(f"{path}: no such model; `tml recap train` makes one")
    try:
        tensors = load_file(path)
        about = json.loads(_metadata(path)["ranker"])
        shapes = parse_config(InputShapes, about["shapes"], str(path))
        model = HeavyRanker(parse_config(ModelConfig, about["config"], str(path)), shapes)
        model.load_state_dict(tensors)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: not a ranker's model file ({str(error).splitlines()[0]})") from None
    return model.eval()


def _metadata(path: Path) -> dict[str, str]:
    """The texts in the header of a safetensors file."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return dict(json.loads(stream.read(length))["__metadata__"])


def sampling_ratios(schema: Schema) -> dict[str, float]:
    """By task, how many times rarer negatives are in training than in the log: what calibration corrects."""
    return {name: float(task["negative_sampling_rate"]) for name, task in schema.tasks.items()}


def _base_rates(inputs: RankerInputs, by_task: Conditions, examples: Path, on_error: OnError) -> dict[str, float]:
    """The mean training label of each task, over the labels that count; NaN where none does."""
    tasks = list(by_task)
    # Whether an embedding is known may be a condition, and is no column of the dataset.
    columns = inputs.columns() if any(by_task.values()) else tasks
    positives, counts = torch.zeros(2, len(tasks), dtype=torch.float64)
    for table in read_part(examples, "train", columns, on_error=on_error):
        if any(by_task.values()):
            found = labels_that_count(by_task, inputs.batch(table))
        else:
            found = {task: torch.tensor(table[task].to_numpy()) for task in tasks}
        labels = torch.stack(list(found.values()), dim=1).double()
        positives += labels.nansum(dim=0)
        counts += labels.isfinite().sum(dim=0)
    return dict(zip(tasks, (positives / counts).tolist(), strict=True))


def _evaluator(inputs: RankerInputs, examples: Path, on_error: OnError) -> Callable[[nn.Module], Mapping[str, float]]:
    """Loss, AUC and RCE by task on examples spread over the held-out part; ranks share them.

    The loss is the mean of the ranks', by their examples.
    """
    shards = Shards(examples, "validation", inputs.columns(), on_error)
    apart = max(1, shards.rows // EVALUATION_ROWS)
    step, skip = apart * ranks().world_size, apart * ranks().rank
    parts = []
    for table in shards.tables():
        parts.append(inputs.batch(table.take(np.arange(skip, table.num_rows, step))))
        skip = (skip - table.num_rows) % step
    batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    tasks, ratios = list(inputs.schema.tasks), sampling_ratios(inputs.schema)

    def evaluate(objective: nn.Module) -> dict[str, float]:
        device = next(objective.parameters()).device
        # Without the wrapper, which would have ranks wait for each other.
        ranker_loss = unwrap(objective)
        assert isinstance(ranker_loss, RankerLoss)
        loss, outputs = ranker_loss({name: values.to(device) for name, values in batch.items()})
        labels = labels_that_count(ranker_loss.model.conditions, batch)
        own = {task: BinaryMetrics() for task in tasks}
        for task, logits in zip(ranker_loss.tasks, outputs["logits"].cpu().unbind(dim=1), strict=True):
            # The held-out part is not sampled.
            own[task].update(labels[task].numpy(), calibrated_probabilities(logits, ratios[task]).numpy())
        of_ranks = gathered((float(loss), len(outputs["logits"]), own))
        rows = sum(count for _, count, _ in of_ranks)
        measured = {"loss": sum(loss * (count / rows) for loss, count, _ in of_ranks)}
        for task in tasks:
            metrics = BinaryMetrics()
            for _, _, others in of_ranks:
                metrics.merge(others[task])
            values = metrics.compute()
            for name, value in (("auc", values.auc), ("rce", values.rce)):
                if value is not None:
                    measured[f"{name}/{task}"] = value
        return measured

    return evaluate
