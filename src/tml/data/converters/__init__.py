"""From public data sets to engagement logs that a job takes as they are, and from published TFRecords to examples and
back: one file a format.

A converter writes a folder whole or not at all: the contract's tables as Parquet, and `log.yaml`, the config of a job
on them. It reads and writes in streams, so that a data set may be larger than memory. What is an outcome and no label
is left out, since it must never be an input.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tml.core.errors import DataError
from tml.core.files import require_replaceable
from tml.data.config import CONFIG
from tml.data.converters.kuairand import convert_kuairand
from tml.data.converters.movielens import convert_movielens
from tml.data.converters.recsys import convert_recsys
from tml.data.converters.tfrecords import SCHEMA, convert_examples, convert_tfrecords
from tml.data.converters.writer import Converted


@dataclass(frozen=True)
class Format:
    """A data set that can be converted: where it is from, and what does it."""

    about: str
    convert: Callable[[Path, Path], Converted]


FORMATS: Mapping[str, Format] = {
    "kuairand": Format("KuaiRand-Pure, -1K or -27K: a folder with log_*.csv (Gao et al. 2022)", convert_kuairand),
    "recsys2020": Format("RecSys Challenge 2020: a file or a folder, 24 fields separated by \\x01", convert_recsys),
    "recsys2021": Format("RecSys Challenge 2021: the same fields as 2020", convert_recsys),
    "movielens": Format("MovieLens: a folder with ratings.csv, ratings.dat or u.data", convert_movielens),
    "tfrecords": Format("published TFRecords: a folder with schema.json, to an example dataset", convert_tfrecords),
    "examples": Format("an example dataset, back to TFRecords of the published form", convert_examples),
}


def convert_log(name: str, source: Path, out: Path) -> Converted:
    """Convert a data set.

    Args:
        name: one of `FORMATS`.
        source: the file or folder that it lies in.
        out: the folder to write; what is there is replaced once the new one is complete.

    Raises:
        DataError: an unknown format; an `out` with anything else in it than an earlier conversion; a file that is
            missing or is not what the format says, by name and line.
    """
    if name not in FORMATS:
        raise DataError(f"found the format {name!r}, allowed are {', '.join(FORMATS)}")
    if not source.exists():
        raise DataError(f"{source}: no such file or folder, allowed is {FORMATS[name].about}")
    _check_out(source, out)
    return FORMATS[name].convert(source, out)


def _check_out(source: Path, out: Path) -> None:
    """Refuse to write where something would be lost that no conversion wrote."""
    read, written = source.resolve(), out.resolve()
    if read == written:
        raise DataError(f"{out}: found the data set itself, allowed is another folder to write to")
    if written in read.parents:
        raise DataError(f"{out}: found a folder that the data set is in, allowed is another one to write to")
    require_replaceable(out, ["*"], [CONFIG, SCHEMA])
