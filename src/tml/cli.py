"""The command line: verbs, and nothing that is not about the command line.

What a user got wrong is printed as one sentence and exits with 2. Modules that take long to import are imported by the
verb that needs them, so that `--help` answers at once.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tml.cli_job import Config, RunDir, Set
from tml.cli_job import do_job as _job
from tml.cli_job import example as _example
from tml.cli_job import show as _print
from tml.cli_recap import recap, show_evaluation, show_timeline
from tml.cli_twhin import twhin
from tml.core.errors import DataError, UserError

app = typer.Typer(
    help="From an engagement log to a ranked timeline.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
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
    show_evaluation(folder)
    show_timeline(folder)
    print(f"report: {folder / 'report.html'}")


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
    out: Annotated[
        Path, typer.Argument(help="The folder to write to; earlier synthetic data is replaced.", show_default=False)
    ],
    rows: Annotated[int, typer.Option(min=1, help="Rows in all; 1,000 are some 11 MB.")] = 20_000,
    files: Annotated[int, typer.Option(min=1, help="Files in all.")] = 16,
    days: Annotated[int, typer.Option(min=1, help="Folders by day, from 2022/10/01 on.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
) -> None:
    """Write random data in the published form, with labels to learn: schema.json and gzip TFRecords."""
    from tml.data.segdense import generate

    generate(out, rows, seed, files, days)
    print(out)


@app.command(epilog=_example("tml report examples/demo.yaml --run-dir runs/demo"))
def report(config: Config = None, run_dir: RunDir = None, set_: Set = None) -> None:
    """Make the one-page report of a run."""
    print(f"report: {_job(config, run_dir, set_, 'report') / 'report.html'}")


def main() -> None:
    """Run the command line; the entry point of the `tml` program."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
