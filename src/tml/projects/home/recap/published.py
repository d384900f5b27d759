"""Training and evaluating the Heavy Ranker as a published configuration says, on published TFRecords.

The run folder (`training.save_dir`) is that of a job of this package, as far as there is something to put into it:

    config.yaml             with every default written out
    recap/checkpoints/      everything that the next step depends on; also metrics.jsonl and tensorboard/
    recap/model.safetensors the trained model
    recap/sampling.json     what sampling did to each task, for calibration
    evaluation.json         every validation set under its name

The same command goes on from the last checkpoint; more `num_train_steps` train longer. Under torchrun ranks share the
batch, and the gradients are averaged.
"""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tml.core import checkpoint
from tml.core.config import fingerprint, to_yaml
from tml.core.distributed import data_parallel, is_first_rank, pick_device, process_group, ranks
from tml.core.errors import ConfigError, DataError, MissingStage
from tml.core.files import read_json, write_json, write_text
from tml.core.lock import alone
from tml.core.memory import keep_freed_memory
from tml.core.train_state import load_model
from tml.core.training import TrainState, averaged, resume, train
from tml.data.tfrecord import Skipped
from tml.projects.home.recap.model import HeavyRanker, RankerLoss
from tml.projects.home.recap.optimizer import build_optimizer
from tml.projects.home.recap.published_config import PublishedConfig, TensorflowKnobs
from tml.projects.home.recap.published_data import PublishedInputs, sampling_ratios
from tml.projects.home.recap.published_evaluation import ValidationSets
from tml.projects.home.recap.train import load_ranker, save_ranker

RECAP, MODEL, SAMPLING, EVALUATION = "recap", "model.safetensors", "sampling.json", "evaluation.json"


def train_published(config: PublishedConfig, folder: Path) -> dict[str, Any]:
    """Train to `num_train_steps`, or go on with a training that was interrupted, then evaluate every validation set.

    Args:
        config: what to do.
        folder: the run folder.

    Returns:
        The content of `evaluation.json`.

    Raises:
        ConfigError: the folder holds the training of another config, or data and model do not fit.
        UserError: what is wrong with the data, or a loss that is not finite.
    """
    keep_freed_memory()
    with process_group(), alone(folder) if is_first_rank() else nullcontext():
        _say_without_effect(config)
        inputs = PublishedInputs(config)
        sets = ValidationSets(config, inputs)
        state, model = _start(config, inputs, folder)
        if is_first_rank():
            write_text(folder / "config.yaml", to_yaml(config))

        def evaluate(objective: torch.nn.Module) -> dict[str, float]:
            return sets.log_values(objective, sampling_ratios(config.train_data, reader))

        reader: Any = state.batches
        train(
            state,
            config.training.loop(),
            folder / RECAP,
            evaluate if config.validation_data else None,
            label="train ranker",
            fingerprint=_training_mark(config),
        )
        _say_skipped(reader.reader.skipped)
        ratios = sampling_ratios(config.train_data, reader)
        with averaged(state.optimizer):
            if is_first_rank():
                save_ranker(model, config.model, inputs.shapes(), folder / RECAP / MODEL)
                write_json(folder / RECAP / SAMPLING, ratios)
            evaluation = sets.latest or sets.evaluate(model.eval(), ratios)
        return _written(evaluation, folder)


def evaluate_published(config: PublishedConfig, folder: Path) -> dict[str, Any]:
    """Evaluate the trained model of a run folder on every validation set, and write `evaluation.json`.

    Raises:
        MissingStage: there is no trained model.
        ConfigError: the model is of other tasks than the config's.
    """
    with process_group(), alone(folder) if is_first_rank() else nullcontext():
        _say_without_effect(config)
        model = load_ranker(folder / RECAP / MODEL).to(pick_device())
        inputs = PublishedInputs(config)
        if set(model.tasks) != set(inputs.tasks):
            raise ConfigError(f"{folder / RECAP / MODEL}: found a model of other tasks than model.tasks")
        return _written(ValidationSets(config, inputs).evaluate(model, read_json(folder / RECAP / SAMPLING)), folder)


def _say_skipped(skipped: Skipped) -> None:
    if skipped.records or skipped.files:
        lost = f"skipped {skipped.records:,} damaged records and the rest of {skipped.files:,} files"
        print(f"train ranker: {lost}, the first: {skipped.first}", file=sys.stderr)


def _written(evaluation: dict[str, Any], folder: Path) -> dict[str, Any]:
    if is_first_rank():
        write_json(folder / EVALUATION, evaluation)
    return evaluation


def _start(config: PublishedConfig, inputs: PublishedInputs, folder: Path) -> tuple[TrainState, HeavyRanker]:
    """Model, optimizer and batches, where the last checkpoint left them."""
    model = HeavyRanker(config.model, inputs.shapes(), torch.Generator().manual_seed(config.seed))
    objective = data_parallel(RankerLoss(model).to(pick_device()))
    optimizer, scheduler = build_optimizer(objective, config.optimizer)
    # Ranks drop different units.
    torch.manual_seed(config.seed + ranks().rank)
    state = TrainState(objective, optimizer, scheduler, inputs.reader(config.train_data))
    if not resume(state, folder / RECAP, _training_mark(config)):
        found = checkpoint.checkpoints(folder / RECAP / "checkpoints")
        if found:
            raise ConfigError(
                f"training.save_dir: {folder} has the checkpoints of another training (to step "
                f"{checkpoint.step_of(found[-1])}), allowed are the same settings of model, data and optimizer, or "
                "another folder"
            )
        _first_weights(config, inputs, model)
    elif state.step > config.training.num_train_steps:
        raise ConfigError(
            f"training.num_train_steps: found {config.training.num_train_steps}, but {folder} is trained to step "
            f"{state.step} already"
        )
    return state, model


def _first_weights(config: PublishedConfig, inputs: PublishedInputs, model: HeavyRanker) -> None:
    """Where a new training begins: at a checkpoint's weights, or with towers that say their base rates."""
    if config.training.initial_checkpoint_dir is not None:
        load_model(model, _initial_weights(config.training.initial_checkpoint_dir))
        return
    model.initialise_biases(inputs.base_rates(model))
    large = model.featurization.large
    if large is not None and large.needs_counts:
        large.keep_frequent(inputs.whole_epoch())


def _initial_weights(folder: Path) -> dict[str, Tensor]:
    """The ranker's parameters in the newest checkpoint in or below a folder, or in the trained model there."""
    if (folder / checkpoint.STATE).is_file():
        return _of_checkpoint(folder)
    for place in (folder, folder / "checkpoints", folder / RECAP / "checkpoints"):
        found = checkpoint.checkpoints(place)
        if found:
            return _of_checkpoint(found[-1])
    for path in (folder / MODEL, folder / RECAP / MODEL):
        if path.is_file():
            try:
                return load_file(path)
            except SafetensorError as error:
                raise DataError(f"{path}: not a ranker's model file ({error})") from None
    raise MissingStage(f"training.initial_checkpoint_dir: found no checkpoint in {folder}, needed is one")


def _of_checkpoint(path: Path) -> dict[str, Tensor]:
    prefix, weights = "model.", checkpoint.load(path)["model"]
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _training_mark(config: PublishedConfig) -> str:
    """The fingerprint of what the steps of a training depend on, but for where its files lie and how many there are.

    The position in the data has the names of the files.
    """
    places = {"inputs", "explicit_date_inputs", "explicit_datetime_inputs", "evaluation_tasks"}
    data = config.train_data.model_dump(mode="json", exclude=places | TensorflowKnobs.model_fields.keys())
    data["seg_dense_schema"].pop("schema_path")
    training = (config.training.gradient_accumulation, config.training.precision)
    return fingerprint(config.seed, config.model, data, config.optimizer, *training)


def _say_without_effect(config: PublishedConfig) -> None:
    names = config.without_effect()
    if names and is_first_rank():
        print(f"without effect here: {', '.join(names)}", file=sys.stderr)
