"""What the verbs share: the options that name a job, doing it, and printing tables."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

Config = Annotated[
    Path | None,
    typer.Argument(
        metavar="[CONFIG.yaml]", help="The job; left out, the default job on a simulated log.", show_default=False
    ),
]
ConfigOrRun = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RUN|CONFIG.yaml]",
        help="A run's folder, or a job; left out, the default job on a simulated log.",
        show_default=False,
    ),
]
RunDir = Annotated[
    Path | None,
    typer.Option("--run-dir", metavar="DIR", help="Where everything is written.", show_default="runs/NAME-OF-CONFIG"),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the config, as seed=1.")
]


def example(line: str) -> str:
    """The epilog of a verb: a line that a reader can type."""
    return f"Example: [bold]{line}[/]"


def do_job(config: Path | None, run_dir: Path | None, overrides: list[str] | None, only: str | None) -> Path:
    """Load the config, do the job or one stage of it, return the run folder."""
    from tml.core.config import load_config
    from tml.pipeline import RunConfig, run_job

    if config is not None and config.is_dir():
        # A run's folder holds the job that made it.
        config, run_dir = config / "config.yaml", run_dir or config
    loaded = load_config(RunConfig, config, overrides or ())
    folder = run_dir or Path("runs") / (config.stem if config else "default")
    try:
        run_job(loaded, folder, only)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    return folder


def show(*parts: Any) -> None:
    """Print tables and other rich text to standard output."""
    console = Console()
    # Where there is no terminal a table must not be folded to 80 columns.
    if not console.is_terminal:
        console = Console(width=160)
    for part in parts:
        console.print(part)
