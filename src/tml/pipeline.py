"""The main job: from an engagement log to a ranked timeline, stage by stage.

    simulate ─► features ─► twhin ─► baselines ─► recap ─► evaluate ─► rank ─► report

Every stage reads files and writes files of the run folder. When one is finished it leaves a mark: the fingerprint of
all that its output depends on. A stage whose mark still fits is skipped, so a run that was stopped goes on where it
was, and a changed setting runs again what depends on it and nothing else.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from tml import __version__
from tml.core.config import fingerprint, load_config, to_yaml
from tml.core.errors import MissingStage
from tml.core.files import read_json, remove, write_json, write_text
from tml.core.lock import alone
from tml.data.examples import Schema, vector_values
from tml.data.log import Log, open_log
from tml.data.shards import read_part
from tml.features.build import build_examples, train_start
from tml.projects.home.recap.baseline_predictions import predict_baselines
from tml.projects.home.recap.boosting import is_installed
from tml.projects.home.recap.calibration_maps import calibrate_predictions
from tml.projects.home.recap.combine import combination_weights, rank_sessions, write_timelines
from tml.projects.home.recap.compare import compare
from tml.projects.home.recap.evaluate import evaluate_predictions, write_evaluation
from tml.projects.home.recap.evaluate_segments import evaluate_segments
from tml.projects.home.recap.input_config import StratifierConfig
from tml.projects.home.recap.intervals import order_intervals, task_intervals
from tml.projects.home.recap.predict import predict, write_predictions
from tml.projects.home.recap.segments import segment_examples
from tml.projects.home.recap.train import train_recap
from tml.projects.home.recap.what_if import what_if
from tml.projects.twhin.train import train_twhin
from tml.report import write_report
from tml.run_config import Run, RunConfig
from tml.simulator.simulate import simulate

FOLLOWED = "follows_author"
"""The binary feature that says whether the viewer follows the author."""

TOP = 5
"""Posts at the top of a timeline that the ranking is judged by."""


@dataclass(frozen=True)
class Stage:
    """One stage of the job.

    Attributes:
        name: as its mark is called.
        command: the verb that runs it alone.
        after: the stages whose output it reads.
        output: what it makes, relative to the run folder; where that is gone, the stage runs again.
        settings: what its output depends on beside the stages before it.
        work: does it; gets the run and the stage's fingerprint.
    """

    name: str
    command: str
    after: tuple[str, ...]
    output: str
    settings: Callable[[Run], list[Any]]
    work: Callable[[Run, str], None]


def _simulate(run: Run, _: str) -> None:
    assert run.config.simulator is not None
    simulate(run.config.simulator, run.log_folder, run.config.seed)


def _features(run: Run, _: str) -> None:
    config = run.config
    with open_log(run.log) as log:
        _say_skipped(log)
        build_examples(log, config.tasks, config.features, config.split, run.examples, config.seed, run.log_digest)


def _twhin(run: Run, mark: str) -> None:
    assert run.config.twhin is not None
    with open_log(run.log) as log:
        _say_skipped(log)
        until = train_start(log, run.config.split)
        train_twhin(log.connection, run.config.twhin, until, run.twhin, run.config.seed, mark)


def _say_skipped(log: Log) -> None:
    if log.skipped:
        print(log.skipped_line(), file=sys.stderr)


def _recap(run: Run, mark: str) -> None:
    train_recap(run.config.recap, run.examples, run.embeddings, run.recap, run.config.seed, mark)


def _baselines(run: Run, _: str) -> None:
    config = run.config
    predict_baselines(
        config.recap, config.evaluation.lightgbm, run.examples, run.embeddings, config.seed, run.baselines
    )


def _evaluate(run: Run, _: str) -> None:
    config, log = run.config, run.log
    truth = log.path / log.truth if log.truth else None
    model = run.recap / "model.safetensors"
    predict(config.recap, run.examples, run.embeddings, model, truth, run.predictions, run.baselines)
    tasks, settings = list(config.tasks), config.evaluation
    remove(run.calibration)
    if settings.calibration is not None:
        table, maps = calibrate_predictions(pq.read_table(run.predictions), tasks, settings.calibration)
        write_predictions(table, run.predictions)
        write_json(run.calibration, {task: fitted.to_json() for task, fitted in maps.items()})
    weights = combination_weights(tasks, config.weights)
    predictions = pq.read_table(run.predictions)
    evaluation = evaluate_predictions(predictions, tasks, weights, k=TOP)
    sure = settings.draws, settings.confidence, config.seed
    for task, found in task_intervals(run.predictions, tasks, *sure).items():
        evaluation["tasks"][task]["intervals"] = found
    evaluation["ranking"]["against_served"] = order_intervals(predictions, weights, TOP, *sure)
    evaluation["segments"] = run_segments(run, settings.segments, config.recap.model.stratifiers or ())
    write_evaluation(evaluation, run.folder / "evaluation.json")


def run_segments(run: Run, names: Sequence[str], stratifiers: Sequence[StratifierConfig] = ()) -> dict[str, Any]:
    """The ranker's figures by the named segments, and by a model's stratifiers."""
    config = run.config
    segments = segment_examples(run.examples, names, config.evaluation.buckets, config.recap.on_error, stratifiers)
    return evaluate_segments(run.predictions, list(run.config.tasks), segments)


def run_comparison(run: Run, against: str) -> dict[str, Any]:
    """The ranker of a run against a model of its predictions, or the ranker of another run folder."""
    settings = run.config.evaluation
    require_evaluated(run)
    if (Path(against) / "config.yaml").is_file():
        require_evaluated(Run(load_config(RunConfig, Path(against) / "config.yaml"), Path(against)))
    return compare(
        run.predictions, list(run.config.tasks), against, settings.draws, settings.confidence, run.config.seed
    )


def require_evaluated(run: Run) -> None:
    """Refuse a run whose predictions are not those of its model: what was stopped or trained again since.

    Raises:
        MissingStage: the evaluation is not finished for the model that is there.
    """
    stage = _stage("evaluate")
    before = [_mark(run, name) for name in stage.after]
    expected = fingerprint(__version__, stage.name, before, stage.settings(run))
    if not run.predictions.is_file() or _mark(run, stage.name) != expected:
        raise MissingStage(
            f"{run.folder}: the stage evaluate is not finished for this config; run `tml recap evaluate {run.folder}` "
            "first"
        )


def run_what_if(run: Run, overrides: Mapping[str, float]) -> dict[str, Any]:
    """What moves in the run's held-out sessions when weights are overridden."""
    require_evaluated(run)
    tasks = list(run.config.tasks)
    before = combination_weights(tasks, run.config.weights)
    after = combination_weights(tasks, {**run.config.weights, **overrides})
    predictions = pq.read_table(run.predictions)
    schema = Schema.read(run.examples)
    followed = None
    if FOLLOWED in schema.binary:
        column = schema.binary.index(FOLLOWED)
        parts = read_part(run.examples, "validation", ["binary"], on_error=run.config.recap.on_error)
        followed = np.concatenate([vector_values(table["binary"])[:, column] for table in parts]) > 0
    return what_if(predictions, tasks, before, after, followed)


def _rank(run: Run, _: str) -> None:
    weights = combination_weights(list(run.config.tasks), run.config.weights)
    timelines = rank_sessions(pq.read_table(run.predictions), list(run.config.tasks), weights)
    write_timelines(timelines, run.folder / "timelines.parquet")


def _report(run: Run, _: str) -> None:
    write_report(run.folder)


def _log_content(run: Run) -> list[Any]:
    """What tells one log from another; a simulated one is told by its stage."""
    return [run.config.log, run.log_digest] if run.config.log else []


def _tasks(run: Run) -> dict[str, Any]:
    return {name: task.model_dump() for name, task in run.config.tasks.items()}


def _what_examples_depend_on(run: Run) -> list[Any]:
    """Which engine computes them is not among it: the numbers are the same."""
    config = run.config
    return [_log_content(run), _tasks(run), config.features.definitions(), config.split, config.seed]


def _what_baselines_depend_on(run: Run) -> list[Any]:
    """Of the ranker only what it reads and which examples count for a task: other rankers share them."""
    config = run.config
    counts = {name: task.applies_if for name, task in (config.recap.model.tasks or {}).items() if task.applies_if}
    return [
        config.recap.embeddings,
        config.evaluation.lightgbm,
        is_installed(),
        config.seed,
        *([counts] * bool(counts)),
    ]


STAGES = (
    Stage("simulate", "simulate", (), "log", lambda run: [run.config.simulator, run.config.seed], _simulate),
    Stage(
        "features",
        "features",
        ("simulate",),
        "examples",
        _what_examples_depend_on,
        _features,
    ),
    Stage(
        "twhin",
        "twhin train",
        ("simulate",),
        "twhin/embeddings",
        lambda run: [_log_content(run), run.config.twhin, run.config.split, run.config.seed],
        _twhin,
    ),
    Stage(
        "recap",
        "recap train",
        ("features", "twhin"),
        "recap/model.safetensors",
        lambda run: [run.config.recap, run.config.seed],
        _recap,
    ),
    Stage(
        "baselines",
        "recap baselines",
        ("features", "twhin"),
        "baselines/predictions.parquet",
        _what_baselines_depend_on,
        _baselines,
    ),
    Stage(
        "evaluate",
        "recap evaluate",
        ("baselines", "recap"),
        "evaluation.json",
        lambda run: [run.config.weights, run.config.evaluation, run.config.seed],
        _evaluate,
    ),
    Stage("rank", "recap rank", ("evaluate",), "timelines.parquet", lambda _: [], _rank),
    Stage("report", "report", ("rank",), "report.html", lambda _: [], _report),
)
"""The stages in their order."""


def stages_of(config: RunConfig) -> list[Stage]:
    """The stages that a config has: without a simulator or without TwHIN, theirs is left out."""
    has = {"simulate": config.simulator, "twhin": config.twhin}
    return [stage for stage in STAGES if has.get(stage.name, True) is not None]


def run_job(config: RunConfig, folder: Path, only: str | None = None) -> None:
    """Run the stages that are not finished for this config.

    Args:
        config: the job.
        folder: the run folder; made where it is not there.
        only: run this stage alone, finished or not; the stages that it reads from must be finished.

    Raises:
        MissingStage: a stage that `only` reads from is not finished for this config.
        UserError: what a stage found wrong.
    """
    run, console = Run(config, folder), Console(stderr=True, highlight=False)
    marks: dict[str, str] = {}
    with alone(folder):
        for stage in stages_of(config):
            before = [marks[name] for name in stage.after if name in marks]
            marks[stage.name] = fingerprint(__version__, stage.name, before, stage.settings(run))
            finished = _is_finished(run, stage, marks[stage.name])
            if only is None and finished:
                console.print(f"[green]✓[/] {stage.name}: finished before")
            elif only is None or only == stage.name:
                _do(run, stage, marks[stage.name], console)
            elif not finished and stage.name in _stage(only).after:
                raise MissingStage(
                    f"{folder}: the stage {stage.name} is not finished for this config; "
                    f"run `tml {stage.command}` first, or `tml run` for the whole job"
                )
            if only == stage.name:
                return


def _do(run: Run, stage: Stage, mark: str, console: Console) -> None:
    write_text(run.folder / "config.yaml", to_yaml(run.config))
    path = _mark_path(run, stage)
    remove(path)
    start = time.monotonic()
    stage.work(run, mark)
    seconds = round(time.monotonic() - start, 1)
    write_json(path, {"fingerprint": mark, "seconds": seconds})
    console.print(f"[green]✓[/] {stage.name}: {seconds} s")


def _stage(name: str) -> Stage:
    return next(stage for stage in STAGES if stage.name == name)


def _mark_path(run: Run, stage: Stage) -> Path:
    return run.folder / ".stages" / f"{stage.name}.json"


def _mark(run: Run, name: str) -> str | None:
    """The mark that a stage has left, if it was finished."""
    path = run.folder / ".stages" / f"{name}.json"
    return str(read_json(path)["fingerprint"]) if path.is_file() else None


def _is_finished(run: Run, stage: Stage, mark: str) -> bool:
    return (run.folder / stage.output).exists() and _mark(run, stage.name) == mark
