"""The command line: verbs, and nothing that is not about the command line.

What a user got wrong is printed as one sentence and exits with 2. Modules that take long to import are imported by the
verb that needs them, so that `--help` answers at once.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tml.core.errors import ConfigError, DataError, UserError

app = typer.Typer(
    help="From an engagement log to a ranked timeline.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
twhin = typer.Typer(help="TwHIN: embeddings of viewers, authors and posts from the graph.", no_args_is_help=True)
recap = typer.Typer(help="The Heavy Ranker: train, evaluate, rank.", no_args_is_help=True)
data = typer.Typer(help="Engagement logs: look at one, make one of a public data set.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(twhin, name="twhin")
app.add_typer(recap, name="recap")

Config = Annotated[
    Path | None,
    typer.Argument(
        metavar="[CONFIG.yaml]", help="The job; left out, the default job on a simulated log.", show_default=False
    ),
]
RunDir = Annotated[
    Path | None,
    typer.Option("--run-dir", metavar="DIR", help="Where everything is written.", show_default="runs/NAME-OF-CONFIG"),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the config, as seed=1.")
]


def _example(line: str) -> str:
    return f"Example: [bold]{line}[/]"


def _job(config: Path | None, run_dir: Path | None, overrides: list[str] | None, only: str | None) -> Path:
    """Load the config, do the job or one stage of it, return the run folder."""
    from tml.core.config import load_config
    from tml.pipeline import RunConfig, run_job
    from tml.projects.home.recap.published_config import is_published

    if is_published(config):
        raise ConfigError(
            f"{config}: found a published configuration, which has no stages; allowed with it are `tml recap train`, "
            "`tml recap evaluate` and `tml recap schedule`"
        )
    loaded = load_config(RunConfig, config, overrides or ())
    folder = run_dir or Path("runs") / (config.stem if config else "default")
    with _may_be_stopped():
        run_job(loaded, folder, only)
    return folder


@contextmanager
def _may_be_stopped() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None


def _published(config: Path | None, run_dir: Path | None, overrides: list[str] | None, train: bool) -> Path | None:
    """Train or evaluate where the config is a published one, and return the run folder; None where it is a job."""
    from tml.projects.home.recap.published_config import PublishedConfig, is_published

    if config is not None and config.is_dir():
        config, run_dir = config / "config.yaml", run_dir or config
    if config is None or not is_published(config):
        return None
    from tml.core.config import load_config
    from tml.core.distributed import is_first_rank, process_group
    from tml.projects.home.recap.published import evaluate_published, train_published
    from tml.projects.home.recap.published_evaluation import evaluation_tables

    loaded = load_config(PublishedConfig, config, overrides or ())
    folder = run_dir or loaded.training.save_dir or Path("runs") / config.stem
    with _may_be_stopped(), process_group():
        evaluation = (train_published if train else evaluate_published)(loaded, folder)
        if is_first_rank():
            _print(*evaluation_tables(evaluation))
            print(folder / ("recap/model.safetensors" if train else "evaluation.json"))
    return folder


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


@data.command("synthesize", epilog=_example("tml data synthesize published-data --rows 20000 --days 4"))
def data_synthesize(
    out: Annotated[Path, typer.Argument(help="The folder to write to; what is there is replaced.", show_default=False)],
    rows: Annotated[int, typer.Option(min=1, help="Rows in all; 1,000 are some 11 MB.")] = 20_000,
    files: Annotated[int, typer.Option(min=1, help="Files in all.")] = 16,
    days: Annotated[int, typer.Option(min=1, help="Folders by day, from 2022/10/01 on.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
) -> None:
    """Write random data in the published form, with labels to learn: schema.json and gzip TFRecords."""
    from tml.data.segdense import generate

    generate(out, rows, seed, files, days)
    print(out)


@twhin.command("train", epilog=_example("tml twhin train examples/demo.yaml --run-dir runs/demo"))
def twhin_train(config: Config = None, run_dir: RunDir = None, set_: Set = None) -> None:
    """Learn embeddings from what happened before the ranker's training starts."""
    print(_job(config, run_dir, set_, "twhin") / "twhin" / "embeddings")


@recap.command("train", epilog=_example("tml recap train examples/demo.yaml --run-dir runs/demo"))
def recap_train(config: Config = None, run_dir: RunDir = None, set_: Set = None) -> None:
    """Train the Heavy Ranker on the example dataset, or as a published configuration says on published TFRecords.

    The same command goes on with a training that was stopped. Under torchrun several processes train together.
    """
    published = _published(config, run_dir, set_, train=True)
    if published is not None:
        return
    print(_job(config, run_dir, set_, "recap") / "recap" / "model.safetensors")


@recap.command("evaluate", epilog=_example("tml recap evaluate examples/demo.yaml --run-dir runs/demo"))
def recap_evaluate(config: Config = None, run_dir: RunDir = None, set_: Set = None) -> None:
    """Say how good the ranker is on the held-out end of the log, or on every validation set of a published config."""
    published = _published(config, run_dir, set_, train=False)
    if published is not None:
        return
    _show_evaluation(_job(config, run_dir, set_, "evaluate"))


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


def _show_timeline(folder: Path) -> None:
    import pyarrow.parquet as pq

    from tml.core.files import read_json
    from tml.projects.home.recap.evaluate import timeline_table

    tasks = list(read_json(folder / "evaluation.json")["tasks"])
    _print(timeline_table(pq.read_table(folder / "timelines.parquet"), None, tasks))


def _show_report(folder: Path) -> None:
    print(f"report: {folder / 'report.html'}")


def _print(*parts: Any) -> None:
    console = Console()
    # Where there is no terminal a table must not be folded to 80 columns.
    if not console.is_terminal:
        console = Console(width=160)
    for part in parts:
        console.print(part)


def main() -> None:
    """Run the command line; the entry point of the `tml` program."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
