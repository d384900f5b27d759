"""A Spark session for the length of a block, and Spark's failures as one sentence."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tml.core.errors import DataError, UserError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

NEEDED = {
    "spark.sql.session.timeZone": "UTC",
    # DuckDB's times have no zone and are UTC; Spark's functions of time want an instant.
    "spark.sql.parquet.inferTimestampNTZ.enabled": "false",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    # What cannot be cast is an error, as in DuckDB.
    "spark.sql.ansi.enabled": "true",
}
"""Settings that the numbers depend on, whatever a config or a cluster says."""
QUIET = {"spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false", "spark.log.level": "ERROR"}


def require_spark() -> None:
    """Refuse an installation without what Spark needs.

    Raises:
        UserError: PySpark, SQLGlot or Java is not installed.
    """
    try:
        import sqlglot  # noqa: F401
        from pyspark.sql import SparkSession  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"features.engine: found spark without {error.name}, which comes with `pip install 'tml[spark]'`"
        ) from None
    java_home = os.environ.get("JAVA_HOME")
    if not (shutil.which("java") or (java_home and (Path(java_home) / "bin" / "java").is_file())):
        raise UserError(
            "features.engine: found spark without Java, which on Debian comes with `apt-get install "
            "default-jre-headless`; elsewhere JAVA_HOME says where it is"
        )


@contextmanager
def open_session(settings: Mapping[str, str | int | bool]) -> Iterator["SparkSession"]:
    """A session of its own: in the Spark application that is there, or in one that is started and stopped here.

    Args:
        settings: Spark's own; without `spark.master` it is that of `spark-submit`, or all cores of this machine.

    Raises:
        UserError: PySpark, SQLGlot or Java is not installed.
        DataError: Spark does not start, or fails at what is done in the block.
    """
    require_spark()
    from pyspark.sql import SparkSession

    running = SparkSession.getActiveSession()
    # Spark makes a folder for its own tables, of which there are none, where the program was started.
    with failures(), TemporaryDirectory(prefix="tml-") as warehouse:
        builder = SparkSession.builder.appName("tml")
        given = {name: _text(value) for name, value in settings.items()}
        for name, value in {**QUIET, "spark.sql.warehouse.dir": warehouse, **given}.items():
            builder = builder.config(name, value)
        session = (running or builder.getOrCreate()).newSession()
        # An application that was there before has not seen them; what is the application's own stays as it is.
        own = {name: value for name, value in given.items() if session.conf.isModifiable(name)}
        for name, value in {**own, **NEEDED}.items():
            session.conf.set(name, value)
        try:
            yield session
        finally:
            if running is None:
                session.stop()


@contextmanager
def failures() -> Iterator[None]:
    """Give Spark's failures as one sentence."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise DataError(f"features.engine: Spark failed: {lines[0][:300]}") from None


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
