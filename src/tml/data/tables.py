"""The files of a log's tables: where they are, what endings they have, which of them are missing.

A table is one Parquet, CSV or JSON lines file, plain, gzip or zstd, or many of them: a folder, folders in it included,
or a glob. Parquet is compressed inside and never as a whole.
"""

import glob
import hashlib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from tml.core.errors import DataError
from tml.data.config import TableConfig

TEXT_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
COMPRESSIONS = ("", ".gz", ".zst")
ENDINGS = (".parquet", *(ending + compression for ending in TEXT_ENDINGS for compression in COMPRESSIONS))

MOST_MISSING = 1000
"""Files of one kind that are found missing at most."""

_NUMBERED = re.compile(r"^(?P<before>.*?)(?P<number>\d+)(?P<of>-of-)(?P<total>\d+)(?P<after>\D.*)?$")


def quote(name: str) -> str:
    """A name as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as a SQL string."""
    return "'" + text.replace("'", "''") + "'"


def find_files(folder: Path, name: str, config: TableConfig) -> tuple[Path, ...]:
    """The files of a table, sorted; empty where the config names none and there is none by the table's name.

    Raises:
        DataError: the config names a file that is not there; there is more than one file by the table's name.
    """
    if config.file is None:
        found = [folder / (name + ending) for ending in ENDINGS if (folder / (name + ending)).is_file()]
        inside = folder / name
        if len(found) + inside.is_dir() > 1:
            names = [file.name for file in found] + [f"{name}/"] * inside.is_dir()
            raise DataError(f"{folder}: found {' and '.join(names)}, allowed is one {name} table")
        return tuple(found) or (table_files(inside) if inside.is_dir() else ())
    path = folder / config.file
    if path.is_dir():
        files = table_files(path)
    elif path.is_file():
        files = (path,)
    else:
        # pathlib's own glob takes no absolute patterns.
        found = [Path(file) for file in glob.glob(str(path), recursive=True)]  # noqa: PTH207
        files = tuple(sorted(file for file in found if not file.is_dir()))
    if not files:
        raise DataError(f"{path}: no such file, but the log's config names it for the table {name}")
    return files


def table_files(folder: Path) -> tuple[Path, ...]:
    """The files in a folder, and in the folders in it, that have an ending of a table; sorted.

    What starts with a dot or an underscore is what other programs leave behind, and no part of a table. A link to
    nowhere is: a file that is not there must be missed.
    """
    return tuple(
        sorted(
            path
            for path in folder.rglob("*")
            if ending_of(path)
            and not path.is_dir()
            and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
        )
    )


def ending_of(file: Path) -> str | None:
    """The ending that says what is in a file, without that of its compression; None for one that is not known."""
    name = file.name.lower()
    for ending in (".parquet", *TEXT_ENDINGS):
        if any(name.endswith(ending + compression) for compression in COMPRESSIONS):
            return ending
    return None


def missing_files(files: Sequence[Path]) -> list[Path]:
    """The files that must be there beside those that are, as their names say: `part-00001-of-00004.parquet`.

    Of very many the first `MOST_MISSING`: then it is no number of files that the names have there.
    """
    groups: dict[tuple[Path, str, str, str], dict[int, int]] = {}
    for file in files:
        match = _NUMBERED.match(file.name)
        if match:
            key = (file.parent, match["before"], match["total"], match["after"] or "")
            groups.setdefault(key, {})[int(match["number"])] = len(match["number"])
    missing = []
    for (parent, before, total, after), there in groups.items():
        # Some count from 0, some from 1.
        first = 0 if 0 in there or int(total) not in there else 1
        width = max(there.values())
        absent = (number for number in range(first, first + int(total)) if number not in there)
        missing += [
            parent / f"{before}{number:0{width}}-of-{total}{after}" for number in itertools.islice(absent, MOST_MISSING)
        ]
    return missing


def number_gaps(files: Sequence[Path]) -> list[str]:
    """Names that files would have whose numbers lie between those that are there: `part-2.csv` between 1 and 3."""
    groups: dict[tuple[str, str], dict[int, int]] = {}
    for file in files:
        match = re.match(r"(\D*)(\d+)(.*)", file.name)
        if match:
            groups.setdefault((match[1], match[3]), {})[int(match[2])] = len(match[2])
    gaps = []
    for (before, after), there in groups.items():
        low, high = min(there), max(there)
        # Numbers that are mostly not there count something else than files.
        if high - low + 1 < 2 * len(there):
            # Where numbers are as long as each other, zeros stand before the small ones.
            width = there[low] if there[low] == there[high] else 0
            gaps += [f"{before}{number:0{width}}{after}" for number in range(low, high) if number not in there]
    return gaps


def content_hash(files: Sequence[Path]) -> str:
    """A digest of the files' names and bytes. One that cannot be read has none: who opens it will say so."""
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        digest.update(file.name.encode())
        try:
            with file.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
        except OSError as error:
            digest.update(str(error.errno).encode())
    return digest.hexdigest()
