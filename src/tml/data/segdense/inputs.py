"""The files of a published data set: from a glob, or from a folder for every day or hour."""

import glob
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from tml.core.errors import DataError
from tml.data.segdense.config import ExplicitDateInputs, ExplicitDatetimeInputs, InputsConfig

Time = TypeVar("Time", date, datetime)

_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)
_SHOWN = 5


def find_files(config: InputsConfig) -> tuple[Path, ...]:
    """All files, those of a folder in the order of their names, the folders in the order of time.

    Names that begin with a dot or an underscore, as `_SUCCESS`, are no data.

    Raises:
        DataError: there is none, or more days or hours are missing than the config tolerates.
    """
    if config.explicit_date_inputs:
        return _by_day(config.explicit_date_inputs)
    if config.explicit_datetime_inputs:
        return _by_hour(config.explicit_datetime_inputs)
    pattern = config.inputs or ""
    matching = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - pathlib's fails on some patterns
    found = tuple(path for path in map(Path, matching) if _is_data(path))
    if not found:
        raise DataError(f"inputs: found no file for {pattern!r}, allowed is a glob of TFRecord files")
    return found


def _by_day(config: ExplicitDateInputs) -> tuple[Path, ...]:
    wanted = _times(*config.span(), _DAY)
    return _files(config.data_root, [f"{day:%Y/%m/%d}" for day in wanted], "days", config.num_missing_days_tol)


def _by_hour(config: ExplicitDatetimeInputs) -> tuple[Path, ...]:
    wanted = _times(config.start_datetime, config.end_datetime, _HOUR)
    return _files(config.data_root, [f"{hour:%Y/%m/%d/%H}" for hour in wanted], "hours", config.num_missing_hours_tol)


def _times(first: Time, last: Time, step: timedelta) -> list[Time]:
    return [first + step * i for i in range((last - first) // step + 1)]


def _files(root: Path, folders: list[str], unit: str, tolerated: int) -> tuple[Path, ...]:
    by_folder = {name: _data_in(root / name) for name in folders}
    missing = [name for name, files in by_folder.items() if not files]
    if len(missing) > tolerated or len(missing) == len(folders):
        shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
        raise DataError(
            f"{root}: found no files for {len(missing)} of {len(folders)} {unit} ({shown}), "
            + (f"num_missing_{unit}_tol allows {tolerated}" if len(missing) > tolerated else "needed is one with files")
        )
    return tuple(path for files in by_folder.values() for path in files)


def _data_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_data(path)) if folder.is_dir() else []


def _is_data(path: Path) -> bool:
    return path.is_file() and not path.name.startswith((".", "_"))
