"""What `tml data check` finds: what is in a log, what is wrong with it, and what can be done about that.

A log that cannot be opened as its config says is looked at as far as it can be: what is at fault is skipped, and where
columns have other names than the contract's, under the names that seem to be meant.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ConfigDict

from tml.core.config import BaseConfig, load_config
from tml.core.errors import ConfigError, DataError
from tml.data.check_facts import Facts, collect_facts
from tml.data.check_findings import Finding, find_faults
from tml.data.config import CONFIG, LogConfig
from tml.data.faults import Skipped
from tml.data.log import open_with_sources
from tml.data.suggest import suggest_config


@dataclass(frozen=True)
class LogCheck:
    """The result of a check.

    Attributes:
        config: the config that was asked about.
        error: the sentence that opening the log with this config gives; empty where it can be opened.
        suggestion: a config that opens it, where the one asked about does not name its columns.
        facts: what is in it.
        findings: what was found, the worst first.
        skipped: what cannot be used.
    """

    config: LogConfig
    error: str
    suggestion: LogConfig | None
    facts: Facts
    findings: tuple[Finding, ...]
    skipped: tuple[Skipped, ...]

    @property
    def is_usable(self) -> bool:
        """Whether a job can read the log as its config says."""
        return not self.error


class _Config(BaseConfig):
    """A config with a log in it: of a whole job, whose other sections are another's, or a log's alone."""

    model_config = ConfigDict(extra="ignore")
    log: LogConfig


def load_log_config(path: Path, overrides: Sequence[str] = ()) -> LogConfig:
    """The config of a log, given its folder, a config file of a job, or one of a log alone.

    Args:
        path: folder or YAML file. A folder with a `log.yaml`, as conversions write it, is described by that.
        overrides: `log.impressions.time_unit=ms` each, or without `log.` for a log alone.

    Raises:
        ConfigError: one sentence with file, field, value and what is allowed.
    """
    if path.is_dir():
        config = path / CONFIG if (path / CONFIG).is_file() else None
        return load_config(_Config, config, [f"log.path={json.dumps(str(path))}", *overrides]).log
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: found no such folder, allowed are the folder of a log and a config .yaml")
    try:
        return load_config(_Config, path, overrides).log
    except ConfigError as error:
        if "log: not given" not in str(error):
            raise
    try:
        return load_config(LogConfig, path, overrides)
    except ConfigError as error:
        raise ConfigError(f"{error}; a config of a job has a section log") from None


def check_log(config: LogConfig, now: datetime | None = None, memory: str = "2GB") -> LogCheck:
    """Look at a log.

    Args:
        config: where it lies and what its columns are called.
        now: what is later is in the future; without an offset it is UTC; by default the present.
        memory: how much memory DuckDB may hold before it spills to disk.

    Raises:
        DataError: there is no log to look at.
    """
    at = datetime.now(UTC) if now is None else now
    at = at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo else at
    try:
        return _check(config, "", None, at, memory)
    except DataError as error:
        first = error
    skipping = config.model_copy(update={"on_error": "skip"})
    for candidate in (skipping, suggest_config(config)):
        if candidate is None:
            continue
        try:
            suggestion = None if candidate is skipping else candidate
            return _check(candidate, str(first), suggestion, at, memory, config)
        except DataError:
            continue
    raise first


def _check(
    config: LogConfig,
    error: str,
    suggestion: LogConfig | None,
    now: datetime,
    memory: str,
    asked: LogConfig | None = None,
) -> LogCheck:
    with open_with_sources(config, memory) as (log, reads):
        facts = collect_facts(log, reads, config.impressions.labels, now)
        findings = find_faults(facts, log.skipped, log.duplicates, (asked or config).on_error == "skip")
    return LogCheck(asked or config, error, suggestion, facts, findings, log.skipped)
