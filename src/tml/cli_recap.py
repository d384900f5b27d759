"""The verbs of `tml recap`: the Heavy Ranker."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tml.cli_job import Config, ConfigOrRun, RunDir, Set, may_be_stopped
from tml.cli_job import do_job as _job
from tml.cli_job import example as _example
from tml.cli_job import show as _print
from tml.core.errors import ConfigError

recap = typer.Typer(help="The Heavy Ranker: train, evaluate, rank.", no_args_is_help=True)


@recap.command("train", epilog=_example("tml recap train examples/demo.yaml --run-dir runs/demo"))
def recap_train(config: Config = None, run_dir: RunDir = None, set_: Set = None) -> None:
    """Train the Heavy Ranker on the example dataset, or as a published configuration says on published TFRecords.

    The same command goes on with a training that was stopped. Under torchrun several processes train together.
    """
    published = _published(config, run_dir, set_, train=True)
    if published is not None:
        return
    print(_job(config, run_dir, set_, "recap") / "recap" / "model.safetensors")


@recap.command("evaluate", epilog=_example("tml recap evaluate runs/demo --against lightgbm --by posts.topic"))
def recap_evaluate(
    config: ConfigOrRun = None,
    run_dir: RunDir = None,
    set_: Set = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="OTHER", help="A baseline, as lightgbm, or another run's folder.", show_default=False),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Figures by author_size, viewer_activity, age or a feature's column."),
    ] = None,
) -> None:
    """Say how good the ranker is on the held-out end of the log, and whether it is better than another.

    With --against, differences and their intervals are printed and written to the run's comparisons/, as JSON, page and
    picture.
    """
    if _published(config, run_dir, set_, train=False, against=against or (), by=by or ()) is not None:
        return
    folder = _job(config, run_dir, set_, "evaluate")
    show_evaluation(folder)
    if by:
        _show_segments(folder, by)
    for other in against or ():
        _show_comparison(folder, other)


@recap.command("what-if", epilog=_example("tml recap what-if runs/demo --set weights.recap.engagement.is_replied=0"))
def recap_what_if(
    run_: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run that was evaluated.", show_default=False)
    ],
    set_: Set = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it as JSON, too.", show_default="RUN/what_if.json")
    ] = None,
) -> None:
    """Re-rank held-out sessions under other weights, and say what moves."""
    from tml.core.files import write_json
    from tml.pipeline import run_what_if
    from tml.projects.home.recap.what_if import what_if_table

    run = _load_run(run_)
    changes = {}
    for change in set_ or ():
        name, equals, text = change.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not equals or not name.startswith("weights.") or value != value:
            raise ConfigError(f"--set {change}: allowed here is weights.TASK=NUMBER")
        changes[_task_named(name.removeprefix("weights."), run.config.tasks)] = value
    if not changes:
        raise ConfigError("--set: not given, needed is a weight to change, as weights.TASK=NUMBER")
    result = run_what_if(run, changes)
    path = out or run_ / "what_if.json"
    write_json(path, result)
    _print(what_if_table(result))
    print(path)


@recap.command("baselines", epilog=_example("tml recap baselines examples/demo.yaml --run-dir runs/demo"))
def recap_baselines(config: Config = None, run_dir: RunDir = None, set_: Set = None) -> None:
    """Fit what the ranker must beat: base rate, popularity, logistic regression, LightGBM."""
    print(_job(config, run_dir, set_, "baselines") / "baselines" / "predictions.parquet")


@recap.command("rank", epilog=_example("tml recap rank examples/demo.yaml --run-dir runs/demo"))
def recap_rank(config: Config = None, run_dir: RunDir = None, set_: Set = None) -> None:
    """Re-rank the held-out sessions by the weighted score."""
    show_timeline(_job(config, run_dir, set_, "rank"))


@recap.command("schedule", epilog=_example("tml recap schedule examples/demo.yaml --steps 2000 --out schedule.png"))
def recap_schedule(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CONFIG.yaml]",
            help="The job, or a config with an `optimizer` section, or such a section alone.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Steps of training.", show_default="the config's, or as many as the schedules need"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a picture too: .png, .svg or .html.", show_default=False)
    ] = None,
    set_: Set = None,
) -> None:
    """Show the learning rate of each tower and of the backbone over the steps, before anything is trained."""
    from tml.core.config import load_config
    from tml.report.schedule import load_optimizer, plan_of_optimizer, plan_of_ranker
    from tml.report.schedule_picture import require_format, write_picture
    from tml.run_config import RunConfig

    if out is not None:
        require_format(out)
    if config is not None and config.is_dir():
        config = config / "config.yaml"
    name = str(config or "the default job")
    optimizer = load_optimizer(config, set_ or ()) if config else None
    if optimizer is not None:
        plan = plan_of_optimizer(optimizer, name, steps)
    else:
        job = load_config(RunConfig, config, set_ or ())
        plan = plan_of_ranker(job.recap, job.tasks, name, steps)
    if out is not None:
        write_picture(plan, out)
    _print(plan)
    if out is not None:
        print(out)


def show_evaluation(folder: Path) -> None:
    """Print how good the ranker of a run is, by task and in ranking."""
    from tml.core.files import read_json
    from tml.projects.home.recap.evaluate import evaluation_table, ranking_table

    evaluation = read_json(folder / "evaluation.json")
    _print(evaluation_table(evaluation), ranking_table(evaluation))


def _load_run(folder: Path) -> Any:
    """The run of a folder, by its own config."""
    from tml.core.config import load_config
    from tml.core.errors import MissingStage
    from tml.projects.home.recap.published_config import is_published
    from tml.run_config import Run, RunConfig

    config = folder / "config.yaml"
    if not config.is_file():
        raise MissingStage(f"{folder}: found no config.yaml, allowed is the folder of a run; `tml run` makes one")
    if is_published(config):
        raise ConfigError(
            f"{folder}: found the run of a published configuration, allowed is that of a job, by `tml run`"
        )
    return Run(load_config(RunConfig, config), folder)


def _task_named(name: str, tasks: Iterable[str]) -> str:
    """The task of a name that may lack the published prefix."""
    from tml.projects.home.recap.names import PREFIX

    return f"{PREFIX}{name}" if name not in tasks and f"{PREFIX}{name}" in tasks else name


def _show_segments(folder: Path, names: list[str]) -> None:
    from tml.core.files import read_json, write_json
    from tml.pipeline import run_segments
    from tml.projects.home.recap.evaluate_segments import segment_table

    found = run_segments(_load_run(folder), names)
    evaluation = read_json(folder / "evaluation.json")
    write_json(folder / "evaluation.json", {**evaluation, "segments": {**evaluation.get("segments", {}), **found}})
    _print(*(segment_table(name, buckets) for name, buckets in found.items()))


def _show_comparison(folder: Path, other: str) -> None:
    from tml.pipeline import run_comparison

    _show_written(folder, run_comparison(_load_run(folder), other), _name_of(other))


def _name_of(other: str) -> str:
    """What a model, or the run in a folder, is called in tables and files."""
    return Path(other).resolve().name if Path(other).is_dir() else other


def _show_written(folder: Path, comparison: dict[str, Any], name: str) -> None:
    """Print a comparison and write it into the run's `comparisons/`."""
    from tml.core.files import write_json
    from tml.projects.home.recap.compare import comparison_table
    from tml.report.comparison import write_comparison_picture

    comparisons = folder / "comparisons"
    write_json(comparisons / f"{name}.json", comparison)
    for suffix in ("html", "png"):
        write_comparison_picture(comparison, name, comparisons / f"{name}.{suffix}")
    _print(comparison_table(comparison, name))
    print(comparisons / f"{name}.json")


def show_timeline(folder: Path) -> None:
    """Print a timeline of a run as it was re-ranked."""
    import pyarrow.parquet as pq

    from tml.core.files import read_json
    from tml.projects.home.recap.evaluate import timeline_table

    tasks = list(read_json(folder / "evaluation.json")["tasks"])
    _print(timeline_table(pq.read_table(folder / "timelines.parquet"), None, tasks))


def _published(
    config: Path | None,
    run_dir: Path | None,
    overrides: list[str] | None,
    train: bool,
    against: Sequence[str] = (),
    by: Sequence[str] = (),
) -> Path | None:
    """Train or evaluate where the config is a published one, and return the run folder; None where it is a job."""
    from tml.projects.home.recap.published_config import PublishedConfig, is_published

    if config is not None and config.is_dir():
        config, run_dir = config / "config.yaml", run_dir or config
    if config is None or not is_published(config):
        return None
    if by:
        raise ConfigError(f"{config}: found a published configuration with --by, allowed there are model.stratifiers")
    from tml.core.config import load_config
    from tml.core.distributed import is_first_rank, process_group
    from tml.projects.home.recap.published import evaluate_published, train_published
    from tml.projects.home.recap.published_compare import compare_published
    from tml.projects.home.recap.published_evaluation import evaluation_tables

    loaded = load_config(PublishedConfig, config, overrides or ())
    folder = run_dir or loaded.training.save_dir or Path("runs") / config.stem
    with may_be_stopped(), process_group():
        evaluation = (train_published if train else evaluate_published)(loaded, folder)
        if is_first_rank():
            _print(*evaluation_tables(evaluation))
            print(folder / ("recap/model.safetensors" if train else "evaluation.json"))
        for other in against:
            for name, comparison in compare_published(loaded, folder, Path(other)).items():
                if is_first_rank():
                    _show_written(folder, comparison, f"{_name_of(other)} on {name}")
    return folder
