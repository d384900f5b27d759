"""The command line: verbs, and nothing that is not about the command line.

What a user got wrong is printed as one sentence and exits with 2. Modules that take long to import are imported by the
verb that needs them, so that `--help` answers at once.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from tml.cli_job import Config, ConfigOrRun, RunDir, Set
from tml.cli_job import do_job as _job
from tml.cli_job import example as _example
from tml.cli_job import show as _print
from tml.cli_twhin import twhin
from tml.core.errors import DataError, UserError

app = typer.Typer(
    help="From an engagement log to a ranked timeline.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
recap = typer.Typer(help="The Heavy Ranker: train, evaluate, rank.", no_args_is_help=True)
data = typer.Typer(help="Engagement logs: look at one, make one of a public data set.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(twhin, name="twhin")
app.add_typer(recap, name="recap")


@app.command(epilog=_example("tml run examples/kuairand.yaml --set log.path=KuaiRand-Pure/data"))
def run(config: Config = None, run_dir: RunDir = None, set_: Set = None) -> None:
    """Do the whole job: log, features, TwHIN, ranker, evaluation, timelines, report.

    Stages that are finished for the same config are skipped; after Ctrl-C the same command goes on where it stopped.
    """
    folder = _job(config, run_dir, set_, None)
    _show_evaluation(folder)
    _show_timeline(folder)
    _show_report(folder)


@app.command(epilog=_example("tml simulate my-log --users 1000 --posts 5000 --days 7 --seed 1"))
def simulate(
    out: Annotated[Path, typer.Argument(help="The folder to write the log to.", show_default=False)],
    users: Annotated[int | None, typer.Option(help="Number of users.", show_default="3000")] = None,
    posts: Annotated[int | None, typer.Option(help="Number of posts.", show_default="20000")] = None,
    days: Annotated[int | None, typer.Option(help="Days of impressions.", show_default="14")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
) -> None:
    """Write the engagement log of a simulated social network, and apart from it the true probabilities."""
    from tml.core.config import parse_config
    from tml.simulator.config import SimulatorConfig
    from tml.simulator.simulate import simulate as make

    given = {name: value for name, value in (("users", users), ("posts", posts), ("days", days)) if value is not None}
    make(parse_config(SimulatorConfig, given, "tml simulate"), out, seed)
    print(out)


@app.command(epilog=_example("tml features examples/demo.yaml --run-dir runs/demo"))
def features(config: Config = None, run_dir: RunDir = None, set_: Set = None) -> None:
    """Make the example dataset: point-in-time features and labels."""
    print(_job(config, run_dir, set_, "features") / "examples")


@data.command("check", epilog=_example("tml data check my-log --html check.html"))
def data_check(
    log: Annotated[
        Path,
        typer.Argument(
            metavar="LOG",
            help="The folder of a log, or a config: of a whole job, or its `log` section alone.",
            show_default=False,
        ),
    ],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it as a page with pictures, too.", show_default=False)
    ] = None,
    set_: Set = None,
) -> None:
    """Say what is in a log and what is wrong with it.

    Exits with 0 if a job can read the log as it is, with 2 and one sentence if not.
    """
    from tml.data.check import check_log, load_log_config
    from tml.data.check_tables import CheckView

    check = check_log(load_log_config(log, set_ or ()))
    _print(CheckView(check))
    if html is not None:
        from tml.report.log_check import write_check

        write_check(check, html)
        print(html)
    if not check.is_usable:
        hint = "; the config above reads it" if check.suggestion else ""
        raise DataError(f"{check.error}{hint}")


@data.command("convert", epilog=_example("tml data convert movielens ml-25m my-log"))
def data_convert(
    format_: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="kuairand, recsys2020, recsys2021, movielens, tfrecords or examples.",
            show_default=False,
        ),
    ],
    source: Annotated[Path, typer.Argument(help="The data set as it is published.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The folder to write to.", show_default=False)],
) -> None:
    """Make a log, and the config of a job on it, of a public data set; examples of TFRecords, and back (examples)."""
    from tml.data.converters import convert_log

    converted = convert_log(format_, source, out)
    for name, rows in converted.rows.items():
        print(f"{name}: {rows:,} rows")
    for note in converted.notes:
        print(f"note: {note}", file=sys.stderr)
    print(converted.result)


@recap.command("train", epilog=_example("tml recap train examples/demo.yaml --run-dir runs/demo"))
def recap_train(config: Config = None, run_dir: RunDir = None, set_: Set = None) -> None:
    """Train the Heavy Ranker on the example dataset."""
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
    folder = _job(config, run_dir, set_, "evaluate")
    _show_evaluation(folder)
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
    from tml.core.errors import ConfigError
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
    _show_timeline(_job(config, run_dir, set_, "rank"))


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
    from tml.pipeline import RunConfig
    from tml.report.schedule import load_optimizer, plan_of_optimizer, plan_of_ranker
    from tml.report.schedule_picture import require_format, write_picture

    if out is not None:
        require_format(out)
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


@app.command(epilog=_example("tml report examples/demo.yaml --run-dir runs/demo"))
def report(config: Config = None, run_dir: RunDir = None, set_: Set = None) -> None:
    """Make the one-page report of a run."""
    _show_report(_job(config, run_dir, set_, "report"))


def _show_evaluation(folder: Path) -> None:
    from tml.core.files import read_json
    from tml.projects.home.recap.evaluate import evaluation_table, ranking_table

    evaluation = read_json(folder / "evaluation.json")
    _print(evaluation_table(evaluation), ranking_table(evaluation))


def _load_run(folder: Path) -> Any:
    """The run of a folder, by its own config."""
    from tml.core.config import load_config
    from tml.core.errors import MissingStage
    from tml.pipeline import Run, RunConfig

    config = folder / "config.yaml"
    if not config.is_file():
        raise MissingStage(f"{folder}: found no config.yaml, allowed is the folder of a run; `tml run` makes one")
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
    from tml.core.files import write_json
    from tml.pipeline import run_comparison
    from tml.projects.home.recap.compare import comparison_table
    from tml.report.comparison import write_comparison_picture

    comparison = run_comparison(_load_run(folder), other)
    name = Path(other).resolve().name if "/" in other else other
    target = folder / "comparisons" / name
    write_json(target.with_suffix(".json"), comparison)
    for suffix in (".html", ".png"):
        write_comparison_picture(comparison, name, target.with_suffix(suffix))
    _print(comparison_table(comparison, name))
    print(target.with_suffix(".json"))


def _show_timeline(folder: Path) -> None:
    import pyarrow.parquet as pq

    from tml.core.files import read_json
    from tml.projects.home.recap.evaluate import timeline_table

    tasks = list(read_json(folder / "evaluation.json")["tasks"])
    _print(timeline_table(pq.read_table(folder / "timelines.parquet"), None, tasks))


def _show_report(folder: Path) -> None:
    print(f"report: {folder / 'report.html'}")


def main() -> None:
    """Run the command line; the entry point of the `tml` program."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
