"""What a user can get wrong.

    UserError
    ├── ConfigError     a config file, a field of it, or a command-line override
    ├── DataError       a table, a column or a value of the user's data
    └── MissingStage    a stage was asked to start before the one it stands on

The message is one sentence that names the file or field, what was found and what is allowed. The command line
prints it and exits with 2; a bug is any other exception and keeps its traceback.
"""

import itertools
from collections.abc import Collection


class UserError(Exception):
    """Something that the user can put right."""


class ConfigError(UserError):
    """A config that cannot be used."""


class DataError(UserError):
    """Data that cannot be used."""


class MissingStage(UserError):  # noqa: N818 - it says what is missing
    """The output of an earlier stage is not there."""


def listed(names: Collection[str], most: int = 12) -> str:
    """Names for a sentence; of many only the first `most`."""
    shown = ", ".join(itertools.islice(names, most))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
