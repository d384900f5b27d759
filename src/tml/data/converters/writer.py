"""What all converters share: reading text by the fields that a format says it has, and writing tables and a config."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import yaml

from tml.core.errors import DataError
from tml.core.files import whole_folder
from tml.core.progress import Bar, progress
from tml.data.config import CONFIG
from tml.data.faults import first_line
from tml.data.tables import literal

MEMORY = "2GB"


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Attributes:
        folder: the log.
        rows: table → its rows.
        notes: what is worth knowing of how the data set became a log.
        entry: the file to go on with: the config of a job on the log, or a schema.
    """

    folder: Path
    rows: Mapping[str, int]
    notes: tuple[str, ...]
    entry: str = CONFIG

    @property
    def result(self) -> Path:
        """The file to go on with."""
        return self.folder / self.entry


@dataclass
class LogWriter:
    """Writes the tables of a log; made by `writing`.

    Attributes:
        connection: a DuckDB database on disk, for what a converter needs to read.
        folder: where the tables go until all of them are there.
        out: where they will be.
    """

    connection: duckdb.DuckDBPyConnection
    folder: Path
    out: Path
    bar: Bar
    rows: dict[str, int] = field(default_factory=dict)

    def read(self, table: str, select: str) -> None:
        """Read text into a table of the database; `select` is SQL with `text_relation` in it.

        Raises:
            DataError: a file that is not what its format says, by name and line.
        """
        self._run(f"CREATE OR REPLACE TABLE {table} AS {select}", table)

    def write(self, name: str, select: str) -> None:
        """Write a table of the log.

        Raises:
            DataError: as `read`; or there is no row.
        """
        path = self.folder / f"{name}.parquet"
        self._run(f"COPY ({select}) TO {literal(str(path))} (FORMAT parquet, COMPRESSION zstd)", name)
        row = self.connection.execute(f"SELECT count(*) FROM read_parquet({literal(str(path))})").fetchone()
        self.rows[name] = int(row[0]) if row else 0

    def one(self, query: str) -> Any:
        """The one value of a query."""
        row = self.connection.execute(query).fetchone()
        return row[0] if row else None

    def config(self, about: str, tree: Mapping[str, Any]) -> None:
        """Write the config of a job: `tree` without the log's path, under a comment."""
        full = {"seed": 0, **tree, "log": {"path": str(self.out.resolve()), **tree.get("log", {})}}
        ordered = {name: full[name] for name in ("seed", "log", *full) if name in full}
        comment = "".join(f"# {line}".rstrip() + "\n" for line in about.splitlines())
        text = yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
        (self.folder / CONFIG).write_text(f"{comment}{text}", encoding="utf-8")

    def _run(self, statement: str, name: str) -> None:
        try:
            self.connection.execute(statement)
        except duckdb.Error as error:
            raise DataError(_sentence(error, name)) from None
        self.bar.advance(1, name)


@contextmanager
def writing(out: Path, steps: int) -> Iterator[LogWriter]:
    """Write a log to `out`, whole or not at all.

    Args:
        steps: how many tables will be read and written, for the progress.
    """
    with (
        whole_folder(out) as folder,
        TemporaryDirectory(prefix="tml-") as spill,
        duckdb.connect(Path(spill) / "convert.duckdb") as connection,
        progress("convert", total=steps, unit="tables") as bar,
    ):
        connection.execute(f"SET TimeZone='UTC'; SET memory_limit='{MEMORY}'; SET temp_directory={literal(spill)}")
        yield LogWriter(connection, folder, out, bar)


def text_relation(
    files: Sequence[Path],
    columns: Mapping[str, str],
    delimiter: str,
    header: bool = False,
    quote: str = "",
    encoding: str = "utf-8",
) -> str:
    """SQL that reads text files whose fields are known, name → DuckDB type, in the order of the file."""
    listed = ", ".join(literal(str(file)) for file in files)
    types = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in columns.items())
    return (
        f"read_csv([{listed}], auto_detect=false, header={str(header).lower()}, delim={literal(delimiter)}, "
        f"quote={literal(quote)}, escape={literal(quote)}, encoding={literal(encoding)}, hive_partitioning=false, "
        f"columns={{{types}}})"
    )


def _sentence(error: duckdb.Error, table: str) -> str:
    text = str(error)
    file, line = re.search(r"^\s*file = (.+)$", text, re.MULTILINE), re.search(r"CSV Error on Line: (\d+)", text)
    if line is None:
        return f"the table {table} cannot be made: {first_line(error)}"
    # After the line itself, as it is in the file, stands what is wrong with it.
    said = text.splitlines()
    reason = next((said[n + 2] for n in range(len(said) - 2) if said[n + 1].startswith("Original Line")), said[0])
    where = f"{file[1].strip()}, " if file else ""
    return f"{where}line {line[1]}: {reason.rstrip('.')}, allowed are the fields of the format"
