"""What the verbs share: the options that name a job, doing it, and printing tables."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tml.core.errors import ConfigError

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
    from tml.pipeline import run_job
    from tml.projects.home.recap.published_config import is_published
    from tml.run_config import RunConfig

    if config is not None and config.is_dir():
        # A run's folder holds the job that made it.
        config, run_dir = config / "config.yaml", run_dir or config
    if is_published(config):
        raise ConfigError(
            f"{config}: found a published configuration, which has no stages; allowed with it are `tml recap train`, "
            "`tml recap evaluate` and `tml recap schedule`"
        )
    loaded = load_config(RunConfig, config, overrides or ())
    folder = run_dir or Path("runs") / (config.stem if config else "default")
    with may_be_stopped():
        run_job(loaded, folder, only)
    return folder


@contextmanager
def may_be_stopped() -> Iterator[None]:
    """Ctrl-C ends with one line and the exit code of an interrupt."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None


def show(*parts: Any) -> None:
    """Print tables and other rich text to standard output."""
    console = Console()
    # Where there is no terminal a table must not be folded to 80 columns.
    if not console.is_terminal:
        console = Console(width=160)
    for part in parts:
        console.print(part)
