"""How a text file of edges is laid out, by its first line that is not empty.

Fields are separated by tabs, by spaces or by commas; of a `.tsv` always by tabs. Between commas a name may stand in
quotes, as CSV has it; elsewhere a quote is a character like any other. The first line may be a heading, which names
head, relation and tail (or `lhs`, `rel`, `rhs`, or `source`, `type`, `target`) among other columns. Text is UTF-8, and
may be gzip or zstd.
"""

import csv
import gzip
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from tml.core.errors import DataError
from tml.data.faults import first_line
from tml.data.tables import literal

ENDS = ("head", "relation", "tail")
HEADINGS = (ENDS, ("lhs", "rel", "rhs"), ("source", "type", "target"))
SEPARATORS = {"\t": "tabs", " ": "spaces", ",": "commas"}
FIRST = 1 << 16
"""Bytes in which the first line is looked for."""


@dataclass(frozen=True)
class TextLayout:
    """Where the columns of a text file are.

    Attributes:
        file: the file.
        separator: what is between fields.
        width: the number of columns.
        columns: the place of each column that is known by name; empty where there is no heading.
        skip: lines before the first edge.
    """

    file: Path
    separator: str
    width: int
    columns: Mapping[str, int]
    skip: int

    def sql(self, columns: Sequence[str]) -> str:
        """A query of the columns as text, those of the heading or, without one, these in their order."""
        places = self.columns or {name: place for place, name in enumerate(columns[: self.width])}
        chosen = ", ".join(f'c{place} AS "{name}"' for name, place in places.items())
        typed = ", ".join(f"c{place}: 'VARCHAR'" for place in range(self.width))
        quote = '"' if self.separator == "," else ""
        kind = {".gz": "gzip", ".zst": "zstd"}.get(self.file.suffix, "none")
        return (
            f"SELECT {chosen} FROM read_csv({literal(str(self.file))}, header=false, auto_detect=false, "
            f"skip={self.skip}, delim={literal(self.separator)}, quote='{quote}', escape='{quote}', "
            f"columns={{{typed}}}, compression='{kind}')"
        )


def text_layout(file: Path, columns: Sequence[str], widths: Collection[int], more: Collection[str] = ()) -> TextLayout:
    """Find the layout of a text file.

    Args:
        file: the file.
        columns: what the columns are called in their order, where there is no heading.
        widths: how many columns there may be then.
        more: columns that a heading may name beside the three ends.

    Raises:
        DataError: it is no text, has no edge, or another number of columns.
    """
    before, line = _first_line(file)
    separators = list(SEPARATORS)
    if ".tsv" in file.suffixes:
        separators = ["\t"]
    elif ".csv" in file.suffixes:
        separators.sort(key=lambda one: one != ",")
    for separator in separators:
        fields = _fields(line, separator)
        places = _heading(fields, more)
        if places or len(fields) in widths:
            return TextLayout(file, separator, len(fields), places, before + bool(places))
    shown = line if len(line) <= 60 else f"{line[:57]}..."
    allowed = " and ".join({str(number): None for number in (min(widths), max(widths))})
    raise DataError(
        f"{file}: the first line is {shown!r}, allowed are {allowed} columns ({', '.join(columns)}) separated by "
        f"{', '.join(SEPARATORS[one] for one in separators)}, or a heading that names them"
    )


def explained(error: duckdb.Error) -> str:
    """What is wrong with a line, without DuckDB's advice."""
    text = str(error)
    columns = re.search(r"on Line: (\d+).*Expected Number of Columns: (\d+) Found: (\d+)", text, re.DOTALL)
    if columns:
        return f"line {columns[1]} has {columns[3]} columns, allowed are {columns[2]}"
    coded = re.search(r"on Line: (\d+).*Invalid unicode", text, re.DOTALL)
    return f"line {coded[1]} is not UTF-8" if coded else first_line(error)


def _fields(line: str, separator: str) -> list[str]:
    if separator == "," and '"' in line:
        return next(csv.reader([line]))
    return line.split(separator)


def _heading(fields: Sequence[str], more: Collection[str]) -> dict[str, int]:
    for heading in HEADINGS:
        if set(heading) <= set(fields):
            places = {name: fields.index(own) for name, own in zip(ENDS, heading, strict=True)}
            return places | {name: fields.index(name) for name in more if name in fields}
    return {}


def _first_line(file: Path) -> tuple[int, str]:
    """How many empty lines come first, and the line after them."""
    try:
        if file.suffix == ".zst":
            with pa.input_stream(file, compression="zstd") as stream:
                head = stream.read(FIRST)
        else:
            with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
                head = opened.read(FIRST)
        lines = head.removeprefix(b"\xef\xbb\xbf").splitlines()
        before = next((number for number, line in enumerate(lines) if line.strip()), None)
        if before is None:
            raise DataError(f"{file}: found no edge, allowed is one or more")
        return before, lines[before].decode()
    except (OSError, EOFError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(f"{file}: not readable as text ({first_line(error)})") from None
