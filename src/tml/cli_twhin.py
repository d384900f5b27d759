"""The command line's verbs of TwHIN."""

import typer

from tml.cli_job import Config, RunDir, Set, do_job, example

twhin = typer.Typer(help="TwHIN: embeddings of viewers, authors and posts from the graph.", no_args_is_help=True)


@twhin.command("train", epilog=example("tml twhin train examples/demo.yaml --run-dir runs/demo"))
def twhin_train(config: Config = None, run_dir: RunDir = None, set_: Set = None) -> None:
    """Learn embeddings from what happened before the ranker's training starts."""
    print(do_job(config, run_dir, set_, "twhin") / "twhin" / "embeddings")
