"""A program in two processes that torchrun might have started."""

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile


def run_ranks(program: str) -> list[str]:
    """Run a Python program as two ranks with gloo; returns what each said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return _run([(["-c", program], {**told, "RANK": str(rank)}) for rank in range(2)])


def run_script(script: str, folder: Path) -> None:
    """Run `script FOLDER RANK`, a test module, for two ranks, which share nothing but the folder."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
    told = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    _run([([script, str(folder), str(rank)], told) for rank in range(2)])


def _run(ranks: list[tuple[list[str], dict[str, str]]]) -> list[str]:
    with ExitStack() as files:
        # Not by pipes: a rank that has much to say would wait for its reader, and the other rank for it.
        outputs = [files.enter_context(TemporaryFile("w+")) for _ in ranks]
        started = [
            subprocess.Popen(
                [sys.executable, *arguments],
                env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", **told},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            for (arguments, told), output in zip(ranks, outputs, strict=True)
        ]
        try:
            codes = [rank.wait(timeout=100) for rank in started]
        finally:
            for rank in started:
                rank.kill()
        for output in outputs:
            output.seek(0)
        said = [output.read() for output in outputs]
    assert codes == [0, 0], "\n".join(said)
    return said
